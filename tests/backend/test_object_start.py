# SPDX-License-Identifier: GPL-3.0-or-later
"""The uniform start finds what a model paints: metal or not, colour and roughness."""

import pytest
import torch

from backend import ggx_tables, material
from backend.diffusion.interface import Prediction
from backend.object_start import is_mixed, place_metals, uniform_start
from tests.backend import shapes_for_tests
from tests.backend.oracle_for_tests import Oracle, new_pool, result_of


class Unguided(Oracle):
    """Says the same with and without the prompt, so that guidance changes nothing."""

    def predict(self, noisy, timestep, scene, guided=True):
        wanted = super().predict(noisy, timestep, scene).conditional
        return Prediction(wanted, wanted)


@pytest.mark.parametrize(
    ("base_color", "metallic", "roughness"),
    [((0.95, 0.78, 0.34), 1.0, 0.25), ((0.75, 0.12, 0.1), 0.0, 0.35), ((0.2, 0.4, 0.7), 0.0, 0.8)],
    ids=["gold", "red plastic", "blue cloth"],
)
def test_the_start_is_the_painted_material(base_color, metallic, roughness):
    stored = torch.tensor([*base_color, metallic, roughness, 0.5, 0.5])
    pool = new_pool(shapes_for_tests.mesh_of(shapes_for_tests.sphere()), 48, seed=3)
    model = Unguided(lambda gbuffer: stored.expand(len(gbuffer.view), 7), render_size=48)
    generator = torch.Generator().manual_seed(0)
    raw = result_of(uniform_start(model, pool, ggx_tables.load(), 1.0, torch.zeros(3), generator))
    found = material.stored_values(raw)
    assert abs(float(found[material.METALLIC]) - metallic) < 0.1
    assert abs(float(found[material.ROUGHNESS]) - roughness) < 0.08
    assert torch.allclose(found[material.BASE_COLOR], torch.tensor(base_color), atol=0.05)


def test_a_mixture_is_left_to_its_texels():
    """Half rusty, half bare: no uniform material is right, so metallic begins near the middle."""
    rust, bare = torch.tensor([0.5, 0.25, 0.1, 0.0, 0.9, 0.5, 0.5]), torch.tensor([0.5, 0.49, 0.48, 1.0, 0.4, 0.5, 0.5])

    def half(gbuffer):
        return torch.where((torch.sin(9 * gbuffer.position[:, :1]) > 0), rust, bare)

    pool = new_pool(shapes_for_tests.mesh_of(shapes_for_tests.sphere()), 48, seed=3)
    generator = torch.Generator().manual_seed(0)
    model = Unguided(half, render_size=48)
    raw = result_of(uniform_start(model, pool, ggx_tables.load(), 1.0, torch.zeros(3), generator))
    assert 0.25 < float(material.stored_values(raw)[material.METALLIC]) < 0.75


class Knows(Oracle):
    """Thinks in materials: `place` tells base colour, metallic and roughness (N, 5) of points."""

    def __init__(self, place):
        super().__init__(lambda gbuffer: None, render_size=48)
        self.place = place

    def believed_material(self, scene):
        return self.place(scene.gbuffer)

    def predict(self, *_):
        raise AssertionError("no picture is needed")


@pytest.mark.parametrize("metallic", [0.0, 1.0, 0.3])
def test_a_model_that_thinks_in_materials_is_asked_for_them(metallic):
    model = Knows(lambda gbuffer: torch.tensor([0.2, 0.5, 0.8, metallic, 0.4]).expand(len(gbuffer.view), 5))
    pool = new_pool(shapes_for_tests.mesh_of(shapes_for_tests.sphere()), 48, seed=3)
    generator = torch.Generator().manual_seed(0)
    raw = result_of(uniform_start(model, pool, ggx_tables.load(), 1.0, torch.zeros(3), generator))
    found = material.stored_values(raw)
    assert torch.allclose(found[:5], torch.tensor([0.2, 0.5, 0.8, metallic, 0.4]), atol=0.04)
    assert is_mixed(raw) == (metallic == 0.3)


def test_metals_begin_where_the_model_means_them():
    def half(gbuffer):
        metallic = (gbuffer.position[:, :1] > 0).float()
        return torch.cat((torch.full((len(gbuffer.view), 3), 0.5), metallic, metallic * 0 + 0.5), dim=1)

    pool = new_pool(shapes_for_tests.mesh_of(shapes_for_tests.sphere()), 48, seed=3)
    maps = material.new_maps(64)
    result_of(place_metals(maps, Knows(half), pool, 1.0, torch.zeros(3), torch.Generator().manual_seed(0)))
    gbuffer = pool.gbuffer([0, 1, 2, 3])
    with torch.no_grad():
        found = material.look_up(maps, gbuffer)
    right = gbuffer.position[:, 0] > 0.1
    left = gbuffer.position[:, 0] < -0.1
    assert found[right, material.METALLIC].mean() > 0.8 and found[left, material.METALLIC].mean() < 0.2
    other = [channel for channel in range(material.CHANNELS) if channel != material.METALLIC]
    for volume, untouched in zip(maps.volumes, material.new_maps(64).volumes, strict=True):
        assert torch.equal(volume[:, other], untouched[:, other])
