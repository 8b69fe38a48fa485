# SPDX-License-Identifier: GPL-3.0-or-later
"""A new UV layer for a mesh whose own UVs cannot serve. Layers, selection and what is active stay as they are."""

from __future__ import annotations

import math

import bpy
import numpy as np

from .mesh_io import MeshProblem

LAYER_NAME = "Patina"
_MOST_LAYERS = 8  # Blender's limit


def unwrap(context: bpy.types.Context, obj: bpy.types.Object) -> np.ndarray:
    """UVs (loops, 2) for the object's base mesh. Raises MeshProblem.

    Works on a copy that lives for the moment, because the operators want Edit Mode and a selection.
    """
    if obj.data.library is not None:
        raise MeshProblem(f"The mesh of {obj.name} has no usable UVs and is linked from another file. Make it local.")
    if len(obj.data.uv_layers) >= _MOST_LAYERS:
        raise MeshProblem(f"{obj.name} has no usable UVs and no room for a new UV layer. Delete one of the eight.")
    if not obj.data.polygons:
        raise MeshProblem(f"The faces of {obj.name} come from a modifier that makes no UVs. Apply it, then try again.")
    layer = context.view_layer
    active, selected = layer.objects.active, [other for other in layer.objects if other.select_get()]
    mesh = obj.data.copy()
    mesh.animation_data_clear()
    double = bpy.data.objects.new("Patina unwrap", mesh)
    try:
        context.scene.collection.objects.link(double)
        for other in selected:
            other.select_set(False)
        layer.objects.active = double
        double.select_set(True)
        return _smart_project(double)
    except RuntimeError as error:
        raise MeshProblem(f"Blender could not unwrap {obj.name}: {str(error).strip()} Unwrap it by hand.") from error
    finally:
        if double.mode != "OBJECT":
            bpy.ops.object.mode_set(mode="OBJECT")
        bpy.data.objects.remove(double)
        bpy.data.meshes.remove(mesh)
        for other in selected:
            other.select_set(True)
        layer.objects.active = active


def add_layer(mesh: bpy.types.Mesh, uvs: np.ndarray) -> str:
    """A new UV layer with `uvs` (loops, 2); what renders and what is active stays. Returns its name."""
    render = next((layer.name for layer in mesh.uv_layers if layer.active_render), None)
    active = mesh.uv_layers.active.name if mesh.uv_layers.active else None
    new = mesh.uv_layers.new(name=LAYER_NAME, do_init=False)
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


def _smart_project(double: bpy.types.Object) -> np.ndarray:
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
    uvs = np.empty(len(mesh.loops) * 2, np.float32)
    mesh.uv_layers[LAYER_NAME].uv.foreach_get("vector", uvs)
    return uvs.reshape(-1, 2)
