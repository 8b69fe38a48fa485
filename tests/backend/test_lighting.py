# SPDX-License-Identifier: GPL-3.0-or-later
"""Lights: never negative, exposed alike, rotated as drawn."""

import numpy as np
import torch

from backend import lighting


def directions(count, seed=0):
    found = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=1)


def test_a_world_is_never_dark_below_zero_and_symmetric():
    lights = lighting.sample(200, torch.Generator().manual_seed(1))
    towards = directions(500)
    for picture in range(200):
        assert lighting.radiance(lights, torch.full((500,), picture), towards).min() > -1e-5
    assert torch.allclose(lights.quadratic, lights.quadratic.permute(0, 2, 1, 3))
    assert torch.allclose(lights.sun_direction.norm(dim=-1), torch.ones(200, lighting.SUNS_AT_MOST), atol=1e-5)
    assert lights.sun_irradiance.min() >= 0


def test_random_lights_expose_a_white_wall_near_white_and_come_from_all_sides():
    lights = lighting.sample(2000, torch.Generator().manual_seed(2))
    towards = directions(256)
    every = torch.arange(2000).repeat_interleave(256)
    mean = lighting.radiance(lights, every, towards.repeat(2000, 1)).view(2000, 256, 3).mean((1, 2))
    # A wall that turns all ways: a quarter of a sun's irradiance, by pi.
    wall = mean + lights.sun_irradiance.sum(1).mean(1) / 4 / np.pi
    print(f"wall {wall.median():.2f}, {wall.quantile(0.05):.2f} to {wall.quantile(0.95):.2f}")
    assert 0.2 < wall.median() < 1.0 and wall.quantile(0.95) / wall.quantile(0.05) < 6
    used = (lights.sun_irradiance.sum(-1) > 0).sum(1)
    assert set(used.tolist()) == set(range(1, lighting.SUNS_AT_MOST + 1))
    assert lights.sun_direction[:, 0].mean(0).abs().max() < 0.05
    assert lights.linear.mean((0, 2)).abs().max() < 0.05
    # Coloured, but grey on average.
    colour = lights.constant / lights.constant.mean(1, keepdim=True)
    assert colour.std(0).min() > 0.02 and (colour.mean(0) - 1).abs().max() < 0.05


def test_radiance_is_the_polynomial():
    lights = lighting.sample(3, torch.Generator().manual_seed(4))
    view, towards = torch.tensor([2, 0, 1, 1]), directions(4, 5)
    found = lighting.radiance(lights, view, towards).numpy()
    for i, (picture, d) in enumerate(zip(view.tolist(), towards.numpy(), strict=True)):
        for colour in range(3):
            wanted = (
                lights.constant[picture, colour].item()
                + d @ lights.linear[picture, :, colour].numpy()
                + d @ lights.quadratic[picture, :, :, colour].numpy() @ d
            )
            assert abs(found[i, colour] - wanted) < 1e-5


def test_uniform_light_is_the_same_everywhere():
    lights = lighting.uniform(2, 0.7)
    assert torch.allclose(lighting.radiance(lights, torch.tensor([0, 1, 1]), directions(3)), torch.tensor(0.7))
    assert not lights.sun_irradiance.any()


def test_the_same_seed_draws_the_same_lights_and_indexing_picks_them():
    one, two, other = (lighting.sample(4, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    for name in one.__dict__:
        if name in ("residuals", "sun_spread"):
            assert getattr(one, name) is None
            continue
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(getattr(one[torch.tensor([2, 0])], name)[1], getattr(one, name)[0])
        assert getattr(one.to("cpu", torch.float64), name).dtype == torch.float64
