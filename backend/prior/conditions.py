# SPDX-License-Identifier: Apache-2.0
"""What the built-in prior is told about a picture beside the noise: geometry, light, and what the words expect.

Channels of the condition (B, 21, H, W), zero outside the object:
  0-8    the same view in three fixed materials (rough white, satin metal, polished metal), display values, -1..1
  9-11   the same view as the words expect it (field.py), display values, -1..1
  12-16  the expected base colour, metallic and roughness, -1..1
  17-19  the expected normal in the object's frame
  20     coverage
The network works on 4x4 pixel blocks as channels (pixel_unshuffle).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ggx_tables import GgxTables
from ..lighting import Lights
from ..rasterize import GBuffer
from ..shading import SurfaceMaps, linear_to_srgb, shade, srgb_to_linear
from .instances import Surface

RENDERS = 12  # display values: three fixed materials and the expected one
VALUES = 5  # base colour, metallic, roughness
CONDITION_CHANNELS = RENDERS + VALUES + 3 + 1
BLOCK = 4  # pixels to a side that become channels
BACKGROUND = 0.5  # display value behind the object

# base colour (linear), metallic, roughness
FIXED_MATERIALS = ((0.8, 0.0, 1.0), (0.8, 1.0, 0.45), (0.8, 1.0, 0.12))


def fixed_renders(gbuffer: GBuffer, lights: Lights, tables: GgxTables, occlusion: Tensor | None = None) -> Tensor:
    """Display values (N, 9) of the points in the three fixed materials."""
    count = gbuffer.position.shape[0]
    renders = []
    for base, metallic, roughness in FIXED_MATERIALS:
        maps = SurfaceMaps(
            torch.full((count, 3), base), torch.full((count,), metallic), torch.full((count,), roughness)
        )
        maps = SurfaceMaps(*(t.to(gbuffer.position) for t in (maps.base_color, maps.metallic, maps.roughness)))
        renders.append(linear_to_srgb(shade(gbuffer, maps, lights, tables, occlusion)))
    return torch.cat(renders, dim=1)


def render(
    gbuffer: GBuffer, surface: Surface, lights: Lights, tables: GgxTables, occlusion: Tensor | None = None
) -> Tensor:
    """Display values (N, 3) of the points with the surface's own values; its normals stand in a normal map, as the
    optimiser's do, or, where the mesh has no tangents, take the place of the smooth ones."""
    mapped = tangent_normal(gbuffer, surface.normal) if bool(gbuffer.tangent[:, :3].any()) else None
    if mapped is None:
        gbuffer = GBuffer(**{**gbuffer.__dict__, "normal": surface.normal})
    maps = SurfaceMaps(srgb_to_linear(surface.base_color), surface.metallic, surface.roughness, mapped)
    return linear_to_srgb(shade(gbuffer, maps, lights, tables, occlusion))


def tangent_normal(gbuffer: GBuffer, normal: Tensor) -> Tensor:
    """The normal map's vectors (N, 3) that show as unit `normal` (N, 3): the reverse of shading.shading_normal."""
    tangent, sign = gbuffer.tangent[:, :3], gbuffer.tangent[:, 3:]
    bitangent = sign * torch.linalg.cross(gbuffer.normal, tangent)
    frame = torch.stack((tangent, bitangent, gbuffer.normal), dim=2)
    # Three cross products are the inverse but for a factor that normalising takes away; its sign stays.
    columns = (torch.linalg.cross(frame[..., (i + 1) % 3], frame[..., (i + 2) % 3]) for i in range(3))
    flat = torch.stack([(column * normal).sum(1) for column in columns], dim=1)
    facing = torch.sign((frame[..., 0] * torch.linalg.cross(frame[..., 1], frame[..., 2])).sum(1, keepdim=True))
    return torch.nn.functional.normalize(flat * facing, dim=1)


def values_of(surface: Surface) -> Tensor:
    """(N, 5) base colour, metallic and roughness, 0..1."""
    return torch.cat((surface.base_color, surface.metallic[:, None], surface.roughness[:, None]), dim=1)


def surface_of(values: Tensor, normal: Tensor) -> Surface:
    """The reverse, clipped to what a material can have."""
    values = values.clamp(0, 1)
    return Surface(values[:, :3], values[:, 3], values[:, 4].clamp(min=0.05), normal)


def spread(gbuffer: GBuffer, values: Tensor) -> Tensor:
    """Point values (N, C) as pictures (B, C, H, W), zero where nothing is seen."""
    count, height, width = gbuffer.coverage.shape
    flat = torch.zeros(count * height * width, values.shape[1], dtype=values.dtype, device=values.device)
    return flat.index_copy(0, gbuffer.pixel, values).view(count, height, width, -1).permute(0, 3, 1, 2)


def assemble(told: Tensor, coverage: Tensor) -> Tensor:
    """Condition (B, 21, H, W) from `told` (B, 20, H, W) = display renders 12 and values 5 in 0..1, unit normals 3,
    and coverage (B, 1, H, W)."""
    inside = (coverage > 0).to(told.dtype)
    shown, normal = told.split((RENDERS + VALUES, 3), dim=1)
    return torch.cat(((shown * 2 - 1) * inside, normal * inside, coverage), dim=1)
