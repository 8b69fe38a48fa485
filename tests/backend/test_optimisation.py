# SPDX-License-Identifier: GPL-3.0-or-later
"""One optimiser step: what the model is shown, what moves, and that it is the same every time."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch

from backend import ggx_tables, material, optimisation, views
from backend.diffusion.interface import ModelError, Prediction
from backend.rasterize import Triangles

TABLES = ggx_tables.load()
PLAN = oracle.plan_for(steps=10, render_size=32, finest=32, views=4)


@pytest.fixture(scope="module")
def mesh():
    return shapes.mesh_of(shapes.torus(16, 8))


@dataclass
class Spy:
    """Remembers what it is shown; says that every picture should be `wish` where it is asked with the prompt."""

    wish: float = 0.2
    other: float = -0.9
    trust: float = 0.0  # how much of what it is shown it keeps, noise and all
    background: float | None = 0.5
    noise_free: bool = True
    name: str = "spy"
    render_size: int = 32
    guidance_scale: float = 1.0
    shown: list = field(default_factory=list)

    @property
    def alphas_cumprod(self):
        return torch.full((1000,), 0.99999) if self.noise_free else torch.linspace(0.999, 0.001, 1000)

    def set_prompt(self, prompt, negative_prompt):
        return ()

    def predict(self, noisy, timestep, scene, guided=True):
        self.shown.append((noisy, timestep, scene))
        return Prediction(self.wish + self.trust * noisy, self.other + self.trust * noisy)


def run(model, mesh, plan=PLAN, steps=1):
    state = optimisation.new_state(plan, torch.device("cpu"))
    pool = oracle.new_pool(mesh, plan.render_size, plan.seed)
    for _ in range(steps):
        optimisation.step(state, plan, model, pool, TABLES)
    return state


def values(state):
    return torch.cat([p.detach().flatten() for p in state.maps.parameters()])


def test_the_model_sees_the_lit_object_over_its_background(mesh):
    spy = Spy()
    fresh = optimisation.new_state(PLAN, torch.device("cpu"))
    run(spy, mesh)
    (noisy, timestep, scene), gbuffer = spy.shown[0], spy.shown[0][2].gbuffer
    assert noisy.shape == (4, 3, 32, 32) and timestep.shape == (4,) and noisy.dtype == torch.float32
    assert scene.size == 32 and len(scene.views) == 4 and scene.pattern_offset.shape == (3,)
    known = lambda points: material.look_up(fresh.maps, points, 0.0).detach()  # noqa: E731
    expected = gbuffer.picture(oracle.render(known, gbuffer, scene.lights) * 2 - 1, torch.zeros(4, 32, 32, 3))
    assert (noisy.permute(0, 2, 3, 1) - expected).abs().max() < 0.05  # but for the last bit of noise
    lit = noisy.permute(0, 2, 3, 1)[gbuffer.coverage == 1]
    assert lit.std() > 0.05, "no light falls on it"


def test_without_a_background_of_the_models_it_changes_from_picture_to_picture(mesh):
    spy = Spy(background=None)
    run(spy, mesh)
    noisy, _, scene = spy.shown[0]
    behind = [picture[:, cover == 0].mean(1) for picture, cover in zip(noisy, scene.gbuffer.coverage, strict=True)]
    assert torch.stack(behind).std(0).min() > 0.02


def test_views_lights_and_times_change_from_step_to_step_and_differ_in_a_batch(mesh):
    spy = Spy(noise_free=False)
    run(spy, mesh, steps=2)
    (_, first_time, first), (_, second_time, second) = spy.shown
    assert not torch.equal(first.lights.constant, second.lights.constant)
    assert first.gbuffer.position.shape != second.gbuffer.position.shape or not torch.equal(
        first.gbuffer.position, second.gbuffer.position
    )
    assert len(set(first_time.tolist())) == len(first_time) and not torch.equal(first_time, second_time)
    assert torch.equal(first.pattern_offset, second.pattern_offset), "patterns must not move between the steps"
    assert first.lights.constant.unique(dim=0).shape[0] == len(first.lights.constant)


def brightness(state):
    points = 0.5 * torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.no_grad():
        raw = material.raw_values(state.maps, points, torch.full((50, 2), 0.5), torch.full((50,), 0.02))
    return float(material.stored_values(raw)[:, material.BASE_COLOR].mean())


def test_the_maps_move_towards_the_prompt_and_by_the_scale(mesh):
    before = brightness(optimisation.new_state(PLAN, torch.device("cpu")))
    bright, dark = Spy(wish=0.95, other=-0.95), Spy(wish=-0.95, other=0.95)
    assert brightness(run(bright, mesh, steps=5)) > before + 0.01
    assert brightness(run(dark, mesh, steps=5)) < before - 0.01
    without = replace(PLAN, guidance_scale=0.0)
    assert brightness(run(bright, mesh, without, steps=5)) < before - 0.01
    assert brightness(run(dark, mesh, without, steps=5)) > before + 0.01


@pytest.mark.parametrize("guidance", ["clamped", "sds"])
def test_everything_stays_finite_with_a_model_far_out(guidance, mesh):
    wild = Spy(wish=1e4, other=-1e4, noise_free=False)
    plan = replace(PLAN, guidance=guidance, guidance_scale=100.0, rescale=0.7, binary_metallic=0.15)
    state = run(wild, mesh, plan, 10)
    assert torch.isfinite(values(state)).all() and state.step == 10
    assert all(torch.isfinite(p).all() for p in state.average.parameters())


def test_a_model_that_answers_with_no_numbers_is_named_and_moves_nothing(mesh):
    state = optimisation.new_state(PLAN, torch.device("cpu"))
    before = values(state).clone()
    with pytest.raises(ModelError, match="The model spy answered step 0 with values that are not numbers"):
        optimisation.step(state, PLAN, Spy(wish=math.nan), oracle.new_pool(mesh, 32, 0), TABLES)
    assert torch.equal(values(state), before)


def test_the_same_seed_moves_the_maps_alike_and_another_does_not(mesh):
    one, two, other = (
        values(run(Spy(noise_free=False, trust=0.3), mesh, replace(PLAN, seed=seed), 4)) for seed in (3, 3, 4)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_the_average_follows_the_maps(mesh):
    state = run(oracle.Oracle(lambda g: torch.full((g.uv.shape[0], 7), 0.4), 32), mesh, steps=10)
    for average, now in zip(state.average.parameters(), state.maps.parameters(), strict=True):
        assert not average.requires_grad and (average - now).abs().mean() < 0.1
    assert values(state).abs().max() > 0


# --- the views of a run -----------------------------------------------------------------------------


def test_a_pool_draws_full_views_and_close_ups_and_none_twice(mesh):
    pool = oracle.new_pool(mesh, 32, 0)
    generator = torch.Generator().manual_seed(0)
    drawn = [pool.draw(6, 2, generator) for _ in range(20)]
    for indices in drawn:
        assert len(set(indices)) == len(indices) and 4 <= len(indices) <= 6
        assert sum(index < pool.full for index in indices) == 4
    assert len({index for indices in drawn for index in indices}) > 60
    gbuffer = pool.gbuffer(drawn[0])
    assert gbuffer.coverage.shape == (len(drawn[0]), 32, 32)
    assert torch.allclose(pool.extent(drawn[0]), pool.cameras.extent[torch.tensor(drawn[0])])
    # The points of each picture look back at the camera it belongs to.
    for place, index in enumerate(drawn[0]):
        mine = gbuffer.view == place
        back = pool.cameras.position[index] - gbuffer.position[mine]
        assert torch.allclose(torch.nn.functional.normalize(back, dim=1), gbuffer.to_camera[mine], atol=1e-4)
    assert pool.seen.any() and pool.seen[pool.look(drawn[0][0]).triangle].all()


def test_close_ups_aim_at_what_may_change():
    two = shapes.together(*(shapes.moved(shapes.sphere(12, 6), 0.3, (0, y, 0)) for y in (-0.6, 0.6)))
    half = len(two["positions"]) // 2
    two["face_mask"][half:] = False
    mesh = shapes.mesh_of(two)
    pool = views.new_pool(Triangles.of(mesh), torch.from_numpy(mesh.face_mask), 24, torch.Generator().manual_seed(1))
    middles = []
    for index in range(pool.full, len(pool.cameras)):
        picture = pool.look(index)
        centre = picture.pixel[((picture.pixel // 24 - 12).abs() < 2) & ((picture.pixel % 24 - 12).abs() < 2)]
        hit = picture.triangle[torch.isin(picture.pixel, centre)]
        middles += (hit < half).tolist()
    assert len(middles) > 100 and sum(middles) > 0.85 * len(middles)


def test_a_mesh_as_thin_as_a_wire_still_teaches_something():
    """Hardly a pixel's centre meets it; no view is worth 40 pixels."""
    arrays = shapes.grid(1, half=0.99 / 2**0.5)
    wire = shapes.mesh_of({**arrays, "positions": arrays["positions"] * np.float32([2e-4, 1, 1])})
    pool = oracle.new_pool(wire, 32, 0)
    for seed in range(3):
        assert pool.draw(4, 1, torch.Generator().manual_seed(seed))
    state = run(Spy(), wire, steps=4)
    assert torch.isfinite(values(state)).all()
