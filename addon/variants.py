# SPDX-License-Identifier: GPL-3.0-or-later
"""The runs of an object that are kept: recorded, found, forgotten; where their maps are. Deletes no file (deletion.py).

A variant is a line on the object (so it travels with the .blend and with copies) and a folder with its maps.
"""

# ruff: noqa: F722, F821

import contextlib
import dataclasses
import json
from pathlib import Path

import bpy
from bpy.props import BoolProperty, IntProperty, PointerProperty, StringProperty

from . import images, preferences, protocol

UVS, MEMBER_UVS, PICTURE, REPORT = "uvs.npy", "uvs-{number}.npy", "picture.png", "report.json"


class PATINA_PG_variant(bpy.types.PropertyGroup):
    """`name` is what a person calls it."""

    run: StringProperty()
    folder: StringProperty(description="Where its maps were put; the images know better after a Save As")
    request: StringProperty(description="The whole request as JSON")
    prompt: StringProperty()
    seed: IntProperty()
    uv_layer: StringProperty()
    slot: IntProperty(default=-1)
    pinned: BoolProperty(name="Pin", description="A pinned variant is not deleted with the others")
    material: PointerProperty(type=bpy.types.Material)
    parent: StringProperty(description="The run whose maps it began from")
    uvs_file: StringProperty(description="The file of the UV layer that was made for it, in its folder")
    shared: BoolProperty(description="Its maps are an atlas that several objects share")
    made_in: StringProperty(description="Name of the .blend beside which its maps were put")


class VariantProblem(ValueError):
    """A variant cannot be shown or deleted; the text is a sentence for a person."""


def find(obj: bpy.types.Object | None, run: str) -> PATINA_PG_variant | None:
    kept = obj.patina.variants if obj is not None else ()
    return next((variant for variant in kept if variant.run == run), None)


def objects_of(run: str) -> list[bpy.types.Object]:
    """All objects that keep this run as a variant."""
    return [obj for obj in bpy.data.objects if obj.type == "MESH" and find(obj, run) is not None]


def shown_material(obj: bpy.types.Object | None) -> bpy.types.Material | None:
    """A variant's material, or a copy made of it, that is on the object; the active slot is asked first."""
    if obj is None or obj.type != "MESH":
        return None
    slots = obj.material_slots
    active = slots[obj.active_material_index : obj.active_material_index + 1]
    held = (place.material for place in (*active, *slots) if place.material is not None)
    return next((made for made in held if find(obj, made.get(images.RUN_KEY, "")) is not None), None)


def current(obj: bpy.types.Object | None) -> PATINA_PG_variant | None:
    """The variant that is on the object."""
    made = shown_material(obj)
    return find(obj, made[images.RUN_KEY]) if made is not None else None


def record(obj: bpy.types.Object, place, folder: Path, made: bpy.types.Material, shared: bool = False) -> None:
    """Keep a run as a variant, or give the one that is kept its material anew. `place`: placing.Place; `shared`: with
    other objects, in one atlas."""
    variant = find(obj, place.run)
    if variant is None:
        variant = obj.patina.variants.add()
        variant.name = place.request.prompt.strip()[:60]
        variant.run, variant.parent = place.run, place.parent
    variant.folder, variant.uv_layer = _told(folder), place.uv_layer
    variant.request = json.dumps(dataclasses.asdict(place.request))
    variant.prompt, variant.seed = place.request.prompt, place.request.seed
    variant.uvs_file = place.own_uvs.name if place.own_uvs is not None else ""
    variant.shared = variant.shared or shared
    variant.slot = -1 if place.slot is None else place.slot
    variant.made_in = bpy.path.basename(bpy.data.filepath)
    variant.material = made


def forget(obj: bpy.types.Object, run: str) -> None:
    """Take the line off the object; its files stay."""
    for index in reversed(range(len(obj.patina.variants))):
        if obj.patina.variants[index].run == run:
            obj.patina.variants.remove(index)


def folder_of(variant: PATINA_PG_variant) -> Path:
    """Where its maps are now."""
    made = variant.material
    if made is not None and made.node_tree is not None:
        for node in made.node_tree.nodes:
            image = getattr(node, "image", None)
            if image is not None and image.get(images.RUN_KEY) == variant.run and image.filepath:
                return Path(bpy.path.abspath(image.filepath, library=image.library)).parent
    return Path(bpy.path.abspath(variant.folder))


def request_of(variant: PATINA_PG_variant) -> protocol.TextureRequest:
    """The request it was made by. Raises ProtocolError."""
    try:
        stored = json.loads(variant.request)
    except ValueError as error:
        raise protocol.ProtocolError(f"The settings of {variant.name} cannot be read.") from error
    return protocol.TextureRequest(**protocol.upgrade_request(stored))


def has_maps(variant: PATINA_PG_variant) -> bool:
    folder = folder_of(variant)
    return all(images.map_file(folder, name).is_file() for name in protocol.MAP_NAMES)


def size_of(variant: PATINA_PG_variant) -> int:
    """Bytes of its files on the disk, those of its job included."""
    folders = (folder_of(variant), preferences.data_folder() / "jobs" / variant.run)
    total = 0
    for folder in folders:
        for file in folder.rglob("*"):
            with contextlib.suppress(OSError):
                total += file.stat().st_size if file.is_file() else 0
    return total


def _told(folder: Path) -> str:
    """The folder relative to the .blend where that is possible."""
    if bpy.data.filepath:
        with contextlib.suppress(ValueError):
            return bpy.path.relpath(str(folder))
    return str(folder)


def register() -> None:
    bpy.utils.register_class(PATINA_PG_variant)


def unregister() -> None:
    bpy.utils.unregister_class(PATINA_PG_variant)
