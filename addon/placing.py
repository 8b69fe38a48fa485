# SPDX-License-Identifier: GPL-3.0-or-later
"""A run's place in the user's file: where its images and material are, whether they are still there.

The one writer of a run's datablocks. Holds none of them: everything is found anew at each call.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np

from . import images, material, protocol, unwrap
from .mesh_io import MeshProblem


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


def find_object(place: Place) -> bpy.types.Object | None:
    """The run's object: by session id, and by name in the same file loaded again."""
    for obj in bpy.data.objects:
        if obj.session_uid == place.object_uid:
            return obj
    if place.blend_file and bpy.data.filepath == place.blend_file:
        return bpy.data.objects.get(place.object_name)
    return None


def attached_images(place: Place) -> dict[str, bpy.types.Image]:
    """The run's images while its material sits on the object and nobody painted on them, else nothing."""
    found = images.find(place.run)
    if len(found) < len(protocol.MAP_NAMES) or any(image.is_dirty for image in found.values()):
        return {}
    obj = find_object(place)
    if obj is None:  # renamed in a file loaded again: the material tells
        obj = next((o for o in bpy.data.objects if o.type == "MESH" and material.is_on(o, place.run)), None)
    return found if obj is not None and material.is_on(obj, place.run) else {}


def put(place: Place, obj: bpy.types.Object, folder: Path) -> None:
    """Images, material and slot of a run, from the map files in `folder`; all or nothing.

    Raises OSError, RuntimeError (an image could not be loaded).
    """
    with contextlib.ExitStack() as undo:
        images.write_plain(folder)
        maps = images.load(folder, place.run, obj.name)
        for image in maps.values():
            undo.callback(bpy.data.images.remove, image)
        made = material.build(f"{obj.name} Patina", place.uv_layer, maps, place.run, place.request)
        undo.callback(bpy.data.materials.remove, made)
        material.put_on(obj, made, place.slot, place.run)
        undo.pop_all()


def put_again(place: Place, obj: bpy.types.Object, folder: Path) -> None:
    """Bring a finished run's material back after it was undone or taken off.

    Raises MeshProblem, OSError, RuntimeError.
    """
    mesh = obj.data
    if place.own_uvs is not None and place.uv_layer not in mesh.uv_layers:
        uvs = np.load(place.own_uvs, allow_pickle=False)
        if len(uvs) != len(mesh.loops):
            raise MeshProblem(f"The mesh of {obj.name} has changed since this run, so its maps no longer fit.")
        made = unwrap.add_layer(mesh, uvs)
        mesh.uv_layers[made].name = place.uv_layer
    elif place.own_uvs is None and mesh.uv_layers and place.uv_layer not in mesh.uv_layers and not obj.modifiers:
        raise MeshProblem(f"The UV layer {place.uv_layer} of {obj.name} is gone, so the maps no longer fit.")
    if material.is_on(obj, place.run):
        material.restore(obj)
    for image in images.find(place.run).values():
        del image[images.RUN_KEY]  # painted ones stay what they are, but no longer belong to the run
    put(place, obj, folder)
