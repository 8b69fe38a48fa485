# SPDX-License-Identifier: GPL-3.0-or-later
"""Score distillation as published: DreamFusion's cameras, lights and three kinds of shading."""

import math
from dataclasses import dataclass, field, replace

import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch

from backend import cameras, dreamfusion, ggx_tables, lighting, optimisation, views
from backend.diffusion.interface import Prediction
from backend.distillation import Options, published
from backend.rasterize import Triangles

TABLES = ggx_tables.load()
LIT, TEXTURELESS, BASE = dreamfusion.LIT, dreamfusion.TEXTURELESS, dreamfusion.BASE_COLOR


@pytest.fixture(scope="module")
def mesh():
    return shapes.mesh_of(shapes.torus(16, 8))


def test_cameras_keep_to_the_published_ranges_and_use_all_of_them():
    drawn = dreamfusion.draw_cameras(400, torch.Generator().manual_seed(0))
    focal, distance = 0.5 / drawn.tan_half_fov, drawn.position.norm(dim=1) / 2
    for values, low, high in ((drawn.elevation_deg, -10, 90), (distance, 1, 1.5), (focal, 0.7, 1.35)):
        assert low - 1e-4 <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high + 1e-4
        assert abs(float(values.mean()) - (low + high) / 2) < 0.05 * (high - low)
    sector = torch.bincount((drawn.azimuth_deg / 0.9).long(), minlength=400)
    assert (sector == 1).all(), "azimuth is stratified"
    assert torch.isfinite(drawn.rotation).all()


def test_lights_lie_about_the_camera_and_light_a_white_wall_to_white():
    azimuth, elevation = torch.full((2000,), 90.0), torch.full((2000,), 30.0)
    lights = dreamfusion.draw_lights(azimuth, elevation, torch.Generator().manual_seed(0))
    camera = cameras.direction(torch.tensor(90.0), torch.tensor(30.0))
    cosine = lights.sun_direction[:, 0] @ camera
    assert 0.55 < cosine.mean() < 0.8 and cosine.min() < -0.3, "about the camera, and not with it"
    assert torch.allclose(lights.sun_irradiance, torch.tensor(0.9 * math.pi)) and (lights.constant == 0.1).all()


def test_the_kinds_of_shading_come_in_their_shares():
    drawn = dreamfusion.draw_shading(4000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor(dreamfusion.SHARES), atol=0.03)


def test_what_each_kind_of_shading_shows(mesh):
    pool = oracle.new_pool(mesh, 32, 0)
    gbuffer = pool.gbuffer([0, 1, 2])
    lights = lighting.sample(3, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    values = (0.2 + 0.6 * torch.rand(len(gbuffer.view), 7, generator=generator)).requires_grad_(True)
    found = dreamfusion.shaded(gbuffer, values, lights, TABLES, torch.tensor([LIT, TEXTURELESS, BASE]))
    lit = dreamfusion.shaded(gbuffer, values, lights, TABLES, None)
    first, second, third = (gbuffer.view == view for view in range(3))
    assert torch.equal(found[first], lit[first])
    white = torch.cat((torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]).expand(len(values), 5), values[:, 5:]), dim=1)
    bare = dreamfusion.shaded(gbuffer, white, lights, TABLES, None)
    assert torch.allclose(found[second], bare[second]) and not torch.allclose(found[second], lit[second], atol=0.05)
    assert torch.equal(found[third], values[third, :3])
    slope = torch.autograd.grad(found.sum(), values)[0].abs().sum(0, keepdim=False)
    assert (slope > 0).all()
    for mask, moved in ((second, [5, 6]), (third, [0, 1, 2])):
        found = dreamfusion.shaded(gbuffer, values, lights, TABLES, torch.tensor([LIT, TEXTURELESS, BASE]))
        slope = torch.autograd.grad(found[mask].sum(), values)[0].abs().sum(0)
        assert [channel for channel in range(7) if slope[channel] > 0] == moved


@dataclass
class Onlooker:
    """Sees hardly any noise, and remembers what it is shown."""

    sees_geometry: bool = False
    background: float | None = 0.5
    name: str = "onlooker"
    shown: list = field(default_factory=list)
    alphas_cumprod: torch.Tensor = field(default_factory=lambda: torch.full((1000,), 0.999999))

    def predict(self, noisy, timestep, scene, guided=True):
        self.shown.append((noisy, scene))
        return Prediction(noisy, noisy)


def shown(mesh, model, options, steps=6):
    still = oracle.plan_for(steps=steps, render_size=24, finest=32, views=4, rate=0.0)
    plan = replace(still, guidance="sds", options=options)
    state = optimisation.new_state(plan, torch.device("cpu"))
    mask = torch.from_numpy(mesh.face_mask)
    pool = views.new_pool(Triangles.of(mesh), mask, 24, torch.Generator().manual_seed(0), staging=options.staging)
    for _ in range(steps):
        optimisation.step(state, plan, model, pool, TABLES)
    return model.shown


def kinds(pictures):
    """How many pictures show the grey start itself, white, or something lit."""
    counts = {"base": 0, "other": 0}
    for noisy, scene in pictures:
        for picture, cover in zip(noisy, scene.gbuffer.coverage, strict=True):
            inside = picture[:, cover == 1]
            counts["base" if inside.abs().max() < 0.02 else "other"] += 1  # the start is a middle grey
    return counts


def test_sds_is_staged_as_published_and_other_methods_are_not(mesh):
    assert published("sds").staging == "dreamfusion" and published("clamped").staging == "own"
    assert published("sds").highest == (0.98, 0.98) and published("sds").lowest == (0.02, 0.02)
    model = Onlooker()
    pictures = shown(mesh, model, published("sds"))
    found = kinds(pictures)
    assert 2 <= found["base"] <= 12 and found["base"] + found["other"] == 24
    assert all(max(scene.views) < views.FULL_VIEWS for _, scene in pictures), "it knows no close-ups"
    assert all((scene.lights.constant == 0.1).all() for _, scene in pictures)
    assert kinds(shown(mesh, Onlooker(), Options()))["base"] == 0
    # A model that is told the light would be misled.
    assert kinds(shown(mesh, Onlooker(sees_geometry=True), published("sds")))["base"] == 0
    with pytest.raises(ValueError, match="Cameras and lights are “own” or of “dreamfusion”, not of “zero123”"):
        Options(staging="zero123")
