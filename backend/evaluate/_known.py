# SPDX-License-Identifier: Apache-2.0
"""Materials whose maps are known, and a model that knows them: its clean picture is always their render.

A known material is stored values (7, S, S) in 0..1 as `material.stored_values` orders them, row 0 at v = 0.
Reliefs come from heights, so that they are normal maps that exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.interface import Prediction, Scene
from ..ggx_tables import GgxTables
from ..lighting import Lights
from ..material import CHANNELS
from ..rasterize import GBuffer
from ..shading import SurfaceMaps, linear_to_srgb, shade, srgb_to_linear

TAU = 2 * math.pi
# A mip level sharper than one texel a pixel by half a level, as samplers with anisotropy are.
SHARPER = 0.5

Paint = Callable[[Tensor, Tensor], Tensor]


def plastic(u: Tensor, v: Tensor) -> Tensor:
    """One red plastic everywhere: what varies in its recovered colour is light."""
    return _uniform(u, (0.72, 0.16, 0.12, 0.0, 0.35))


def smooth(u: Tensor, v: Tensor) -> Tensor:
    """A dielectric whose colour and roughness change slowly."""
    red = 0.5 + 0.3 * torch.cos(TAU * u) * torch.cos(TAU * v)
    green = 0.45 + 0.25 * torch.sin(TAU * (u + v))
    blue = 0.4 + 0.2 * torch.sin(TAU * (2 * u - v))
    rough = 0.4 + 0.15 * torch.sin(TAU * (u + 2 * v))
    even = torch.full_like(u, 0.5)
    return torch.stack((red, green, blue, 0 * even, rough, even, even), dim=-1)


def inlay(u: Tensor, v: Tensor) -> Tensor:
    """Gold in blue lacquer: colour, metallic and roughness change at one edge."""
    share = torch.sigmoid(14 * torch.sin(TAU * 6 * u) * torch.sin(TAU * 5 * v))[..., None]
    return share * _uniform(u, (1.0, 0.84, 0.45, 1.0, 0.3)) + (1 - share) * _uniform(u, (0.12, 0.25, 0.6, 0.0, 0.2))


def fine(u: Tensor, v: Tensor) -> Tensor:
    """Checks of eight texels (of 256) in two glossy colours, with roughness in step."""
    share = torch.sigmoid(4 * torch.sin(TAU * 16 * u) * torch.sin(TAU * 16 * v))[..., None]
    return share * _uniform(u, (0.85, 0.6, 0.2, 0.0, 0.25)) + (1 - share) * _uniform(u, (0.2, 0.4, 0.3, 0.0, 0.45))


def relief(u: Tensor, v: Tensor) -> Tensor:
    """One glossy colour under bumps tilted up to about 30 degrees."""
    phase = TAU * 9
    stored = _uniform(u, (0.55, 0.3, 0.5, 0.0, 0.3))
    x, y = torch.cos(phase * u) * torch.cos(phase * v), -torch.sin(phase * u) * torch.sin(phase * v)
    return _tilted(stored, 0.42 * x, 0.42 * y)


def rusty(u: Tensor, v: Tensor) -> Tensor:
    """Rust that eats into steel: noise decides, the rust is rough and uneven."""
    noise = torch.zeros_like(u)
    for k, (a, b, strength) in enumerate(((3, 2, 1.0), (5, -4, 0.8), (-8, 7, 0.6), (13, 11, 0.35), (-17, 19, 0.25))):
        noise = noise + strength * torch.sin(TAU * (a * u + b * v) + 1.7 * k)
    share = torch.sigmoid(4 * noise)[..., None]
    stored = share * _uniform(u, (0.5, 0.25, 0.12, 0.0, 0.7)) + (1 - share) * _uniform(u, (0.66, 0.65, 0.63, 1.0, 0.3))
    phase = TAU * 12
    return _tilted(stored, 0.2 * share[..., 0] * torch.cos(phase * u), 0.2 * share[..., 0] * torch.cos(phase * v))


def hammered(u: Tensor, v: Tensor) -> Tensor:
    """Brushed copper with dents: a metal with roughness streaks and a relief."""
    stored = _uniform(u, (0.93, 0.62, 0.5, 1.0, 0.3))
    stored = stored + 0.12 * torch.sin(TAU * 20 * v)[..., None] * (torch.arange(CHANNELS) == 4)
    phase = TAU * 7
    x, y = torch.sin(phase * u) * torch.cos(phase * v), torch.cos(phase * u) * torch.sin(phase * v)
    return _tilted(stored, 0.3 * x, 0.3 * y)


MATERIALS: dict[str, Paint] = {
    paint.__name__: paint for paint in (plastic, smooth, inlay, fine, relief, rusty, hammered)
}


def image(paint: Paint, size: int) -> Tensor:
    """Stored values (7, S, S) at texel centres; row 0 is v = 0."""
    centre = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(centre, centre, indexing="ij")
    return paint(u, v).permute(2, 0, 1).contiguous()


def look_up(stored: Tensor, gbuffer: GBuffer) -> Tensor:
    """Stored values (N, 7) at the points, by the ordinary trilinear lookup in (7, S, S)."""
    wanted = torch.log2((gbuffer.footprint * stored.shape[-1]).clamp(min=1e-6)) - SHARPER
    last = int(math.log2(stored.shape[-1]))
    wanted = wanted.clamp(0, last)
    grid = (gbuffer.uv * 2 - 1).view(1, -1, 1, 2)
    total = torch.zeros(len(wanted), CHANNELS)
    level, number = stored[None], 0
    while number <= last and number - 1 < float(wanted.max()):
        share = (1 - (wanted - number).abs()).clamp(min=0)
        values = torch.nn.functional.grid_sample(level, grid, padding_mode="border", align_corners=False)
        total += share[:, None] * values[0, :, :, 0].T
        level, number = torch.nn.functional.avg_pool2d(level, 2) if number < last else level, number + 1
    return total


def render(stored: Tensor, gbuffer: GBuffer, lights: Lights, tables: GgxTables) -> Tensor:
    """Display values (N, 3) in 0..1 of point values (N, 7)."""
    xy = stored[:, 5:] * 2 - 1
    normal = torch.cat((xy, (1 - (xy**2).sum(1, keepdim=True)).clamp(min=0).sqrt()), dim=1)
    maps = SurfaceMaps(srgb_to_linear(stored[:, :3]), stored[:, 3], stored[:, 4], normal)
    return linear_to_srgb(shade(gbuffer, maps, lights, tables))


def flat_points(count: int, views: int, steepest_deg: float, generator: torch.Generator) -> GBuffer:
    """`count` points of a plane facing +Z, seen evenly from up to `steepest_deg`; lights go round by turns."""
    up = torch.tensor([0.0, 0.0, 1.0]).expand(count, 3)
    height = 1 - torch.rand(count, generator=generator) * (1 - math.cos(math.radians(steepest_deg)))
    around = 2 * math.pi * torch.rand(count, generator=generator)
    flat = (1 - height**2).sqrt()
    return GBuffer(
        view=torch.arange(count) % views,
        pixel=torch.arange(count),
        position=torch.zeros(count, 3),
        geometric_normal=up,
        normal=up,
        tangent=torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(count, 4),
        uv=torch.zeros(count, 2),
        footprint=torch.zeros(count),
        to_camera=torch.stack((flat * around.cos(), flat * around.sin(), height), dim=1),
        back=torch.zeros(count, dtype=torch.bool),
        coverage=torch.zeros(1, 1, 1),
    )


@dataclass
class Oracle:
    """A Denoiser (diffusion/interface.py) that knows the maps `stored` (7, S, S)."""

    stored: Tensor
    render_size: int
    tables: GgxTables
    name: str = "oracle"
    guidance_scale: float = 1.0
    background: float | None = 0.5

    @property
    def alphas_cumprod(self) -> Tensor:
        return torch.cos(torch.linspace(0.02, 1.55, 1000)) ** 2

    def set_prompt(self, prompt: str, negative_prompt: str) -> tuple[str, ...]:
        return ()

    @torch.no_grad()
    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene, guided: bool = True) -> Prediction:
        points = scene.remembered("known", lambda gbuffer: look_up(self.stored, gbuffer))
        rendered = render(points, scene.gbuffer, scene.lights, self.tables) * 2 - 1
        behind = torch.full((*scene.gbuffer.coverage.shape, 3), self.background * 2 - 1)
        x0_hat = scene.gbuffer.picture(rendered, behind).permute(0, 3, 1, 2)
        return Prediction(x0_hat, x0_hat)


def _uniform(u: Tensor, values: tuple[float, ...]) -> Tensor:
    return torch.tensor([*values, 0.5, 0.5]).expand(*u.shape, CHANNELS).clone()


def _tilted(stored: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`stored` with the normal's x and y, -1..1."""
    stored[..., 5], stored[..., 6] = 0.5 + 0.5 * x, 0.5 + 0.5 * y
    return stored
