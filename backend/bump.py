# SPDX-License-Identifier: Apache-2.0
"""What a normal map does beside turning the normal: the terminator, the bent mirror normal, the lost horizon.

Light from below the true surface never arrives, whatever the mapped normal says. Cycles ("Bump Map Correction", on by
default) softens the diffuse terminator, bends the specular normal until the mirror direction is above the surface,
and drops what the lobe sends below it. Formulas: Cycles 4.5 (closure/bsdf.h, bsdf_util.h; Conty Estevez et al. 2019).
The tables over tilt are integrated here. Knows points and directions; no maps and no lights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .lookup import read_table

TILT_STEPS = 33  # of the diffuse table: 1 - cos(tilt) from 0 to TILT_LAST
TILT_LAST = 0.75
LOST_SIZE = (16, 16, 17)  # roughness, view cosine, lean of the surface
LEAN_LAST_DEG = 48.0  # of the lost tables


def specular_normal(normal: Tensor, surface: Tensor, to_camera: Tensor) -> Tensor:
    """`normal` (N, 3), bent where it mirrors the camera below the plane of `surface` (N, 3); all unit."""
    cos_surface = (to_camera * surface).sum(1, keepdim=True).clamp(min=0)
    lowest = torch.minimum(0.9 * cos_surface, torch.full_like(cos_surface, 0.01))
    mirrored = 2 * (normal * to_camera).sum(1, keepdim=True) * normal - to_camera
    fine = (mirrored * surface).sum(1, keepdim=True) >= lowest
    sideways = normal - (normal * surface).sum(1, keepdim=True) * surface
    # A vector without length has no gradient: points that are fine anyway get any other.
    sideways = torch.nn.functional.normalize(torch.where(fine, to_camera, sideways), dim=1)
    along = (to_camera * sideways).sum(1, keepdim=True)
    # Away from 0, where the camera grazes the surface: what is divided by it there must keep a finite gradient.
    a = (along**2 + cos_surface**2).clamp(min=1e-4)
    b = 2 * (a + cos_surface * lowest)
    c = (lowest + cos_surface) ** 2
    root = (b**2 - 4 * a * c).clamp(min=1e-8).sqrt()
    up2 = (0.25 * (b + torch.where(along < 0, root, -root)) / a).clamp(1e-6, 1 - 1e-6)
    bent = (1 - up2).sqrt() * sideways + up2.sqrt() * surface
    return torch.where(fine, normal, bent)


def softened(cos_light: Tensor, cos_tilt: Tensor) -> Tensor:
    """Share of diffuse light that stays: smooth towards the smooth normal's terminator. Cosines of the smooth normal
    with the light (N, S) and with the mapped normal (N, 1)."""
    return _shadowing(cos_light.clamp(1e-6, 1), cos_tilt.clamp(1e-3, 1))


def _shadowing(cos_light: Tensor, cos_tilt: Tensor) -> Tensor:
    """Smith's G1 of GGX with alpha^2 = tan^2(tilt) / 8, at most 1."""
    alpha2 = (0.125 * (1 / cos_tilt**2 - 1)).clamp(0, 1)
    return 2 / (1 + torch.sqrt(1 + alpha2 * (1 / cos_light**2 - 1)))


def diffuse_moments(table: Tensor, cos_tilt: Tensor) -> Tensor:
    """(N, 6) int kept {1, n, t, nn, tt, nt} of a mapped Lambert surface; t points towards the smooth normal."""
    last = table.shape[1] - 1
    at = ((1 - cos_tilt) / TILT_LAST).clamp(0, 1) * last
    low = at.detach().floor().clamp(max=last - 1).long()
    share = (at - low)[:, None]
    rows = table.T
    return rows[low] * (1 - share) + rows[low + 1] * share


def lost_share(table: Tensor, roughness: Tensor, cos_view: Tensor, surface: Tensor) -> Tensor:
    """(N, 3) share of the lobe below the surface, for the three Fresnel weights of ggx_tables.

    `surface` (N, 3): the true surface's normal, unit, by its parts towards the camera, across, and along the specular
    normal. The table has leans towards, away and across; in between the share goes as A + B cos + C cos 2.
    """
    aside = (surface[:, 0] ** 2 + surface[:, 1] ** 2).clamp(min=1e-12).sqrt()
    lean = torch.atan2(aside, surface[:, 2].clamp(min=0.1)) / math.radians(LEAN_LAST_DEG)
    cosine = (surface[:, 0] / aside)[:, None]
    place = torch.stack((lean, cos_view, roughness), dim=1).view(1, -1, 1, 1, 3)
    towards, away, across = read_table(table, place).split(3, dim=1)
    share = cosine**2 * (towards + away) / 2 + cosine * (towards - away) / 2 + (1 - cosine**2) * across
    return share.clamp(0, 1)


# --- making the tables ----------------------------------------------------------------------------


def integrate_diffuse() -> Tensor:
    """(6, TILT_STEPS) for diffuse_moments: midpoint rule over the hemisphere of the mapped normal, float64."""
    rings, spokes = 600, 1200
    height = ((torch.arange(rings, dtype=torch.float64) + 0.5) / rings).sqrt()  # cosine-weighted
    around = (torch.arange(spokes, dtype=torch.float64) + 0.5) / spokes * 2 * torch.pi
    n = height[:, None].expand(rings, spokes).reshape(-1)
    t = ((1 - height**2).sqrt()[:, None] * torch.cos(around)).reshape(-1)
    shapes = torch.stack((torch.ones_like(n), n, t, n * n, t * t, n * t))
    columns = []
    for step in range(TILT_STEPS):
        cos_tilt = torch.tensor(1 - TILT_LAST * step / (TILT_STEPS - 1), dtype=torch.float64)
        above = cos_tilt * n + (1 - cos_tilt**2).sqrt() * t
        kept = torch.where(above > 0, _shadowing(above.clamp(1e-6, 1), cos_tilt), 0.0)
        columns.append((shapes * kept).mean(1))
    return torch.stack(columns, dim=1).float()


def integrate_lost(lobe_samples) -> Tensor:
    """(9, *LOST_SIZE) for lost_share: leans towards the camera, away from it and across, by Fresnel weight.

    `lobe_samples(roughness, cos_view)` gives directions (M, 3) in the frame normal, towards the camera, across as
    (t, b, n) columns, and weights (3, M).
    """
    roughnesses, cosines, leans = LOST_SIZE
    table = torch.zeros(9, *LOST_SIZE, dtype=torch.float64)
    lean = torch.linspace(0, math.radians(LEAN_LAST_DEG), leans, dtype=torch.float64)
    for i in range(roughnesses):
        for j in range(cosines):
            light, weights = lobe_samples(max(i / (roughnesses - 1), 1e-2), max(j / (cosines - 1), 1e-3))
            total = weights.sum(1).clamp(min=1e-12)
            for k in range(leans):
                for first, aside in ((0, light[:, 0]), (3, -light[:, 0]), (6, light[:, 1])):
                    below = aside * torch.sin(lean[k]) + light[:, 2] * torch.cos(lean[k]) <= 0
                    table[first : first + 3, i, j, k] = (weights * below).sum(1) / total
    return table.float()
