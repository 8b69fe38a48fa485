# SPDX-License-Identifier: Apache-2.0
"""What the built-in prior is told about a picture beside its words: geometry, light, scale.

Channels of the condition (B, 25, H, W), zero outside the object:
  0-8    the same view in three fixed materials (rough white, satin metal, polished metal), display values, -1..1
  9-11   smooth normal in the object's frame
  12     coverage
  13-24  sine and cosine of the pattern coordinates at two frequencies, so that regular patterns agree between views
The network works on 4x4 pixel blocks as channels (pixel_unshuffle).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ggx_tables import GgxTables
from ..lighting import Lights
from ..rasterize import GBuffer
from ..shading import SurfaceMaps, linear_to_srgb, shade

CONDITION_CHANNELS = 25
COVERAGE_CHANNEL = 12
BLOCK = 4  # pixels to a side that become channels
FREQUENCIES = (1.0, 4.0)  # periods 2 and 0.5 of the pattern coordinates
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


def assemble(light: Tensor, normal: Tensor, coverage: Tensor, q: Tensor) -> Tensor:
    """Condition (B, 25, H, W) from display renders (B, 9, H, W) in 0..1, normals (B, 3, H, W),
    coverage (B, 1, H, W) and pattern coordinates (B, 3, H, W)."""
    phase = torch.cat([q * (f * torch.pi) for f in FREQUENCIES], dim=1)
    waves = torch.cat((torch.sin(phase), torch.cos(phase)), dim=1)
    inside = (coverage > 0).to(light.dtype)
    return torch.cat(((light * 2 - 1) * inside, normal * inside, coverage, waves * inside), dim=1)


def scale_of(extent: Tensor, density: Tensor | float, size: int) -> Tensor:
    """(B,) log2 of the pixel size in pattern units, shifted to about -1..1."""
    return torch.log2(2 * extent * density / size) + 5.5
