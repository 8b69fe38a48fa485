# SPDX-License-Identifier: GPL-3.0-or-later
"""Four images to a Principled material on the object's slots, and back to what was there before.

Knows nodes and slots; knows no files and no job.
"""

from __future__ import annotations

import dataclasses
import json

import bpy

from . import protocol
from .images import RUN_KEY

_COLUMNS = {"uv": -1000, "images": -760, "normal": -360, "shader": -140, "output": 180}
_IMAGE_HEIGHT = 300
_LABELS = {"base_color": "Base Color", "metallic": "Metallic", "roughness": "Roughness", "normal": "Normal"}


def build(
    name: str, uv_layer: str, maps: dict[str, bpy.types.Image], run: str, request: protocol.TextureRequest
) -> bpy.types.Material:
    """A new material: UV Map, four Image Textures, Normal Map, Principled BSDF, Output; laid out to read."""
    material = bpy.data.materials.new(name)
    if material.node_tree is None:  # before Blender 5.0
        material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()

    def node(kind: str, label: str, column: str, y: float) -> bpy.types.Node:
        made = tree.nodes.new(kind)
        made.label, made.name = label, f"Patina {label}"
        made.location = (_COLUMNS[column], y)
        return made

    output = node("ShaderNodeOutputMaterial", "Material", "output", 300)
    shader = node("ShaderNodeBsdfPrincipled", "Principled", "shader", 300)
    bend = node("ShaderNodeNormalMap", "Normal Map", "normal", 300 - 3 * _IMAGE_HEIGHT)
    layout = node("ShaderNodeUVMap", "UVs", "uv", 300 - 1.5 * _IMAGE_HEIGHT)
    layout.uv_map = bend.uv_map = uv_layer
    tree.links.new(shader.outputs["BSDF"], output.inputs["Surface"])
    tree.links.new(bend.outputs["Normal"], shader.inputs["Normal"])
    for index, map_name in enumerate(protocol.MAP_NAMES):
        texture = node("ShaderNodeTexImage", _LABELS[map_name], "images", 300 - index * _IMAGE_HEIGHT)
        texture.image = maps[map_name]
        tree.links.new(layout.outputs["UV"], texture.inputs["Vector"])
        target = bend.inputs["Color"] if map_name == "normal" else shader.inputs[_LABELS[map_name]]
        tree.links.new(texture.outputs["Color"], target)
        if map_name == "base_color":
            tree.nodes.active = texture  # what the Solid view's texture colour and texture paint take
    material[RUN_KEY] = run
    material["patina_prompt"] = request.prompt
    material["patina_negative_prompt"] = request.negative_prompt
    material["patina_seed"] = request.seed
    material["patina_model"] = request.model
    material["patina_settings"] = json.dumps(dataclasses.asdict(request))
    return material


def put_on(obj: bpy.types.Object, material: bpy.types.Material, slot: int | None) -> None:
    """Give the object's slots (or the one) the material and keep what they held, unless that is Patina's own.

    Mesh data with other users is left alone: the slot is linked to the object then.
    """
    shared = obj.data.users > 1 or obj.data.library is not None
    added = not obj.material_slots
    if added:
        obj.data.materials.append(None)
    for index, place in enumerate(obj.material_slots):
        if slot not in (None, index):
            continue
        kept = next((kept for kept in obj.patina.kept_slots if kept.slot == index), None)
        if kept is None or not _is_ours(place.material):
            kept = kept or obj.patina.kept_slots.add()
            kept.slot, kept.link, kept.added = index, place.link, added
            kept.material = place.material
        if shared:
            place.link = "OBJECT"
        place.material = material


def _is_ours(material: bpy.types.Material | None) -> bool:
    return material is not None and RUN_KEY in material


def is_on(obj: bpy.types.Object, run: str) -> bool:
    """Does a slot of the object hold the material of this run?"""
    return any(place.material is not None and place.material.get(RUN_KEY) == run for place in obj.material_slots)


def can_restore(obj: bpy.types.Object | None) -> bool:
    return obj is not None and len(obj.patina.kept_slots) > 0


def restore(obj: bpy.types.Object, slot: int | None = None) -> None:
    """Give the slots (or the one) what they held before Patina, even those whose material was changed since."""
    kept_slots = obj.patina.kept_slots
    for index in reversed(range(len(kept_slots))):
        kept = kept_slots[index]
        if slot not in (None, kept.slot):
            continue
        if kept.slot < len(obj.material_slots):
            place = obj.material_slots[kept.slot]
            place.material = kept.material
            if place.link != kept.link:
                if kept.link == "DATA":
                    place.material = None
                place.link = kept.link
                if _is_ours(place.material) and obj.data.users == 1:
                    place.material = kept.material
            if kept.added and obj.data.users == 1 and len(obj.material_slots) == 1 and place.material is None:
                obj.data.materials.clear()
        kept_slots.remove(index)
