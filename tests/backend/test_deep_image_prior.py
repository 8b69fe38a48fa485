# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps painted by a network: they follow what pictures ask for, smooth before noisy, and survive a pause."""

from dataclasses import replace

import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch

from addon import protocol
from backend import checkpoint, ggx_tables, material, optimisation, planning
from backend.deep_image_prior import DeepImagePrior
from backend.distillation import Options

SIDE = 64


def levels(side=SIDE):
    return material.new_maps(side).pyramid


def taught(wanted, steps, seed=0, side=SIDE):
    """Levels after so many moves towards the image (1, 7, T, T), and the prior."""
    pyramid = [level.detach().clone() for level in levels(side)]
    prior = DeepImagePrior(pyramid, seed)
    for _ in range(steps):
        left = sum(torch.nn.functional.interpolate(p, size=(side, side), mode="bilinear") for p in pyramid) - wanted
        prior.move(pyramid, [None] * (len(pyramid) - 1) + [left], side * side, 1.0)
    return pyramid, prior


def whole(pyramid):
    side = pyramid[-1].shape[-1]
    return sum(torch.nn.functional.interpolate(p, size=(side, side), mode="bilinear") for p in pyramid)


def test_it_begins_flat_and_the_levels_add_up_to_what_it_paints():
    pyramid = [level.detach().clone() for level in levels()]
    prior = DeepImagePrior(pyramid, 0)
    prior.move(pyramid, [torch.zeros_like(level) for level in pyramid], 1, 1.0)
    assert not any(level.any() for level in pyramid)
    torch.nn.init.normal_(prior.network.last.weight)
    painted = prior._levels()
    assert [level.shape for level in painted] == [level.shape for level in pyramid]
    assert torch.allclose(whole(painted), prior.network(prior.noise), atol=1e-5)
    assert painted[0].abs().mean() > 0 and painted[-1].abs().mean() > 0


def test_it_learns_structure_before_noise():
    """What names it: of two targets of the same strength, the smooth one is painted first (Ulyanov et al., fig. 2)."""
    across = torch.linspace(-3, 3, SIDE)
    smooth = 0.3 * torch.sin(across)[None, None, None] * torch.cos(across)[None, None, :, None]
    smooth = smooth.expand(1, material.CHANNELS, SIDE, SIDE)
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0)) * smooth.std()
    left = []
    for wanted in (smooth, noise):
        found = whole(taught(wanted, 60)[0])
        left.append(float(((found - wanted) ** 2).mean() / (wanted**2).mean()))
    print(f"left of a smooth target {left[0]:.3f}, of noise {left[1]:.3f}")
    assert left[0] < 0.2 and left[1] > 3 * left[0]


def test_a_checkpoint_holds_all_of_it():
    wanted = torch.rand(1, material.CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) - 0.5
    straight, _ = taught(wanted, 6)
    pyramid, prior = taught(wanted, 3)
    kept = {name: tensor.clone() for name, tensor in prior.tensors().items()}
    again = DeepImagePrior(pyramid, 0)
    again.load(kept)
    for _ in range(3):
        again.move(pyramid, [None] * (len(pyramid) - 1) + [whole(pyramid) - wanted], SIDE * SIDE, 1.0)
    for one, other in zip(straight, pyramid, strict=True):
        assert torch.equal(one, other)


def test_a_run_with_it_paints_what_the_model_wants_and_resumes_bit_for_bit(tmp_path):
    mesh, tables = shapes.mesh_of(shapes.torus(16, 8)), ggx_tables.load()
    wanted = (0.8, 0.2, 0.1, 0.05, 0.4, 0.5, 0.5)
    model = oracle.Oracle(lambda gbuffer: torch.tensor(wanted).expand(len(gbuffer.uv), 7), 32)
    plan = replace(
        oracle.plan_for(steps=80, render_size=32, finest=SIDE, views=2), options=Options(deep_image_prior=True)
    )

    def advance(state, until):
        pool = oracle.new_pool(mesh, plan.render_size, plan.seed)
        while state.step < until:
            optimisation.step(state, plan, model, pool, tables)
        return state

    cpu = torch.device("cpu")
    before = [volume.clone() for volume in optimisation.new_state(plan, cpu).maps.volumes[1:]]
    unbroken = advance(optimisation.new_state(plan, cpu), 80)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, advance(optimisation.new_state(plan, cpu), 9), plan)
    resumed = optimisation.new_state(plan, cpu)
    assert checkpoint.read_into(path, resumed, plan) and resumed.step == 9
    advance(resumed, 80)
    for one, other in zip(unbroken.maps.parameters(), resumed.maps.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(*pair) for pair in zip(before, unbroken.maps.volumes[1:], strict=True))
    gbuffer = oracle.new_pool(mesh, 32, 0).gbuffer([0, 1, 2])
    found = material.look_up(unbroken.average, gbuffer)[:, :3].mean(0)
    start = material.look_up(optimisation.new_state(plan, cpu).average, gbuffer)[:, :3].mean(0)
    off, before = ((colour - torch.tensor(wanted[:3])).abs().mean() for colour in (found, start))
    print(f"base colour off by {before:.3f} at the start, {off:.3f} after 80 steps")
    assert off < 0.4 * before
    # A checkpoint of one kind is none of the other.
    other = optimisation.new_state(replace(plan, options=Options()), cpu)
    assert not checkpoint.read_into(path, other, replace(plan, options=Options()))


def test_it_is_asked_for_in_words_and_refuses_to_go_on_from_maps():
    model = oracle.Oracle(lambda gbuffer: None, 32)
    options = {"deep_image_prior": "true"}
    plan = planning.make_plan(protocol.TextureRequest(prompt="x", options=options), model)
    assert isinstance(optimisation.new_state(plan, torch.device("cpu")).image_prior, DeepImagePrior)
    for more in ({"start": "four_views"}, {"start_maps": True}):
        with pytest.raises(protocol.ProtocolError, match="deep_image_prior paints from noise and cannot go on"):
            planning.make_plan(protocol.TextureRequest(prompt="x", options=options, **more), model)
    later = planning.second_plan(plan, protocol.TextureRequest(prompt="x"), model)
    assert not later.options.deep_image_prior
