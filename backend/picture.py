# SPDX-License-Identifier: Apache-2.0
"""A small picture of the textured object itself, from one fixed camera under one fixed light."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addon.protocol import MAP_NAMES, write_beside

from . import cameras, ggx_tables, lighting
from .rasterize import GBuffer, Triangles, gather, look
from .shading import SurfaceMaps, linear_to_srgb, shade, srgb_to_linear

SIZE = 192
AZIMUTH_DEG, ELEVATION_DEG, HALF_FOV_DEG = 30.0, 18.0, 14.0
WORLD, SUN = 0.55, 1.4
SUN_TOWARDS = (0.75, -0.35, 0.56)  # over the shoulder of the camera


@dataclass(frozen=True)
class Still:
    """What the camera sees, for any maps."""

    points: GBuffer


def still(triangles: Triangles) -> Still:
    half_fov = math.radians(HALF_FOV_DEG)
    camera = cameras.look_at(
        torch.tensor([AZIMUTH_DEG]),
        torch.tensor([ELEVATION_DEG]),
        torch.tensor([cameras.FULL_VIEW_MARGIN / math.sin(half_fov)]),
        torch.tensor([math.tan(half_fov)]),
    )
    return Still(gather(triangles, camera, [look(triangles, camera, 0, SIZE)]))


def write(path: Path, seen: Still, images: dict[str, Tensor]) -> None:
    """Write an RGBA PNG of the four maps (S, S, C) in 0..1, row 0 at the top. Raises OSError."""
    content = io.BytesIO()
    Image.fromarray(render(seen, images)).save(content, format="PNG", compress_level=1)
    write_beside(path, content.getvalue())


def render(seen: Still, images: dict[str, Tensor]) -> np.ndarray:
    """(SIZE, SIZE, 4) uint8 of the four maps."""
    points = seen.points
    stored = torch.cat([images[name] for name in MAP_NAMES], dim=-1).to(points.uv.device)
    # Pooled to about the picture's own resolution: without, a fine pattern is noise.
    while stored.shape[0] > 512:
        stored = torch.nn.functional.avg_pool2d(stored.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    grid = torch.stack((points.uv[:, 0] * 2 - 1, 1 - points.uv[:, 1] * 2), dim=1).view(1, -1, 1, 2)
    values = torch.nn.functional.grid_sample(
        stored.permute(2, 0, 1)[None], grid, padding_mode="border", align_corners=False
    )[0, :, :, 0].T
    normal = torch.nn.functional.normalize(values[:, 5:8] * 2 - 1, dim=1)
    maps = SurfaceMaps(srgb_to_linear(values[:, :3]), values[:, 3], values[:, 4], normal)
    sun = torch.nn.functional.normalize(torch.tensor([[SUN_TOWARDS]]), dim=-1)
    lights = lighting.with_suns(lighting.uniform(1, WORLD), sun, torch.full((1, 1, 3), SUN)).to(points.uv.device)
    with torch.no_grad():
        shown = linear_to_srgb(shade(points, maps, lights, ggx_tables.load().to(points.uv.device))).clamp(0, 1)
    size = points.coverage.shape[-1]
    flat = torch.zeros(size * size, 3, device=shown.device).index_copy(0, points.pixel, shown)
    picture = torch.cat((flat.view(size, size, 3), points.coverage[0][..., None]), dim=-1)
    return (picture * 255 + 0.5).to(torch.uint8).cpu().numpy()
