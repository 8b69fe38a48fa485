# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that begins from a variant's maps: what it takes along into its job folder. Knows no backend."""

from __future__ import annotations

import dataclasses

import bpy

from . import images, limits, png, protocol, variants


def prepare(
    obj: bpy.types.Object,
    origin: variants.PATINA_PG_variant | None,
    folder: protocol.JobFolder,
    uv_layer: str,
    request: protocol.TextureRequest,
) -> protocol.TextureRequest:
    """Put the start maps and the mask into the job folder; the request that fits them.

    With limits the maps keep their size, or what lies outside could not stay as it is, texel by texel.
    Raises VariantProblem, LimitsProblem, OSError, RuntimeError.
    """
    if origin is None:
        raise variants.VariantProblem("The variant to begin from is gone. Choose another one.")
    if origin.shared:
        raise variants.VariantProblem(
            f"{origin.name} is one atlas of several objects, and Refine changes one object. Select the objects and "
            "press One Shared Atlas, or press Generate for this one alone."
        )
    if origin.uv_layer != uv_layer:
        raise variants.VariantProblem(
            f"{origin.name} was made for the UV layer {origin.uv_layer}, but {uv_layer} is used now. "
            f"Make {origin.uv_layer} the layer for rendering, or press Generate."
        )
    if not variants.has_maps(origin):
        raise variants.VariantProblem(f"The maps of {origin.name} are gone from {variants.folder_of(origin)}.")
    known = images.find(origin.run)
    for name in protocol.MAP_NAMES:
        image, target = known.get(name), folder.start / f"{name}.png"
        if image is not None and (image.is_dirty or image.packed_file is not None):  # painted on: what it shows counts
            protocol.write_beside(target, png.encode(png.quantised(images.texels(image), 8)))
        else:
            images.replace_file(images.map_file(variants.folder_of(origin), name), target)
    painted = limits.painted_mask(obj)
    if painted is not None:
        protocol.write_beside(folder.mask, png.encode(painted))
    if limits.are_set(obj.patina.limits):
        # A cancelled run has left smaller maps than it was asked for; repainted ones may have any size.
        size = png.width(folder.start / f"{protocol.MAP_NAMES[0]}.png")
        size = size if size in protocol.TEXTURE_SIZES else variants.request_of(origin).texture_size
        request = dataclasses.replace(request, texture_size=size)
    return request
