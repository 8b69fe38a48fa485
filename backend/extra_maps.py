# SPDX-License-Identifier: Apache-2.0
"""The maps that are made beside the material's four, where a request asks for them: ambient occlusion and height."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from addon.protocol import FILE_FORMATS, TextureRequest

from . import ambient_occlusion, height
from .maps import write_maps
from .mesh import Mesh
from .rasterize import Triangles


def write(
    folder: Path, request: TextureRequest, mesh: Mesh, triangles: Triangles, normal: Tensor, covered: Tensor
) -> tuple[dict[str, Path], dict[str, float]]:
    """Write the extra maps of `request` beside the others; their paths, and what the report tells of them.

    `normal` (S, S, 3) as written, `covered` (S, S). Raises OSError.
    """
    paths, told = {}, {}
    whole = torch.ones_like(covered, dtype=torch.bool)
    if "ambient_occlusion" in request.extra_maps:
        shares = {"ambient_occlusion": ambient_occlusion.of_texels(triangles, len(covered))}
        paths |= write_maps(folder, shares, whole, file_format=request.file_format, bits=request.bit_depth)
    if "height" in request.extra_maps:
        heights, told["height_range"] = height.from_normals(mesh, normal, covered)
        # Eight bits are steps that a displaced surface shows.
        finest = FILE_FORMATS[request.file_format][-1]
        paths |= write_maps(folder, {"height": heights}, whole, file_format=request.file_format, bits=finest)
    return paths, told
