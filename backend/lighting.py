# SPDX-License-Identifier: Apache-2.0
"""Lights: second-order environments and suns, and how they are drawn at random.

An environment is L(w) = A + B.w + w'Cw per colour channel, linear radiance for unit directions w.
All units are Blender's: a sun of irradiance E lights a facing white Lambert surface to E / pi.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SUNS_AT_MOST = 4


@dataclass(frozen=True)
class Lights:
    """Lights of B pictures, linear Rec.709.

    constant (B, 3 rgb); linear (B, 3 xyz, 3 rgb); quadratic (B, 3, 3, 3 rgb), symmetric in xyz;
    sun_direction (B, S, 3) unit, towards the sun; sun_irradiance (B, S, 3 rgb), 0 where unused.
    """

    constant: Tensor
    linear: Tensor
    quadratic: Tensor
    sun_direction: Tensor
    sun_irradiance: Tensor

    def __getitem__(self, index: Tensor | slice) -> Lights:
        return Lights(
            self.constant[index],
            self.linear[index],
            self.quadratic[index],
            self.sun_direction[index],
            self.sun_irradiance[index],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Lights:
        return Lights(
            *(
                t.to(device, dtype)
                for t in (self.constant, self.linear, self.quadratic, self.sun_direction, self.sun_irradiance)
            )
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


def radiance(lights: Lights, view: Tensor, direction: Tensor) -> Tensor:
    """World radiance (N, 3 rgb) of picture `view` (N,) in `direction` (N, 3); suns are not drawn."""
    return (
        lights.constant[view]
        + torch.einsum("ni,nic->nc", direction, lights.linear[view])
        + torch.einsum("ni,nj,nijc->nc", direction, direction, lights.quadratic[view])
    )


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
