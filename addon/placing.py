# SPDX-License-Identifier: GPL-3.0-or-later
"""A run's place in the user's file: where its images and material are, whether they are still there.

The one writer of a run's datablocks. Holds none of them: everything is found anew at each call.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np

from . import images, material, protocol, unwrap, variants
from .mesh_io import MeshProblem


@dataclass(frozen=True)
class Member:
    """Another object that shares a run's maps, as the fields of `Place`."""

    object_name: str
    object_uid: int
    own_uvs: Path | None
    before: str = ""


@dataclass(frozen=True)
class Place:
    """Which object a run belongs to and what is needed to put its material there again."""

    run: str
    object_name: str
    object_uid: int
    blend_file: str
    uv_layer: str
    own_uvs: Path | None  # the .npy of the UV layer that was made for the run
    slot: int | None  # None: all
    request: protocol.TextureRequest
    parent: str = ""  # the run whose maps it begins from
    before: str = ""  # the run whose material was on the object
    others: tuple[Member, ...] = ()  # that share its maps in one atlas


def all_places(place: Place) -> list[Place]:
    """The place, and one for each other object that shares its maps."""
    return [place, *(dataclasses.replace(place, **vars(member), others=()) for member in place.others)]


def _objects(place: Place, obj: bpy.types.Object) -> list[tuple[Place, bpy.types.Object]]:
    """Each of a run's places with its object; `obj` is the first one's. Those that are gone are left out."""
    found = [(each, find_object(each)) for each in all_places(place)[1:]]
    return [(place, obj), *((each, other) for each, other in found if other is not None and other.type == "MESH")]


def find_object(place: Place) -> bpy.types.Object | None:
    """The run's object: by session id, and by name in the same file loaded again."""
    for obj in bpy.data.objects:
        if obj.session_uid == place.object_uid:
            return obj
    if place.blend_file and bpy.data.filepath == place.blend_file:
        return bpy.data.objects.get(place.object_name)
    return None


def attached_images(place: Place) -> dict[str, bpy.types.Image]:
    """The run's images while it is the object's (its material on it, or a variant) and nobody painted on them."""
    found = images.find(place.run)
    if len(found) < len(protocol.MAP_NAMES) or any(image.is_dirty for image in found.values()):
        return {}
    obj = find_object(place)
    if obj is None:  # renamed in a file loaded again: the material tells
        obj = next((o for o in bpy.data.objects if o.type == "MESH" and material.is_on(o, place.run)), None)
    return found if obj is not None and _belongs(obj, place.run) else {}


def _belongs(obj: bpy.types.Object, run: str) -> bool:
    if obj.type != "MESH":
        return False
    kept = variants.find(obj, run)
    return material.is_on(obj, run) or (kept is not None and kept.material is not None)


def put(place: Place, obj: bpy.types.Object, folder: Path, show: bool = True) -> None:
    """Images, material and variant of a run, from the map files in `folder`, on its slots if `show`; all or nothing.

    Raises OSError, RuntimeError (an image could not be loaded).
    """
    with contextlib.ExitStack() as undo:
        images.write_plain(folder)
        maps = images.load(folder, place.run, obj.name)
        for image in maps.values():
            undo.callback(bpy.data.images.remove, image)
        made = material.build(f"{obj.name} Patina", place.uv_layer, maps, place.run, place.request)
        undo.callback(bpy.data.materials.remove, made)
        for each, member in _objects(place, obj):
            if show:
                material.put_on(member, made, place.slot)
            variants.record(member, each, folder, made, shared=bool(place.others))
        undo.pop_all()


def put_again(place: Place, obj: bpy.types.Object, folder: Path) -> None:
    """Bring a run's material back after it was undone or taken off.

    Raises MeshProblem, OSError, RuntimeError.
    """
    for each, member in _objects(place, obj):
        _require_layer(each, member)
    for image in images.find(place.run).values():
        del image[images.RUN_KEY]  # painted ones stay what they are, but no longer belong to the run
    put(place, obj, folder)


def show(obj: bpy.types.Object, variant: variants.PATINA_PG_variant) -> None:
    """Put a variant's material on the object. Raises MeshProblem, OSError, RuntimeError, ProtocolError."""
    folder = variants.folder_of(variant)
    own_uvs = folder / (variant.uvs_file or variants.UVS)
    place = Place(
        run=variant.run,
        object_name=obj.name,
        object_uid=obj.session_uid,
        blend_file=bpy.data.filepath,
        uv_layer=variant.uv_layer,
        own_uvs=own_uvs if own_uvs.is_file() else None,
        slot=None if variant.slot < 0 else variant.slot,
        request=variants.request_of(variant),
        parent=variant.parent,
    )
    if place.slot is not None and place.slot >= len(obj.material_slots):
        raise MeshProblem(f"{variant.name} was made for material slot {place.slot + 1}, which is gone.")
    packed = [image for image in images.find(variant.run).values() if image.packed_file]
    if not variants.has_maps(variant) and len(packed) < len(protocol.MAP_NAMES):
        raise MeshProblem(f"The maps of {variant.name} are gone from {folder}.")
    if variant.material is None or len(images.find(variant.run)) < len(protocol.MAP_NAMES):
        put_again(place, obj, folder)
        return
    _require_layer(place, obj)
    material.put_on(obj, variant.material, place.slot)


def _require_layer(place: Place, obj: bpy.types.Object) -> None:
    """The run's UV layer is there, made again if Patina had made it. Raises MeshProblem."""
    mesh = obj.data
    if place.own_uvs is not None and place.uv_layer not in mesh.uv_layers:
        uvs = np.load(place.own_uvs, allow_pickle=False)
        if len(uvs) != len(mesh.loops):
            raise MeshProblem(f"The mesh of {obj.name} has changed since this run, so its maps no longer fit.")
        unwrap.add_layer(mesh, uvs, place.uv_layer)
    elif place.own_uvs is None and place.uv_layer not in mesh.uv_layers and not obj.modifiers:
        raise MeshProblem(f"The UV layer {place.uv_layer} of {obj.name} is gone, so the maps no longer fit.")
