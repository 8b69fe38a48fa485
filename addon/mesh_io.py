# SPDX-License-Identifier: GPL-3.0-or-later
"""From an object to the arrays of mesh.npz: the evaluated mesh in triangles, the object's scale applied.

Knows Blender's meshes; decides which UV layer serves (`choose_uv_layer`), but does not make one.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import bpy
import numpy as np

from . import limits, protocol, uv_check


class MeshProblem(ValueError):
    """The object cannot be textured as it is; the text is a sentence with what to do."""


def refusal(obj: bpy.types.Object | None) -> str:
    """Why this object cannot be textured, or an empty string. Cheap: it is asked at every redraw."""
    if obj is None:
        return "Select a mesh object"
    if obj.type != "MESH":
        return "Select a mesh object; others can be converted with Object > Convert > Mesh"
    if obj.mode != "OBJECT":
        return "Switch to Object Mode"
    if obj.library is not None:
        return "The object is linked from another file. Make it local"
    if not obj.data.polygons and not obj.modifiers:
        return "The mesh has no faces"
    if obj.data.library is not None and not obj.material_slots:
        return "The mesh is linked from another file and has no material slot. Make it local"
    return ""


@contextlib.contextmanager
def evaluated(context: bpy.types.Context, obj: bpy.types.Object) -> Iterator[bpy.types.Mesh]:
    """The mesh with modifiers, as the viewport shows it; gone when the block ends."""
    if obj.data.library is None:
        obj.data.update_tag()  # scripts take UV layers away without telling
    graph = context.evaluated_depsgraph_get()
    graph.update()
    shown = obj.evaluated_get(graph)
    try:
        yield shown.to_mesh(preserve_all_data_layers=True, depsgraph=graph)
    finally:
        shown.to_mesh_clear()


def choose_uv_layer(obj: bpy.types.Object, shown: bpy.types.Mesh, slot: int | None) -> tuple[str, str]:
    """The name of the first usable UV layer (the render layer is asked first) and a note, else "" and the reason.
    Raises MeshProblem for UDIM tiles.

    Overlap counts on the base mesh: copies that modifiers make share the texture, and no unwrap could change that.
    """
    base = obj.data
    layers = sorted(shown.uv_layers, key=lambda layer: not layer.active_render)
    layers = [layer for layer in layers if layer.active_render or layer.name.startswith("Patina")]
    reasons = []
    for layer in layers:
        report = uv_check.usability(*raw_uvs(shown, layer.name, slot))
        if report.usable:
            return layer.name, ""
        by_modifiers = report.overlap and obj.modifiers and len(base.polygons) and layer.name in base.uv_layers
        if by_modifiers and uv_check.usability(*raw_uvs(base, layer.name, slot)).usable:
            return layer.name, "Copies made by modifiers share one texture."
        tiles = uv_check.udim_tiles(raw_uvs(shown, layer.name, slot)[0]) if _shows_tiles(obj) else []
        if tiles:
            raise MeshProblem(
                f"UV layer {layer.name} of {obj.name} lies on the UDIM tiles {', '.join(map(str, tiles))}, and Patina "
                "fills one square. Add a UV layer with all islands in one square and make it the one for rendering, "
                "or texture the tiles' faces one by one with Cover set to Active Slot."
            )
        reasons.append(f"UV layer {layer.name} {report.reason}")
    return "", "; ".join(reasons) or "there are no UVs"


def _shows_tiles(obj: bpy.types.Object) -> bool:
    """Is there an image of UDIM tiles in one of the object's materials?"""
    materials = [place.material for place in obj.material_slots if place.material and place.material.node_tree]
    nodes = (node for material in materials for node in material.node_tree.nodes)
    return any(getattr(node, "image", None) is not None and node.image.source == "TILED" for node in nodes)


def read(
    obj: bpy.types.Object, shown: bpy.types.Mesh, uv_layer: str, slot: int | None, limited: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of `protocol.MESH_ARRAYS` of an evaluated mesh. Raises MeshProblem, LimitsProblem.

    `slot`: only the faces of this material slot may change; None: all. `limited`: the object's limits bind as well.
    """
    triangles = _triangles(shown)
    if not len(triangles.loops):
        raise MeshProblem(f"{obj.name} has no faces. Add some, or check its modifiers.")
    vertices = _get(shown.vertices, "co", 3)
    if not np.isfinite(vertices[_get(shown.loops, "vertex_index", 1, np.int32)]).all():
        raise MeshProblem(
            f"{obj.name} has vertices without a position (NaN or infinite). "
            "Delete them, or the modifier that makes them."
        )
    stretch, unstretch = stretch_of(obj)
    corners = triangles.loops
    positions = vertices[_get(shown.loops, "vertex_index", 1, np.int32)[corners]]
    normals = _get(shown.corner_normals, "vector", 3)[corners]
    uvs = _get(shown.uv_layers[uv_layer].uv, "vector", 2)[corners]
    tangents = _tangents(shown, uv_layer, corners, positions, normals, uvs)
    face_normals = np.cross(positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0])
    normals = _unit(normals @ unstretch, instead=_unit((face_normals @ unstretch)[:, None].repeat(3, 1), None))
    # Blender turns tangents like normals (by the inverse transpose), so that is what the maps are made for.
    directions = _unit(tangents[..., :3] @ unstretch, instead=_any_perpendicular(normals))
    sign = np.where(tangents[..., 3:] < 0, -1.0, 1.0)
    arrays = {
        "positions": positions @ stretch,
        "normals": normals,
        "tangents": np.concatenate([directions, sign], axis=-1),
        "uvs": uv_check.shifted(uvs),
        "material_slot": triangles.slot,
        "face_mask": np.full(len(corners), True) if slot is None else triangles.slot == slot,
    }
    region = limits.face_mask(obj, shown) if limited else None
    if region is not None:
        arrays["face_mask"] = arrays["face_mask"] & region
    if not arrays["face_mask"].any():
        raise MeshProblem("No face uses the active material slot. Assign some faces to it, or cover the whole object.")
    return {name: np.ascontiguousarray(arrays[name], dtype) for name, (_, dtype) in protocol.MESH_ARRAYS.items()}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write mesh.npz. Raises OSError."""
    protocol.write_beside(path, packed(arrays))


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of mesh.npz; the same for the same arrays."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


class _triangles:
    """Loop indices (F, 3) and material slot (F,) of a mesh's triangles."""

    def __init__(self, mesh: bpy.types.Mesh) -> None:
        mesh.calc_loop_triangles()
        self.loops = _get(mesh.loop_triangles, "loops", 3, np.int32)
        self.slot = _get(mesh.loop_triangles, "material_index", 1, np.int32)


def raw_uvs(mesh: bpy.types.Mesh, layer: str, slot: int | None) -> tuple[np.ndarray, np.ndarray]:
    """UVs (F, 3, 2) as they are and areas (F,) of the triangles, or of those of a slot."""
    triangles = _triangles(mesh)
    chosen = slice(None) if slot is None else triangles.slot == slot
    uvs = _get(mesh.uv_layers[layer].uv, "vector", 2)[triangles.loops[chosen]]
    corners = _get(mesh.vertices, "co", 3)[_get(mesh.loops, "vertex_index", 1, np.int32)[triangles.loops[chosen]]]
    with np.errstate(all="ignore"):
        double = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return uvs, np.nan_to_num(np.linalg.norm(double, axis=1)) / 2


def _get(collection, attribute: str, width: int, dtype: type = np.float32) -> np.ndarray:
    values = np.empty(len(collection) * width, dtype)
    collection.foreach_get(attribute, values)
    return values.reshape(-1, width) if width > 1 else values


def stretch_of(obj: bpy.types.Object) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric part of the world matrix (scale and shear, parents included) and its inverse, both (3, 3)."""
    matrix = np.array(obj.matrix_world, np.float64)[:3, :3]
    _, scales, axes = np.linalg.svd(matrix)
    if not np.isfinite(scales).all() or scales.min() <= 1e-9 * max(scales.max(), 1e-30):
        raise MeshProblem(f"{obj.name} is scaled to zero along an axis. Give it a scale (N-panel, tab Item).")
    return (axes.T * scales) @ axes, (axes.T / scales) @ axes


def _tangents(shown, uv_layer: str, corners, positions, normals, uvs) -> np.ndarray:
    """MikkTSpace tangents and signs (F, 3, 4), computed by Blender; it refuses n-gons, so those go as triangles."""
    if len(shown.polygons) and _get(shown.polygons, "loop_total", 1, np.int32).max() <= 4:
        return _blender_tangents(shown, uv_layer)[corners]
    mesh = bpy.data.meshes.new("Patina triangles")
    try:
        count = len(corners)
        mesh.vertices.add(len(shown.vertices))
        mesh.vertices.foreach_set("co", _get(shown.vertices, "co", 3).ravel())
        mesh.loops.add(count * 3)
        mesh.loops.foreach_set("vertex_index", _get(shown.loops, "vertex_index", 1, np.int32)[corners].ravel())
        mesh.polygons.add(count)
        mesh.polygons.foreach_set("loop_start", np.arange(0, count * 3, 3, dtype=np.int32))
        mesh.uv_layers.new(name="uv", do_init=False).uv.foreach_set("vector", uvs.ravel())
        mesh.update(calc_edges=True)
        mesh.normals_split_custom_set(normals.reshape(-1, 3))
        return _blender_tangents(mesh, mesh.uv_layers[0].name).reshape(count, 3, 4)
    finally:
        bpy.data.meshes.remove(mesh)


def _blender_tangents(mesh: bpy.types.Mesh, uv_layer: str) -> np.ndarray:
    mesh.calc_tangents(uvmap=uv_layer)
    tangents = np.empty((len(mesh.loops), 4), np.float32)
    tangents[:, :3] = _get(mesh.loops, "tangent", 3)
    tangents[:, 3] = _get(mesh.loops, "bitangent_sign", 1)
    mesh.free_tangents()
    return tangents


def _unit(vectors: np.ndarray, instead: np.ndarray | None) -> np.ndarray:
    """Vectors at unit length; where that is impossible (no length, no number): `instead`, or +Z."""
    with np.errstate(all="ignore"):
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        sound = np.isfinite(length) & (length > 1e-12)
        result = vectors / length
    return np.where(sound, result, np.array([0.0, 0.0, 1.0]) if instead is None else instead)


def _any_perpendicular(normals: np.ndarray) -> np.ndarray:
    axis = np.where(np.abs(normals[..., :1]) < 0.9, np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    return _unit(np.cross(axis, normals), None)
