# SPDX-License-Identifier: Apache-2.0
"""Cameras, lights and shading as DreamFusion drew them (Poole et al. 2022; figures from threestudio's copy of it).

Its scene is scaled so that the object's diameter is its unit of distance. Its point lights are suns here: the renderer
has no others. Knows no model and no optimiser.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from . import lighting, material
from .cameras import Cameras, look_at
from .ggx_tables import GgxTables
from .lighting import Lights
from .occlusion import Openness
from .rasterize import GBuffer
from .shading import linear_to_srgb, shade

ELEVATION_DEG = (-10.0, 90.0)
DISTANCE = (2.0, 3.0)  # published: 1 to 1.5
FOCAL = (0.7, 1.35)  # of the picture's width
SUN, AMBIENT = 0.9, 0.1  # what a facing white surface sends back of each

LIT, TEXTURELESS, BASE_COLOR = range(3)
SHARES = (0.375, 0.375, 0.25)


def draw_cameras(count: int, generator: torch.Generator) -> Cameras:
    """Azimuth stratified, elevation, distance and focal length even over their ranges."""

    def even(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    turn = torch.randperm(count, generator=generator)
    azimuth_deg = (turn + torch.rand(count, generator=generator)) / count * 360
    # Straight from above, "up" would jump: a camera there is as good half a degree aside.
    elevation_deg = even(*ELEVATION_DEG).clamp(max=89.5)
    return look_at(azimuth_deg, elevation_deg, even(*DISTANCE), 0.5 / even(*FOCAL))


def draw_lights(azimuth_deg: Tensor, elevation_deg: Tensor, generator: torch.Generator) -> Lights:
    """A white sun for each camera, on average behind it, over a grey world. Angles (B,) of the cameras."""
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    level = torch.cos(elevation)
    camera = torch.stack((level * torch.sin(azimuth), -level * torch.cos(azimuth), torch.sin(elevation)), dim=1)
    aside = torch.randn(camera.shape, generator=generator).to(camera)
    distance = sum(DISTANCE) / 4  # in published units
    direction = torch.nn.functional.normalize(distance * camera + aside, dim=1)
    world = lighting.uniform(len(camera), AMBIENT, suns=0).to(camera.device)
    return lighting.with_suns(world, direction[:, None], camera.new_full((len(camera), 1, 3), SUN * math.pi))


def draw_shading(count: int, generator: torch.Generator) -> Tensor:
    """(B,) LIT, TEXTURELESS or BASE_COLOR of each picture."""
    return torch.multinomial(torch.tensor(SHARES), count, replacement=True, generator=generator)


def shaded(
    gbuffer: GBuffer, values: Tensor, lights: Lights, tables: GgxTables, shading: Tensor | None,
    openness: Openness | None = None,
) -> Tensor:  # fmt: skip
    """Display values (N, 3) in 0..1 of stored ones (N, 7), each picture by its `shading` (B,); None: all lit.

    Without texture, the surface is white and matt, and only its relief shows; by base colour alone, no light falls.
    """
    surface = material.surface_maps(values)
    if shading is None:
        return _displayed(shade(gbuffer, surface, lights, tables, openness=openness))
    mode = shading.to(gbuffer.view.device)[gbuffer.view]
    bare = mode == TEXTURELESS
    surface = replace(
        surface,
        base_color=surface.base_color.masked_fill(bare[:, None], 1.0),
        metallic=surface.metallic.masked_fill(bare, 0.0),
        roughness=surface.roughness.masked_fill(bare, 1.0),
    )
    lit = _displayed(shade(gbuffer, surface, lights, tables, openness=openness))
    return torch.where((mode == BASE_COLOR)[:, None], values[:, material.BASE_COLOR], lit)


def _displayed(linear: Tensor) -> Tensor:
    """Display values of linear radiance; too bright ones can be asked to be darker again."""
    return linear_to_srgb(material.limited(linear, 0.0, 1.0))
