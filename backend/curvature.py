# SPDX-License-Identifier: Apache-2.0
"""How much a picture tells of each map value, and the step towards a wanted picture that follows from it.

Gauss-Newton: where J is the derivative of a pixel's display colour with respect to the seven stored values, the
mean of J'J over views and lights says how strongly each value shows, and which ones show alike (a darker metal and
a lighter dielectric). Dividing by it moves weakly visible values as far as they must, instead of as far as Adam
allows, and the steps vanish where the picture fits. The mean depends on the material alone, so it is a small table,
computed from our own shading: it follows every change of the shading by itself.

It knows points, materials and lights; it knows no maps and no models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import lighting, material
from .ggx_tables import GgxTables
from .rasterize import GBuffer
from .shading import linear_to_srgb, shade

SIDES = (6, 5, 8)  # entries over base colour, metallic, roughness
OBSERVATIONS = 512  # views and lights an entry is averaged over
STEEPEST_DEG = 75.0  # of the views, from the surface's normal
DAMPING = 1e-3  # added to the curvature: what hardly shows moves slowly
TRUST = 0.2  # how much a pixel's own curvature bounds its weight in the mean; below 3 / 7 there is a fixed point
CAUTION = 1.0  # and in its own step: at 1 it never goes farther than its residual
FIXED_POINT_STEPS = 8
FARTHEST = 0.5  # in stored values, of one pixel's wish


def table(tables: GgxTables, device: torch.device | str = "cpu") -> Tensor:
    """(1, 7, B, M, R): mean products of a display channel's (-1..1) derivatives by b b, b m, b r, m m, m r, r r and n n
    (its base colour, metallic, roughness and one component of the normal)."""
    axes = [torch.linspace(0, 1, side) for side in SIDES]
    base, metallic, roughness = torch.meshgrid(*axes, indexing="ij")
    half = torch.full_like(base, 0.5)
    stored = torch.stack((base, base, base, metallic, roughness, half, half), dim=-1).view(-1, 1, material.CHANNELS)
    stored = stored.repeat(1, OBSERVATIONS, 1).view(-1, material.CHANNELS).requires_grad_(True)
    generator = torch.Generator().manual_seed(1)
    lights = lighting.sample(OBSERVATIONS, generator)
    gbuffer = flat_points(len(stored), OBSERVATIONS, STEEPEST_DEG, generator)
    rendered = linear_to_srgb(shade(gbuffer, material.surface_maps(stored), lights, tables.to("cpu"))) * 2 - 1
    residual = torch.nn.functional.normalize(torch.randn(len(stored), 3, generator=generator), dim=1)
    slope = torch.autograd.grad(rendered, stored, residual)[0].view(-1, OBSERVATIONS, material.CHANNELS)
    information = _bounded_mean(slope)
    base, m, r = range(3), material.METALLIC, material.ROUGHNESS
    rows = (
        sum(information[:, c, c] for c in base) / 3, sum(information[:, c, m] for c in base) / 3,
        sum(information[:, c, r] for c in base) / 3, information[:, m, m] / 3, information[:, m, r] / 3,
        information[:, r, r] / 3, (information[:, 5, 5] + information[:, 6, 6]) / 6,
    )  # fmt: skip
    return torch.stack(rows).view(1, 7, *SIDES).contiguous().to(device)


def _bounded_mean(slope: Tensor) -> Tensor:
    """Mean of J'J (M, 7, 7) over slopes (M, O, 7) along random residuals, each bounded as `newton_step` bounds it.

    A few pixels in highlights would outweigh all others: the plain mean has hardly a limit. This one is the fixed
    point A = mean of 3 j j' / (1 + trust j' A^-1 j), at which the expected step is the same share in every direction.
    """
    count = slope.shape[-1]
    mean = torch.eye(count).expand(len(slope), -1, -1)
    for _ in range(FIXED_POINT_STEPS):
        inverse = torch.linalg.inv(mean + DAMPING * torch.eye(count))
        own = torch.einsum("mok,mkl,mol->mo", slope, inverse, slope)
        weighted = slope * (3 / (1 + TRUST * own))[..., None]
        mean = weighted.transpose(1, 2) @ slope / slope.shape[1]
    return mean


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
        coverage=torch.zeros(1, 1, 1),
    )


def newton_step(curvature: Tensor, stored: Tensor, slope: Tensor, residual: Tensor) -> Tensor:
    """(N, 7) to subtract from stored values (N, 7), so that display colours lose `residual` (N, 3).

    slope (N, 7) is J' residual. The bound in highlights: with j the pixel's own derivative along the residual,
    (A + trust j j')^-1 j = A^-1 j / (1 + trust j' A^-1 j), by Sherman and Morrison.
    """
    bb, bm, br, mm, mr, rr, nn = _look_up(curvature, stored)
    bb, mm, rr, nn = bb + DAMPING, mm.sum(1) + DAMPING, rr.sum(1) + DAMPING, nn.sum(1) + DAMPING
    mr = mr.sum(1)
    base, metallic, roughness, normal = slope[:, :3], slope[:, 3], slope[:, 4], slope[:, 5:]
    # The three colours meet only through metallic and roughness: what is left without them is 2 x 2.
    left_mm = mm - (bm * bm / bb).sum(1)
    left_mr = mr - (bm * br / bb).sum(1)
    left_rr = rr - (br * br / bb).sum(1)
    left_m = metallic - (bm * base / bb).sum(1)
    left_r = roughness - (br * base / bb).sum(1)
    determinant = (left_mm * left_rr - left_mr**2).clamp(min=1e-9)
    to_m = (left_rr * left_m - left_mr * left_r) / determinant
    to_r = (left_mm * left_r - left_mr * left_m) / determinant
    to_base = (base - bm * to_m[:, None] - br * to_r[:, None]) / bb
    step = torch.cat((to_base, to_m[:, None], to_r[:, None], normal / nn[:, None]), dim=1)
    own = (slope * step).sum(1) / (residual**2).sum(1).clamp(min=1e-12)
    return (step / (1 + CAUTION * own.clamp(min=0))[:, None]).clamp(-FARTHEST, FARTHEST)


def _look_up(curvature: Tensor, stored: Tensor) -> tuple[Tensor, ...]:
    """Seven times (N, 3): the table's rows at each point's three colours, metallic and roughness."""
    metallic, roughness = stored[:, 3:4].expand(-1, 3), stored[:, 4:5].expand(-1, 3)
    place = torch.stack((roughness, metallic, stored[:, :3]), dim=-1) * 2 - 1  # the table's last axis first
    found = torch.nn.functional.grid_sample(
        curvature, place.view(1, -1, 3, 1, 3).to(curvature.dtype), padding_mode="border", align_corners=True
    )
    return found[0, :, :, :, 0].unbind(0)
