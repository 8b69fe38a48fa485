# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request means for its run: what is refused at the door, what was said and holds, and what is warned of."""

from dataclasses import replace

import oracle_for_tests as oracle
import pytest
import torch
import toy_models
from test_families import CPU, Views
from test_texturing import job_in

from addon import protocol
from backend import planning, texturing
from backend.diffusion import families
from backend.distillation import take_aim, timesteps

REQUEST = protocol.TextureRequest(prompt="x")
FOUR = replace(REQUEST, start="four_views")
ONE_TIME = ("sdi", "hifa")  # published with one timestep for all pictures of a step


class Blind(oracle.Oracle):
    sees_geometry = False


MODEL = Blind(lambda gbuffer: None, 64)
SECOND = Blind(lambda gbuffer: None, 128, guidance_scale=4.0)


def both(request):
    """The options of the plan and of its second stage's, and that one's guidance scale."""
    plan = planning.make_plan(request, MODEL)
    second = planning.second_plan(plan, request, SECOND)
    return plan.options, second.options, second.guidance_scale


def test_joint_views_are_together_the_picture_that_the_model_was_made_for(tmp_path):
    model = families.load(toy_models.save("sd", tmp_path / "sd"), CPU)
    model.set_prompt("red plastic", "")
    asked = []
    model.unet.register_forward_pre_hook(lambda module, inputs: asked.append(tuple(inputs[0].shape)))
    for joint, count in (("false", 4), ("true", 1)):
        plan = planning.make_plan(replace(REQUEST, options={"joint_views": joint}), model)
        x0 = torch.zeros(4, 3, plan.render_size, plan.render_size)
        views = Views(torch.zeros(4), torch.zeros(4), plan.render_size)
        take_aim(model, x0, views, torch.ones_like(x0[:, :1]), 0.4, "clamped", 1.0, plan.options, torch.Generator())
        side = model.unet.config.sample_size
        assert asked[-1] == (count, 4, side, side), "it is asked for latents it was not made for"
    sized = replace(REQUEST, options={"joint_views": "true"}, render_size=48)
    assert planning.make_plan(sized, model).render_size == 48, "who asks for a size gets it"


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (replace(FOUR, guidance="none", second_stage="built-in"), "stage goes on by the guidance, and it is “none”"),
        (replace(FOUR, guidance="none", reference="a.png"), "A reference picture needs a guidance, and it is “none”"),
        (
            replace(FOUR, guidance="none", start_maps=True, strength=0.5),
            "“four_views” has no part in it. Choose the start uniform and a guidance, as clamped, or the strength 1",
        ),
        (
            replace(REQUEST, start="latent_paint", start_maps=True, strength=0.5),
            "strength 0.5 .* start “latent_paint” has no part in it. Choose the start uniform, or the strength 1",
        ),
        (replace(REQUEST, guidance="none"), "or none with the start four_views or latent_paint"),
    ],
)
def test_what_no_run_can_do_is_refused_at_the_door(request_, sentence, tmp_path):
    with pytest.raises(protocol.ProtocolError, match=sentence) as caught:
        next(texturing.run(request_, job_in(tmp_path / "job"), None, lambda: None))  # before any model is loaded
    assert "\n" not in str(caught.value)


def test_what_can_be_done_passes_the_door():
    for more in ({"start_maps": True}, {"second_stage": "x"}, {"reference": "a.png"}):
        planning.check(replace(FOUR, guidance="sdi", **more))
    planning.check(replace(REQUEST, start_maps=True, strength=0.3))
    planning.check(replace(FOUR, guidance="none", start_maps=True))


def test_the_second_stage_keeps_what_was_said():
    said = {"highest": "0.9,0.8", "lowest": "0.6,0.6", "guidance_scale_end": "5"}
    first, second, scale = both(replace(REQUEST, guidance_scale=25.0, options=said))
    assert scale == 25.0 and second.guidance_scale_end == 5.0
    assert (second.highest, second.lowest) == ((0.9, 0.8), (0.6, 0.6)) == (first.highest, first.lowest)
    # And has a schedule of its own where nothing was.
    _, second, scale = both(REQUEST)
    assert scale == 4.0 and second.guidance_scale_end is None
    assert (second.highest, second.lowest) == ((0.6, 0.3), (0.1, 0.02))
    # One of the two bounds the other.
    assert both(replace(REQUEST, options={"lowest": "0.7,0.2"}))[1].highest == (0.7, 0.3)
    assert both(replace(REQUEST, options={"highest": "0.4,0.2"}))[1].lowest == (0.1, 0.02)


def test_a_warm_start_clips_defaults_only():
    said = {"highest": "0.9,0.8", "lowest": "0.6,0.6"}
    first = planning.make_plan(replace(FOUR, options=said), MODEL).options
    assert (first.highest, first.lowest) == ((0.9, 0.8), (0.6, 0.6))
    first = planning.make_plan(FOUR, MODEL).options
    assert (first.highest, first.lowest) == ((0.5, 0.5), (0.05, 0.05))
    first = planning.make_plan(replace(FOUR, options={"lowest": "0.7,0.2"}), MODEL).options
    assert (first.highest, first.lowest) == ((0.7, 0.5), (0.7, 0.2))


@pytest.mark.parametrize("guidance", ONE_TIME)
def test_a_method_of_one_timestep_stays_one(guidance):
    warm, second, _ = both(replace(FOUR, guidance=guidance))
    for options in (warm, second):
        assert options.highest == options.lowest
        for progress in (0.0, 0.5, 0.9):
            assert timesteps(4, progress, 1000, torch.Generator().manual_seed(0), options).unique().numel() == 1
    assert warm.highest[0] == 0.5 and second.highest[0] == 0.6


def test_what_a_person_may_expect_and_does_not_get_is_said():
    def told(request, model=MODEL, second=SECOND):
        return planning.warnings_of(request, planning.make_plan(request, MODEL), model, second)

    assert told(REQUEST) == told(REQUEST, second=None) == []
    (sentence,) = told(replace(REQUEST, options={"joint_views": "true"}))
    assert "joint_views holds for the first stage alone: the second one enlarges each picture by itself" in sentence
    (sentence,) = told(replace(REQUEST, options={"deep_image_prior": "true"}))
    assert "deep_image_prior holds for the first stage alone" in sentence
    (sentence,) = told(replace(REQUEST, render_size=48))
    assert "render size 48 holds for the first stage alone: the second one works with the 128 pixels" in sentence
    # Four views are projected back as if they lay on the object.
    (sentence,) = told(FOUR, second=None)
    assert "“oracle” paints the four views without seeing the object's shape" in sentence
    controlled = Blind(lambda gbuffer: None, 64)
    controlled.control = object()
    assert told(FOUR, controlled, None) == told(FOUR, oracle.Oracle(lambda gbuffer: None), None) == []
