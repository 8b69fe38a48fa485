# SPDX-License-Identifier: Apache-2.0
"""Lights: second-order environments, suns, what panoramas add, and how lights are drawn at random.

An environment is L(w) = A + B.w + w'Cw per colour channel, linear radiance for unit directions w.
All units are Blender's: a sun of irradiance E lights a facing white Lambert surface to E / pi.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SUNS_AT_MOST = 4


@dataclass(frozen=True)
class Residuals:
    """What panoramas hold beyond the second order: blurred (3 rgb, E (L + 1), H, 2 H + 2), equirectangular and one
    column on at either side, E times: under lobes as of L growing values of `roughness` (L,) seen face on, with
    `spread` (L,) = sqrt(1 - mean cosine), then under a cosine (panoramas.py makes them).

    Picture b is lit by panorama which[b], turned by turn[b] (3, 3) and brightened by gain[b].
    """

    blurred: Tensor
    roughness: Tensor
    spread: Tensor
    which: Tensor
    turn: Tensor
    gain: Tensor

    def __getitem__(self, index: Tensor | slice) -> Residuals:
        kept = self.blurred, self.roughness, self.spread
        return Residuals(*kept, self.which[index], self.turn[index], self.gain[index])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Residuals:
        return Residuals(
            self.blurred.to(device, dtype), self.roughness.to(device, dtype), self.spread.to(device, dtype),
            self.which.to(device),
            self.turn.to(device, dtype), self.gain.to(device, dtype),
        )  # fmt: skip

    def glossy(self, view: Tensor, mean: Tensor, normal: Tensor, to_camera: Tensor, roughness: Tensor) -> Tensor:
        """Light (N, 3 rgb) under the GGX lobe, scaled to a total of 1, with mean vector `mean` (N, 3).

        Seen aslant, a lobe is narrower across than along: three narrower ones in a row stand for it. Rough ones, which
        the horizon cuts, are as wide as their mean vector is short. The numbers were fitted to sampled lobes under
        three panoramas.
        """
        rough = ((roughness - 0.5) / 0.4).clamp(0, 1)
        length = mean.norm(dim=1).clamp(1e-4, 1 - 1e-6)
        cosine = (normal * to_camera).sum(1).clamp(1e-3, 1 - 1e-6)
        mirrored = 2 * cosine[:, None] * normal - to_camera
        mean_share = (0.66 + 0.34 * rough)[:, None]
        middle = torch.nn.functional.normalize(mean_share * mean / length[:, None] + (1 - mean_share) * mirrored, dim=1)
        along = torch.linalg.cross(torch.nn.functional.normalize(torch.linalg.cross(normal, to_camera), dim=1), middle)
        narrow = _place(self.roughness, roughness * cosine**0.25)
        level = narrow + rough * (_place(self.spread, torch.sqrt(1 - length)) - narrow)
        angle = (1.6 * (1 - rough) * roughness**2 * torch.sqrt(1 - cosine**2))[:, None]
        aside = torch.cos(angle) * middle, torch.sin(angle) * along
        both = self.read(view, aside[0] + aside[1], level) + self.read(view, aside[0] - aside[1], level)
        return both / 6 + self.read(view, middle, level) * (2 / 3)

    def diffuse(self, view: Tensor, normal: Tensor) -> Tensor:
        """Irradiance / pi (N, 3 rgb) of a surface with unit `normal` (N, 3)."""
        return self.read(view, normal, torch.full_like(normal[:, 0], len(self.spread)))

    def read(self, view: Tensor, direction: Tensor, level: Tensor) -> Tensor:
        """What picture `view` (N,) holds in `direction` (N, 3), unit, on the blurred level (N,), 0 the sharpest."""
        levels = len(self.spread) + 1
        x, y, z = torch.einsum("nji,nj->in", self.turn[view], direction)
        # The poles have no azimuth, and a slope without bound there.
        steep = (x.abs() + y.abs()) < 1e-6
        azimuth = torch.atan2(torch.where(steep, 0.0, y), torch.where(steep, 1.0, x))
        polar = torch.acos(z.clamp(-1 + 1e-6, 1 - 1e-6))
        depths, width = self.blurred.shape[1], self.blurred.shape[3]
        u = ((0.5 - azimuth / (2 * torch.pi)) * (width - 2) + 1) / width
        depth = (self.which[view] * levels + level + 0.5) / depths
        grid = torch.stack((u, polar / torch.pi, depth), dim=1).view(1, -1, 1, 1, 3) * 2 - 1
        found = torch.nn.functional.grid_sample(self.blurred[None], grid, padding_mode="border", align_corners=False)
        return found[0, :, :, 0, 0].T * self.gain[view][:, None]


@dataclass(frozen=True)
class Lights:
    """Lights of B pictures, linear Rec.709.

    constant (B, 3 rgb); linear (B, 3 xyz, 3 rgb); quadratic (B, 3, 3, 3 rgb), symmetric in xyz;
    sun_direction (B, S, 3) unit, towards the sun; sun_irradiance (B, S, 3 rgb), 0 where unused;
    residuals: what panoramas add to the second order, or None; sun_spread (B, S) how far a sun's light comes from
    beside its direction, root mean square in radians, or None for points.
    """

    constant: Tensor
    linear: Tensor
    quadratic: Tensor
    sun_direction: Tensor
    sun_irradiance: Tensor
    residuals: Residuals | None = None
    sun_spread: Tensor | None = None

    def __getitem__(self, index: Tensor | slice) -> Lights:
        return Lights(
            self.constant[index],
            self.linear[index],
            self.quadratic[index],
            self.sun_direction[index],
            self.sun_irradiance[index],
            None if self.residuals is None else self.residuals[index],
            None if self.sun_spread is None else self.sun_spread[index],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Lights:
        return Lights(
            *(
                t.to(device, dtype)
                for t in (self.constant, self.linear, self.quadratic, self.sun_direction, self.sun_irradiance)
            ),
            None if self.residuals is None else self.residuals.to(device, dtype),
            None if self.sun_spread is None else self.sun_spread.to(device, dtype),
        )


def uniform(count: int, radiance: float = 1.0, suns: int = 1) -> Lights:
    """`count` times the same grey world without sun."""
    return Lights(
        torch.full((count, 3), radiance),
        torch.zeros(count, 3, 3),
        torch.zeros(count, 3, 3, 3),
        torch.tensor([0.0, 0.0, 1.0]).expand(count, suns, 3).clone(),
        torch.zeros(count, suns, 3),
    )


def with_suns(lights: Lights, direction: Tensor, irradiance: Tensor) -> Lights:
    """The same world with suns towards `direction` (B, S, 3), unit, of `irradiance` (B, S, 3) added: points."""
    spread = lights.sun_spread
    return replace(
        lights,
        sun_direction=torch.cat((lights.sun_direction, direction), dim=1),
        sun_irradiance=torch.cat((lights.sun_irradiance, irradiance), dim=1),
        sun_spread=None if spread is None else torch.cat((spread, torch.zeros_like(irradiance[..., 0])), dim=1),
    )


def radiance(lights: Lights, view: Tensor, direction: Tensor) -> Tensor:
    """World radiance (N, 3 rgb) of picture `view` (N,) in `direction` (N, 3), unit; suns are not drawn, and
    panoramas are a little blurred."""
    smooth = (
        lights.constant[view]
        + torch.einsum("ni,nic->nc", direction, lights.linear[view])
        + torch.einsum("ni,nj,nijc->nc", direction, direction, lights.quadratic[view])
    )
    if lights.residuals is None:
        return smooth
    return (smooth + lights.residuals.read(view, direction, torch.zeros_like(direction[:, 0]))).clamp(min=0)


def _place(values: Tensor, wanted: Tensor) -> Tensor:
    """Where `wanted` (N,) lies among the rising `values` (L,): 0 to L - 1, in between linearly."""
    low = torch.searchsorted(values, wanted.detach().contiguous(), right=True).clamp(1, len(values) - 1) - 1
    return low + ((wanted - values[low]) / (values[low + 1] - values[low])).clamp(0, 1)


def sample(count: int, generator: torch.Generator) -> Lights:
    """Random lights, exposed so that a white wall lies near display white.

    The environment is a sum of lobes c ((1 + k d.w) / 2)^2 with 0 <= k <= 1, so that radiance is
    never negative; one to four suns share what the environment leaves.
    """
    lobes = 4
    towards = _on_sphere((count, lobes), generator)
    sharpness = torch.rand(count, lobes, generator=generator) ** 0.5
    strength = torch.rand(count, lobes, generator=generator) ** 3 * 4 + 0.02
    tint = _tint((count, lobes), 0.35, generator) * strength[..., None]
    kd = sharpness[..., None] * towards
    constant = tint.sum(1) / 4
    linear = torch.einsum("bli,blc->bic", kd, tint) / 2
    quadratic = torch.einsum("bli,blj,blc->bijc", kd, kd, tint) / 4
    # Share of the light that comes from suns, and of that among them.
    share = 0.15 + 0.6 * torch.rand(count, generator=generator)
    number = torch.randint(1, SUNS_AT_MOST + 1, (count,), generator=generator)
    power = torch.rand(count, SUNS_AT_MOST, generator=generator) + 0.1
    power = power * (torch.arange(SUNS_AT_MOST)[None] < number[:, None])
    power = power / power.sum(1, keepdim=True)
    exposure = torch.exp(0.25 * torch.randn(count, generator=generator))
    # Mean radiance over the sphere: A + tr(C) / 3.
    mean = (constant + torch.einsum("biic->bc", quadratic) / 3).mean(1)
    world_scale = exposure * (1 - share) * 0.7 / mean
    sun_irradiance = (
        _tint((count, SUNS_AT_MOST), 0.15, generator) * (power * (exposure * share * 2.6)[:, None])[..., None]
    )
    return Lights(
        constant * world_scale[:, None],
        linear * world_scale[:, None, None],
        quadratic * world_scale[:, None, None, None],
        _on_sphere((count, SUNS_AT_MOST), generator),
        sun_irradiance,
    )


def _on_sphere(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, 3, generator=generator), dim=-1)


def _tint(shape: tuple[int, ...], spread: float, generator: torch.Generator) -> Tensor:
    """Light colours (*shape, 3) of mean 1, warm to cold with a little green."""
    warm = spread * torch.randn(*shape, 1, generator=generator).clamp(-2, 2)
    green = 0.3 * spread * torch.randn(*shape, 1, generator=generator).clamp(-2, 2)
    colour = torch.exp(torch.cat((warm, green, -warm), dim=-1))
    return colour / colour.mean(-1, keepdim=True)
