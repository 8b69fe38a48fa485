# SPDX-License-Identifier: GPL-3.0-or-later
"""A new UV layer for a mesh whose own UVs cannot serve. Layers, selection and what is active stay as they are."""

from __future__ import annotations

import math

import bpy
import numpy as np
from mathutils import Matrix

from .mesh_io import MeshProblem

LAYER_NAME = "Patina"
_MOST_LAYERS = 8  # Blender's limit


def unwrap(context: bpy.types.Context, obj: bpy.types.Object) -> np.ndarray:
    """UVs (loops, 2) for the object's base mesh. Raises MeshProblem.

    Works on a copy that lives for the moment, because the operators want Edit Mode and a selection.
    """
    _require_room(obj)
    return _on_doubles(context, {obj: None})[0]


def unwrap_together(context: bpy.types.Context, stretches: dict[bpy.types.Object, np.ndarray]) -> list[np.ndarray]:
    """UVs (loops, 2) for each object's base mesh, all in one square, with as much room as their surfaces have when
    stretched by (3, 3) each. Raises MeshProblem."""
    for obj in stretches:
        _require_room(obj)
    return _on_doubles(context, stretches)


def _require_room(obj: bpy.types.Object) -> None:
    if obj.data.library is not None:
        raise MeshProblem(f"The mesh of {obj.name} has no usable UVs and is linked from another file. Make it local.")
    if len(obj.data.uv_layers) >= _MOST_LAYERS:
        raise MeshProblem(f"{obj.name} has no room for a new UV layer. Delete one of the eight.")
    if not obj.data.polygons:
        raise MeshProblem(f"The faces of {obj.name} come from a modifier that makes no UVs. Apply it, then try again.")


def _on_doubles(context: bpy.types.Context, stretches: dict[bpy.types.Object, np.ndarray | None]) -> list[np.ndarray]:
    layer = context.view_layer
    active, selected = layer.objects.active, [other for other in layer.objects if other.select_get()]
    doubles = []
    try:
        for other in selected:
            other.select_set(False)
        for obj, stretch in stretches.items():
            mesh = obj.data.copy()
            mesh.animation_data_clear()
            if stretch is not None:
                mesh.transform(Matrix(stretch.tolist()).to_4x4())
            double = bpy.data.objects.new("Patina unwrap", mesh)
            doubles.append(double)
            context.scene.collection.objects.link(double)
            double.select_set(True)
        layer.objects.active = doubles[0]
        return _smart_project(doubles)
    except RuntimeError as error:
        names = ", ".join(obj.name for obj in stretches)
        raise MeshProblem(f"Blender could not unwrap {names}: {str(error).strip()} Unwrap it by hand.") from error
    finally:
        if doubles and doubles[0].mode != "OBJECT":
            bpy.ops.object.mode_set(mode="OBJECT")
        for double in doubles:
            mesh = double.data
            bpy.data.objects.remove(double)
            bpy.data.meshes.remove(mesh)
        for other in selected:
            other.select_set(True)
        layer.objects.active = active


def uvs_of(mesh: bpy.types.Mesh, name: str) -> np.ndarray:
    """(loops, 2) of one UV layer."""
    uvs = np.empty(len(mesh.loops) * 2, np.float32)
    mesh.uv_layers[name].uv.foreach_get("vector", uvs)
    return uvs.reshape(-1, 2)


def add_layer(mesh: bpy.types.Mesh, uvs: np.ndarray, name: str = LAYER_NAME) -> str:
    """A new UV layer with `uvs` (loops, 2); what renders and what is active stays. Returns its name.

    Raises MeshProblem."""
    if len(mesh.uv_layers) >= _MOST_LAYERS:
        raise MeshProblem(f"{mesh.name} has no room for the UV layer {name}. Delete one of the eight.")
    render = next((layer.name for layer in mesh.uv_layers if layer.active_render), None)
    active = mesh.uv_layers.active.name if mesh.uv_layers.active else None
    new = mesh.uv_layers.new(name=name, do_init=False)
    if new is None:
        raise MeshProblem("Blender could not add a UV layer. Leave Edit Mode and try again.")
    name = new.name
    new.uv.foreach_set("vector", np.ascontiguousarray(uvs, np.float32).ravel())
    if render is not None:
        mesh.uv_layers[render].active_render = True
    if active is not None:
        mesh.uv_layers.active = mesh.uv_layers[active]
    mesh.update()
    return name


def _smart_project(doubles: list[bpy.types.Object]) -> list[np.ndarray]:
    for double in doubles:
        mesh = double.data
        while mesh.uv_layers:
            mesh.uv_layers.remove(mesh.uv_layers[0])
        mesh.uv_layers.active = mesh.uv_layers.new(name=LAYER_NAME, do_init=False)
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.reveal(select=True)
    bpy.ops.mesh.select_all(action="SELECT")
    # It packs as well; pack_islands after it gave a worse layout (AABB) or hung for ever (CONVEX, Blender 4.5).
    bpy.ops.uv.smart_project(
        angle_limit=math.radians(66.0),
        island_margin=0.004,
        area_weight=0.0,
        correct_aspect=False,
        scale_to_bounds=False,
    )
    bpy.ops.object.mode_set(mode="OBJECT")
    return [uvs_of(double.data, LAYER_NAME) for double in doubles]
