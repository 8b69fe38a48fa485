# SPDX-License-Identifier: GPL-3.0-or-later
"""What a normal map does beside turning the normal, against brute force."""

import numpy as np
import pytest
import torch

from backend import bump, ggx_tables

WIDE = torch.float64
TABLES = ggx_tables.load().to("cpu", WIDE)


def unit(count, seed):
    drawn = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=WIDE)
    return torch.nn.functional.normalize(drawn, dim=1)


def test_a_bent_normal_mirrors_just_above_the_surface():
    surface, to_camera, normal = unit(20000, 1), unit(20000, 2), unit(20000, 3)
    front = ((surface * to_camera).sum(1) > 0.05) & ((normal * surface).sum(1) > 0.1)
    surface, to_camera, normal = surface[front], to_camera[front], normal[front]
    bent = bump.specular_normal(normal, surface, to_camera)

    def height(n):
        return ((2 * (n * to_camera).sum(1, keepdim=True) * n - to_camera) * surface).sum(1)

    lowest = torch.minimum(0.9 * (surface * to_camera).sum(1), torch.tensor(0.01, dtype=WIDE))
    fine = height(normal) >= lowest
    assert 0.2 < fine.double().mean() < 0.9
    assert torch.equal(bent[fine], normal[fine])
    assert (height(bent) - lowest)[~fine].abs().max() < 2e-3
    assert (bent.norm(dim=1) - 1).abs().max() < 1e-9
    # It stays in the plane of the surface's and the mapped normal.
    assert (torch.linalg.cross(surface, normal) * bent)[~fine].sum(1).abs().max() < 1e-9


def test_its_gradient_is_finite_even_where_nothing_is_bent():
    normal = unit(500, 4).requires_grad_(True)
    surface = normal.detach().clone()
    bump.specular_normal(normal, surface, unit(500, 5)).sum().backward()
    assert torch.isfinite(normal.grad).all()


@pytest.mark.parametrize("tilt_deg", [0.0, 9.0, 30.0, 60.0])
def test_diffuse_moments_are_the_integral(tilt_deg):
    """Directions by their cosine about the mapped normal; what is below the smooth one's horizon is lost."""
    rng = np.random.default_rng(0)
    count = 400_000
    n = np.sqrt(rng.random(count))
    around = 2 * np.pi * rng.random(count)
    t = np.sqrt(1 - n**2) * np.cos(around)
    cos_tilt = np.cos(np.radians(tilt_deg))
    above = n * cos_tilt + t * np.sqrt(1 - cos_tilt**2)
    alpha2 = min(1.0, 0.125 * (1 / cos_tilt**2 - 1))
    with np.errstate(all="ignore"):
        kept = np.where(above > 0, 2 / (1 + np.sqrt(1 + alpha2 * (1 / above**2 - 1))), 0)
    wanted = [(kept * s).mean() for s in (np.ones_like(n), n, t, n * n, t * t, n * t)]
    found = bump.diffuse_moments(TABLES.bump_diffuse, torch.tensor([cos_tilt], dtype=WIDE))[0].numpy()
    assert np.abs(found - wanted).max() < 0.003


@pytest.mark.parametrize("roughness, cosine", [(0.35, 0.5), (0.5, 0.4), (0.5, 0.9), (0.9, 0.6)])
@pytest.mark.parametrize("lean_deg", [(10.0, 0.0), (0.0, 15.0), (-12.0, 9.0), (12.0, -12.0)])
def test_the_lost_share_is_what_sampling_finds(roughness, cosine, lean_deg):
    cell = (torch.arange(100, dtype=WIDE) + 0.5) / 100
    light, weights = ggx_tables._lobe(
        roughness, cosine, *(a.reshape(-1) for a in torch.meshgrid(cell, cell, indexing="ij"))
    )
    lean = np.tan(np.radians(lean_deg))
    surface = torch.nn.functional.normalize(torch.tensor([lean[0], lean[1], 1.0], dtype=WIDE), dim=0)
    wanted = (weights * (light @ surface <= 0)).sum(1) / weights.sum(1)
    one = torch.ones(1, dtype=WIDE)
    found = bump.lost_share(TABLES.bump_lost, roughness * one, cosine * one, surface[None])[0]
    print(lean_deg, wanted.tolist(), found.tolist())
    # Between the tabled azimuths it is an interpolation. (A lobe much narrower than these, near the horizon, falls
    # between its entries: there up to 0.17 was seen.)
    assert (found - wanted).abs().max() < 0.04


def test_light_fades_towards_the_smooth_terminator():
    cosines = torch.tensor(np.cos(np.radians([[0, 45, 70, 85, 89.9]])), dtype=WIDE)
    shares = bump.softened(cosines, torch.tensor([[0.8]], dtype=WIDE))[0].tolist()
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 and shares[-1] < 0.05
    assert (bump.softened(cosines, torch.tensor([[1.0]], dtype=WIDE)) == 1).all()


def test_a_flat_normal_map_changes_nothing():
    import test_shading as points_of

    count = 200
    gbuffer, maps = points_of.points(count), points_of.plain(count, 0.6, 0.4, 0.5)
    gbuffer = points_of.replace(gbuffer, to_camera=torch.where(torch.arange(count)[:, None] < 5, gbuffer.normal,
                                                               gbuffer.to_camera))  # fmt: skip
    flat = points_of.replace(maps, normal=torch.tensor([[0.0, 0.0, 1.0]], dtype=WIDE).expand(count, 3))
    for kind in ("suns", "world"):
        lights = points_of.lights_of(kind, count)
        one, other = (points_of.shade(gbuffer, m, lights, TABLES) for m in (maps, flat))
        assert torch.allclose(one, other, rtol=2e-3, atol=1e-6), (one / other - 1).abs().max()
