# SPDX-License-Identifier: GPL-3.0-or-later
"""A variant's maps in another UV layer of its object, kept as a variant of its own; the layers stay as they are."""

from __future__ import annotations

import contextlib

import bpy
import numpy as np

from . import export, generate, images, mesh_io, placing, png, protocol, rebake, uv_check, variants
from .placing import Place

_COLLAPSED_LIMIT = 0.01
_MOST_SQUARES = 8.0  # of the texture that a layer may cover in all, on top of each other


class BakeProblem(ValueError):
    """The maps cannot be put into that layer; the text is a sentence for a person."""


def layers(obj: bpy.types.Object, variant: variants.PATINA_PG_variant) -> list[str]:
    """The UV layers of the object's own that the variant's maps could be put into, the one that renders first."""
    own = [layer for layer in obj.data.uv_layers if layer.name != variant.uv_layer]
    return [layer.name for layer in sorted(own, key=lambda layer: not layer.active_render)]


def bake(context: bpy.types.Context, obj: bpy.types.Object, variant: variants.PATINA_PG_variant, layer: str) -> str:
    """Put the variant's maps into `layer` and show the new variant; what should be told of it, or "".

    Raises BakeProblem or one of generate.PROBLEMS; the object is as before then.
    """
    reason = mesh_io.refusal(obj)
    if reason:
        raise BakeProblem(f"{reason}.")
    if layer not in layers(obj, variant):
        raise BakeProblem(f"{obj.name} has no other UV layer {layer}. Add one, or choose another.")
    slot = None if variant.slot < 0 else variant.slot
    with mesh_io.evaluated(context, obj) as shown:
        for name in (layer, variant.uv_layer):
            if name not in shown.uv_layers:
                raise BakeProblem(
                    f"The modifiers of {obj.name} leave nothing of the UV layer {name}. Apply them first."
                )
        raw = mesh_io.raw_uvs(shown, layer, slot)
        _require_room(layer, raw)
        old, new = (mesh_io.read(obj, shown, name, slot) for name in (variant.uv_layer, layer))
    chosen = new["face_mask"]
    old, new = ({name: values[chosen] for name, values in arrays.items()} for arrays in (old, new))
    maps = export.maps_of(variant.run, variants.folder_of(variant))
    made, shared = rebake.rebaked(maps, old, new, maps["base_color"].shape[0])
    tiles = uv_check.udim_tiles(raw[0])
    if tiles and shared > uv_check.OVERLAP_LIMIT:
        raise BakeProblem(
            f"UV layer {layer} lies on the UDIM tiles {', '.join(map(str, tiles))}, and Patina fills one square. "
            "Choose a layer with all islands in one square."
        )
    _keep(obj, variant, layer, slot, made)
    if shared > uv_check.OVERLAP_LIMIT:
        return f"{shared:.0%} of {layer} lies over itself; such places show the first of their faces."
    return ""


def _require_room(layer: str, raw: tuple[np.ndarray, np.ndarray]) -> None:
    uvs, areas = raw
    if not np.isfinite(uvs).all():
        raise BakeProblem(f"UV layer {layer} holds values that are no numbers. Unwrap it, or choose another.")
    edges = (uvs[:, 1:] - uvs[:, :1]).astype(np.float64)
    double = np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0])
    if double.sum() / 2 > _MOST_SQUARES:
        raise BakeProblem(f"UV layer {layer} repeats the texture all over the surface. Choose one that does not.")
    if areas[double < 1e-12].sum() > _COLLAPSED_LIMIT * areas.sum():
        raise BakeProblem(f"UV layer {layer} gives part of the surface no room. Unwrap it, or choose another.")


def _keep(obj: bpy.types.Object, variant: variants.PATINA_PG_variant, layer: str, slot: int | None, made: dict) -> None:
    origin, folder = variants.folder_of(variant), images.new_folder(generate.output_root(), obj.name)
    name, request, parent = variant.name, variants.request_of(variant), variant.run
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_files, folder)
        for map_name, values in made.items():
            bits = 16 if map_name == "height" else 8
            protocol.write_beside(images.map_file(folder, map_name), png.encode(png.quantised(values, bits)))
        for file in (variants.PICTURE, variants.REPORT):
            if (origin / file).is_file():
                images.replace_file(origin / file, folder / file)
        place = Place(
            run=generate.new_run(),
            object_name=obj.name,
            object_uid=obj.session_uid,
            blend_file=bpy.data.filepath,
            uv_layer=layer,
            own_uvs=None,
            slot=slot,
            request=request,
            parent=parent,
            before=parent,
        )
        placing.put(place, obj, folder)
        undo.pop_all()
    variants.find(obj, place.run).name = f"{name}, {layer}"


def _remove_files(folder) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
