# SPDX-License-Identifier: GPL-3.0-or-later
"""A fingerprint of all in a .blend that Patina must leave alone; for scenarios inside bpy."""

import hashlib

import bpy
import numpy as np

_OURS = {"patina", "patina_export", "rna_type", "bl_rna", "bl_system_properties_get"}

# What follows from other state; the dimensions in 4.2 by rounding, whenever a subdivided mesh is evaluated anew.
_MIRRORS = {"session_uid", "users", "is_evaluated", "active_material_index", "frame_float", "dimensions"}


def fingerprint(ours=()) -> dict[str, str]:
    """By kind: meshes with UV layers and selection, slots, materials, objects, scene, view layer. `ours`: names of
    materials, UV layers and images that may come and go."""
    found = {}
    for mesh in bpy.data.meshes:
        values = [_numbers(mesh.vertices, "co", 3), _numbers(mesh.loops, "vertex_index", 1, np.int32)]
        for what in ("select", "hide", "material_index", "use_smooth"):
            values.append(_numbers(mesh.polygons, what, 1, np.int32))
        found[f"mesh {mesh.name}"] = _hash(*values)
        for layer in mesh.uv_layers:
            if layer.name not in ours:
                state = (layer.active_render, layer.active)
                found[f"uv {mesh.name} {layer.name}"] = _hash(_numbers(layer.uv, "vector", 2), repr(state).encode())
    for material in bpy.data.materials:
        if "patina_run" not in material:
            nodes = material.node_tree.nodes if material.node_tree else ()
            nodes = [(n.name, n.type, tuple(n.location)) for n in nodes]
            found[f"material {material.name}"] = _hash(repr((_plain(material), nodes)).encode())
    for obj in bpy.data.objects:
        modifiers = [(m.name, m.type, m.show_viewport) for m in obj.modifiers]
        state = (_plain(obj), modifiers, obj.select_get(), obj.mode, [g.name for g in obj.vertex_groups])
        found[f"object {obj.name}"] = _hash(repr(state).encode())
    for scene in bpy.data.scenes:
        parts = (scene, scene.render, scene.render.image_settings, scene.view_settings, scene.display_settings)
        found[f"scene {scene.name}"] = _hash(repr([_plain(part) for part in parts]).encode())
    layer = bpy.context.view_layer
    found["view layer"] = _hash(repr((layer.name, layer.objects.active and layer.objects.active.name)).encode())
    kinds = (bpy.data.meshes, bpy.data.objects, bpy.data.collections)
    found["names"] = _hash(repr([sorted(item.name for item in kind) for kind in kinds]).encode())
    return found


def difference(before: dict, after: dict) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _numbers(collection, name, width, kind=np.float32):
    values = np.empty(len(collection) * width, kind)
    collection.foreach_get(name, values)
    return values.tobytes()


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _plain(data) -> list:
    """The plain properties of a datablock, without what is Patina's and what only mirrors other state."""
    values = []
    for prop in data.bl_rna.properties:
        if prop.identifier in _OURS or prop.type in ("POINTER", "COLLECTION"):
            continue
        if prop.identifier in _MIRRORS:
            continue
        value = getattr(data, prop.identifier)
        values.append((prop.identifier, tuple(map(str, value)) if getattr(prop, "is_array", False) else str(value)))
    return values
