# SPDX-License-Identifier: GPL-3.0-or-later
"""What a refinement may change: a region of the object, and which of the four maps. Knows meshes and images, no job."""

# ruff: noqa: F722, F821

import bpy
import numpy as np
from bpy.props import BoolProperty, EnumProperty, FloatProperty, PointerProperty, StringProperty

from . import protocol

_IN_GROUP = 0.5  # mean weight of a face's corners from which on it belongs to a vertex group


class LimitsProblem(ValueError):
    """The limits leave nothing, or name what is not there; the text is a sentence for a person."""


class PATINA_PG_limits(bpy.types.PropertyGroup):
    region: EnumProperty(
        name="Region",
        description="Where Refine may change the maps; elsewhere not one texel changes",
        items=(
            ("ALL", "Everywhere", "The whole texture"),
            ("FACES", "Selected Faces", "The faces that are selected in Edit Mode"),
            ("GROUP", "Vertex Group", "The faces that belong to a vertex group with a weight of at least a half"),
            ("SLOT", "Active Slot", "The faces of the active material slot"),
            ("IMAGE", "Image", "Where an image in the layout of the UVs is white"),
        ),
    )
    vertex_group: StringProperty(name="Vertex Group", description="The group whose faces may change")
    image: PointerProperty(
        name="Mask", type=bpy.types.Image, description="White may change, black stays, grey changes in part"
    )
    border: FloatProperty(
        name="Soft Border",
        description="Width of the transition inside the region, as a share of the object's size",
        default=0.0,
        min=0.0,
        max=0.5,
        subtype="FACTOR",
    )
    strength: FloatProperty(
        name="Strength",
        description="How much Refine changes: 1 paints anew, small values touch up details only",
        default=0.5,
        min=0.05,
        max=1.0,
        subtype="FACTOR",
    )
    lock_base_color: BoolProperty(name="Base Color", description="Refine leaves the base color as it is")
    lock_metallic: BoolProperty(name="Metallic", description="Refine leaves the metallic map as it is")
    lock_roughness: BoolProperty(name="Roughness", description="Refine leaves the roughness map as it is")
    lock_normal: BoolProperty(name="Normal", description="Refine leaves the normal map as it is")


def locked_maps(limits: PATINA_PG_limits) -> list[str]:
    return [name for name in protocol.MAP_NAMES if getattr(limits, f"lock_{name}")]


def are_set(limits: PATINA_PG_limits) -> bool:
    return limits.region != "ALL" or bool(locked_maps(limits))


def face_mask(obj: bpy.types.Object, shown: bpy.types.Mesh) -> np.ndarray | None:
    """(F,) bool for the triangles of the evaluated mesh `shown` that may change; None: all. Raises LimitsProblem."""
    limits = obj.patina.limits
    if limits.region in ("ALL", "IMAGE"):
        return None
    faces = {"FACES": _selected, "GROUP": _in_group, "SLOT": _of_slot}[limits.region](obj, shown)
    polygons = np.empty(len(shown.loop_triangles), np.int32)
    shown.loop_triangles.foreach_get("polygon_index", polygons)
    return faces[polygons]


def painted_mask(obj: bpy.types.Object) -> np.ndarray | None:
    """(H, W) uint8, row 0 at the top, of the mask image; None: the region is no image. Raises LimitsProblem."""
    limits = obj.patina.limits
    if limits.region != "IMAGE":
        return None
    image = limits.image
    if image is None:
        raise LimitsProblem("Choose the image that says what may change, or set Region to Everywhere.")
    width, height = image.size
    if not width or not height:
        raise LimitsProblem(f"The mask image {image.name} cannot be read.")
    pixels = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(pixels)
    pixels = pixels.reshape(height, width, image.channels)[::-1, :, : min(image.channels, 3)].mean(-1)
    if pixels.max() <= 0:
        raise LimitsProblem(f"The mask image {image.name} is black, so nothing may change.")
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def _selected(obj: bpy.types.Object, shown: bpy.types.Mesh) -> np.ndarray:
    chosen = np.empty(len(shown.polygons), bool)
    shown.polygons.foreach_get("select", chosen)
    if not chosen.any():
        raise LimitsProblem(f"No face of {obj.name} is selected. Select some in Edit Mode, then leave it.")
    return chosen


def _in_group(obj: bpy.types.Object, shown: bpy.types.Mesh) -> np.ndarray:
    group = obj.vertex_groups.get(obj.patina.limits.vertex_group)
    if group is None:
        raise LimitsProblem("Choose the vertex group that says what may change, or set Region to Everywhere.")
    weights = np.zeros(len(shown.vertices), np.float32)
    for vertex in shown.vertices:
        for member in vertex.groups:
            if member.group == group.index:
                weights[vertex.index] = member.weight
    corners, starts = np.empty(len(shown.loops), np.int32), np.empty(len(shown.polygons), np.int32)
    shown.loops.foreach_get("vertex_index", corners)
    shown.polygons.foreach_get("loop_start", starts)
    counts = np.diff(np.append(starts, len(corners)))
    chosen = np.add.reduceat(weights[corners], starts) / counts >= _IN_GROUP
    if not chosen.any():
        raise LimitsProblem(f"No face of {obj.name} belongs to the vertex group {group.name}.")
    return chosen


def _of_slot(obj: bpy.types.Object, shown: bpy.types.Mesh) -> np.ndarray:
    slots = np.empty(len(shown.polygons), np.int32)
    shown.polygons.foreach_get("material_index", slots)
    chosen = slots == obj.active_material_index
    if not chosen.any():
        raise LimitsProblem("No face uses the active material slot.")
    return chosen


def register() -> None:
    bpy.utils.register_class(PATINA_PG_limits)


def unregister() -> None:
    bpy.utils.unregister_class(PATINA_PG_limits)
