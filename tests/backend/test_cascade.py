# SPDX-License-Identifier: GPL-3.0-or-later
"""A cascade: a second stage goes on where the first ended, with larger pictures and a schedule of its own."""

import dataclasses
import json

import diffusers
import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import test_texturing
import torch
import toy_models
from test_families import CPU, CUBE, Views

from addon import protocol
from backend import __main__ as command
from backend import checkpoint, models, optimisation, texturing
from backend import run as run_room
from backend.diffusion import built_in, families
from backend.diffusion.interface import ModelError
from backend.distillation import Options, published, take_aim
from backend.guidance import classifier_free


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("cascade")
    toy_models.save("pixel", home / "first", size=16)
    toy_models.save("second", home / "second")
    return home


def test_one_step_of_diffusers_own_second_stage_is_our_prediction(home):
    model = families.load(home / "second", CPU, second=True)
    model.set_prompt("red plastic", "blurry")
    assert model.render_size == 32 and model.guidance_scale == 4.0
    generator = torch.Generator().manual_seed(0)
    noisy, grain = (torch.randn(1, 3, 32, 32, generator=generator) for _ in range(2))
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    picture = torch.nn.functional.interpolate(small, scale_factor=4)  # of which the small one is the mean
    calls = []
    model.unet.register_forward_hook(
        lambda module, inputs, named, output: calls.append((inputs, named)), with_kwargs=True
    )
    scene = type("Scene", (), {"picture": picture, "grain": grain, "azimuth_deg": None, "elevation_deg": None})()
    with torch.no_grad():
        ours = classifier_free(model.predict(noisy, torch.tensor([500]), scene), 3.0)
    ((seen, times), named) = calls[0]
    assert seen.shape == (2, 6, 32, 32) and torch.equal(seen[:1, :3], noisy), "the noise comes before the small picture"
    assert named["class_labels"].tolist() == [250, 250] and times.tolist() == [500, 500]
    pipeline = diffusers.IFSuperResolutionPipeline.from_pretrained(home / "second", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    plain = {"clip_sample": False, "thresholding": False, "variance_type": "fixed_small"}
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config, **plain)
    found = pipeline(
        prompt="red plastic", negative_prompt="blurry", image=small, height=32, width=32, timesteps=[500],
        generator=torch.Generator().manual_seed(0), guidance_scale=3.0, noise_level=250, output_type="pt",
    )[0]  # fmt: skip
    assert torch.allclose(found, ours, atol=2e-4, rtol=1e-4), float((found - ours).abs().max())


def test_it_is_shown_the_picture_that_is_being_painted(home):
    model = families.load(home / "second", CPU, second=True)
    model.set_prompt("red plastic", "")
    x0 = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    shown, own = [], model.shown_of
    model.shown_of = lambda scene: shown.append(scene) or own(scene)

    @dataclasses.dataclass(frozen=True)
    class Pictures(Views):
        picture: object = None
        grain: object = None

    for _ in range(2):
        take_aim(model, x0, Pictures(), torch.ones(2, 1, 32, 32), 0.2, "sds", 4.0, Options(),
                 torch.Generator().manual_seed(0))  # fmt: skip
    assert torch.equal(shown[0].picture, x0) and torch.equal(shown[0].grain, shown[1].grain)
    assert abs(float(shown[0].grain.std()) - 1) < 0.1


def test_stages_in_each_others_place_are_refused(home):
    with pytest.raises(ModelError, match="second is a later stage of a cascade, .* another one as the model."):
        models.ModelShelf().get(str(home / "second"), CPU)
    with pytest.raises(ModelError, match="holds a “IFPipeline”, which is no second stage: IFSuper.* is"):
        models.second_stage(str(home / "first"), CPU)
    with pytest.raises(ModelError, match="does not know the model “nobody/none”"):
        models.second_stage("nobody/none", CPU)


def test_the_command_runs_both_stages(home, tmp_path, capsys):
    (tmp_path / "cube.obj").write_text(CUBE)
    arguments = ["texture", tmp_path / "cube.obj", "--prompt", "red plastic", "--model", home / "first",
                 "--second-stage", home / "second", "--out", tmp_path / "out", "--steps", "4", "--texture-size", "512",
                 "--device", "cpu", "--set", "guidance_scale_end=3", "--set", "perp_neg=true"]  # fmt: skip
    assert command.main([str(argument) for argument in arguments]) == protocol.EXIT_OK
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"] == "first" and report["second_stage"] == str(home / "second") and report["steps"] == 6
    assert report["options"] == {"guidance_scale_end": "3", "perp_neg": "true"} and "refinement" in report["seconds"]
    told = capsys.readouterr().err
    assert "Painting 0/6" in told and "Refining 4/6" in told


def test_memory_is_shared_by_those_stages_that_can(tmp_path):
    shelf = models.ModelShelf()
    model = toy_models.save("sd", tmp_path / "sd")
    request = protocol.TextureRequest(
        prompt="red plastic", texture_size=512, steps=1, device="cpu", model=str(model),
        second_stage=protocol.BUILT_IN_MODEL, options={"rows": "1", "vae_tiling": "true"},
    )  # fmt: skip
    events = texturing.run(request, job_in(tmp_path / "job"), shelf, lambda: None)
    assert isinstance(next(events), protocol.Started)
    events.close()
    loaded = shelf.get(str(model), CPU)
    assert loaded.rows == 1 and loaded.vae.use_tiling


RED = (0.8, 0.2, 0.1, 0.05, 0.4, 0.5, 0.5)


@pytest.fixture
def two_stages(monkeypatch):
    """Two cheap models in place of a cascade; what the second one was shown."""
    first, second = (oracle.Oracle(lambda gbuffer: torch.tensor(RED).expand(len(gbuffer.uv), 7), s) for s in (16, 32))
    monkeypatch.setattr(texturing, "second_stage", lambda name, device: second)
    shelf = type("Shelf", (), {"get": lambda self, name, device: first})()
    sizes = []
    own = second.predict
    second.predict = lambda noisy, t, scene, guided=True: sizes.append((tuple(noisy.shape), t)) or own(noisy, t, scene)

    def run(job, stop_at=None):
        request = protocol.TextureRequest(
            prompt="red plastic", texture_size=1024, steps=6, views=2, device="cpu", second_stage="second"
        )
        return test_texturing.run(job, request, stop_at, "pause", shelf)

    return run, sizes


def job_in(folder):
    job = protocol.JobFolder(folder)
    shapes.write_job_mesh(job.mesh, shapes.torus(16, 8))
    return job


def test_a_cascade_resumes_bit_for_bit_in_either_stage(two_stages, tmp_path, monkeypatch):
    run, sizes = two_stages
    baked, own = [], run_room._bake
    monkeypatch.setattr(run_room, "_bake", lambda r, size: baked.append(r.state.average) or own(r, size))
    events = run(job_in(tmp_path / "whole"))
    assert isinstance(events[-1], protocol.Done) and events[0].total_steps == 9
    assert [shape for shape, _ in sizes] == [(2, 3, 32, 32)] * 3, "three steps of larger pictures"
    assert all(time.max() <= 600 for _, time in sizes), "its timesteps are its own"
    steps = [event.step for event in events if isinstance(event, protocol.Progress)]
    assert steps == sorted(steps) and steps[-1] == 9
    assert baked[0].pyramid[-1].shape[-1] == 1024, "more detail than the first stage has"
    for stop_at in (3, 8):
        job = job_in(tmp_path / f"stopped-{stop_at}")
        paused = run(job, stop_at)[-1]
        assert isinstance(paused, protocol.Paused) and paused.step == stop_at
        again = run(job)
        assert again[0].resumed_from_step == paused.step and isinstance(again[-1], protocol.Done)
        for one, other in zip(baked[0].parameters(), baked[-1].parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_second_stage_begins_with_what_the_first_painted():
    small, large = (optimisation.new_state(oracle.plan_for(4, 16, finest), CPU) for finest in (32, 128))
    with torch.no_grad():
        for part in small.average.parameters():
            part.uniform_(generator=torch.Generator().manual_seed(0))
    optimisation.go_on_from(large, small)
    for maps in (large.maps, large.average):
        assert all(torch.equal(a, b) for a, b in zip(maps.volumes, small.average.volumes, strict=True))
        assert torch.equal(maps.pyramid[0], small.average.pyramid[0]) and not maps.pyramid[1].any()
    assert not checkpoint.read_into(__import__("pathlib").Path("/nowhere"), large, oracle.plan_for(4, 16, 128))


@pytest.mark.parametrize(
    "option, text, sentence",
    [
        ("magic", "1", "There is no option “magic”; there are guidance_scale_end, rescale,"),
        ("rescale", "much", "The option “rescale” cannot be “much”; it is of the kind float"),
        ("rescale", "2", "Rescaling is 2.0; it must lie between 0 and 1."),
        ("perp_neg", "perhaps", "The option “perp_neg” cannot be “perhaps”; it is of the kind bool"),
        ("highest", "0.5", "The option “highest” cannot be “0.5”; it is of the kind tuple"),
    ],
)
def test_options_in_words(option, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        published("sds", {option: text})


def test_every_option_can_be_said_in_words():
    said = {"guidance_scale_end": "5", "rescale": "none", "perp_neg": "TRUE", "highest": "0.9,0.4", "anneal": "linear",
            "k_steps": "6", "weighting": "uniform", "joint_views": "true"}  # fmt: skip
    found = published("sds", said)
    assert (found.guidance_scale_end, found.rescale, found.perp_neg, found.highest) == (5.0, None, True, (0.9, 0.4))
    assert (found.anneal, found.k_steps, found.weighting, found.joint_views) == ("linear", 6, "uniform", True)
    assert found.staging == "dreamfusion" and found.lowest == (0.02, 0.02), "the rest stays as published"


def test_the_built_in_model_has_a_second_stage(tmp_path, monkeypatch):
    job, asked = job_in(tmp_path / "job"), []
    predict = built_in.BuiltInPrior.predict
    monkeypatch.setattr(
        built_in.BuiltInPrior,
        "predict",
        lambda self, noisy, *rest, **named: asked.append(noisy.shape[-1]) or predict(self, noisy, *rest, **named),
    )
    request = protocol.TextureRequest(
        prompt="oak", texture_size=1024, steps=4, device="cpu", second_stage=protocol.BUILT_IN_MODEL
    )
    events = list(texturing.run(request, job, models.ModelShelf(), lambda: None))
    assert isinstance(events[-1], protocol.Done) and events[0].total_steps == 6
    assert asked[-3:] == [64, 128, 128] and set(asked) == {64, 128}
    report = json.loads(job.report.read_text())
    assert report["second_stage"] == protocol.BUILT_IN_MODEL
