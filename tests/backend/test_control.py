# SPDX-License-Identifier: GPL-3.0-or-later
"""ControlNets: what they are shown of the geometry, and that they work as in diffusers' own pipelines."""

import json

import diffusers
import pytest
import shapes_for_tests as shapes
import torch
import toy_models
from test_families import CPU, CUBE

from addon import protocol
from backend import __main__ as command
from backend import cameras, lighting, models
from backend.diffusion import control, families
from backend.diffusion.interface import ModelError, Scene
from backend.guidance import classifier_free
from backend.rasterize import Triangles, gather, look

KINDS = ("sd", "sd_v", "sdxl")  # SD 1.5, 2.x with v, SDXL


def scene_of(arrays, size=16, azimuths=(0.0, 90.0), tiles=None):
    mesh = shapes.mesh_of(arrays)
    triangles, count = Triangles.of(mesh), len(azimuths)
    where = cameras.look_at(
        torch.tensor(azimuths), torch.zeros(count), torch.full((count,), 4.0), torch.full((count,), 0.3)
    )
    gbuffer = gather(triangles, where, [look(triangles, where, index, size) for index in range(count)])
    lights = lighting.uniform(count)
    return Scene(gbuffer, lights, size, 1.0, torch.zeros(3), tuple(range(count)), None,
                 where.azimuth_deg, where.elevation_deg, where, tiles)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("control")
    for name in KINDS:
        toy_models.save(name, home / name)
        toy_models.save_control(name, home / f"{name}-depth")
    return home


def test_depth_and_normals_are_encoded_as_the_annotators_do():
    scene = scene_of(shapes.sphere(), 32)
    depth, normal = control.shown("depth", scene), control.shown("normal", scene)
    for view in range(2):  # a sphere looks alike from everywhere
        grey = depth[view]
        assert torch.equal(grey[0], grey[1]) and grey.min() == 0 and grey[0, 0, 0] == 0
        assert grey[0, 15:17, 15:17].min() > 0.97, "nearest is white"
        across = grey[0, 16, 4:17]
        assert (across[across > 0].diff() >= -1e-3).all(), "the farther the darker"
        assert grey[0][scene.gbuffer.coverage[view] == 1].min() >= control.FARTHEST - 1e-6
        red, green, blue = normal[view]
        assert red[16, 6] > 0.75 and red[16, 25] < 0.25, "towards the left is red"
        assert green[6, 16] > 0.75 and green[25, 16] < 0.25, "up is green"
        assert blue[16, 16] > 0.98 and 0.4 < blue[16, 6] < 0.95, "towards the camera is blue"
        assert normal[view][:, 0, 0].tolist() == [0.5, 0.5, 1.0]
    near = scene_of(shapes.torus(16, 8), 32, (0.0,))
    away = 4.0 + near.gbuffer.position[:, 1]  # along -Y, where the camera stands
    values = control.shown("depth", near)[0, 0].flatten()[near.gbuffer.pixel]
    inside = near.gbuffer.coverage.flatten()[near.gbuffer.pixel] == 1
    order = (1 / away - (1 / away).min()) / ((1 / away).max() - (1 / away).min())
    assert torch.allclose(values[inside], (control.FARTHEST + (1 - control.FARTHEST) * order)[inside], atol=1e-4)


def test_four_views_as_one_are_shown_as_one():
    scene = scene_of(shapes.torus(16, 8), 16, (0.0, 90.0, 180.0, 200.0, 300.0), tiles=(0, 1, 2, 4))
    each = control.shown("normal", scene_of(shapes.torus(16, 8), 16, (0.0, 90.0, 180.0, 200.0, 300.0)))
    (together,) = control.shown("normal", scene)
    assert together.shape == (3, 32, 32)
    assert torch.equal(together[:, :16, 16:], each[1]) and torch.equal(together[:, 16:, 16:], each[4])


@pytest.mark.parametrize("name", KINDS)
def test_one_step_of_diffusers_own_control_pipeline_is_our_prediction(home, name):
    model = families.load(home / name, CPU)
    model.set_prompt("red plastic", "blurry")
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scene = scene_of(shapes.torus(16, 8), 16, (30.0,))
    without = classifier_free(model.predict(noisy, torch.tensor([500]), scene), 3.0)
    model.set_control(home / f"{name}-depth", "", 0.7)
    calls = []
    model.control.net.register_forward_hook(
        lambda module, inputs, named, output: calls.append((inputs, named)), with_kwargs=True
    )
    # The words of the view are none of the pipeline's.
    flat = Scene(**{**scene.__dict__, "azimuth_deg": None, "elevation_deg": None})
    ours = classifier_free(model.predict(noisy, torch.tensor([500]), flat), 3.0)
    picture = control.shown("depth", scene)
    ((noisy_seen, times), named) = calls[0]
    assert torch.equal(named["controlnet_cond"], torch.cat((picture, picture))), "with the prompt and without it"
    assert named["conditioning_scale"] == 0.7 and times.tolist() == [500, 500]
    assert torch.equal(noisy_seen, torch.cat((noisy, noisy)))
    kind = f"{model.folder.pipeline.removesuffix('Pipeline')}ControlNetPipeline"
    net = diffusers.ControlNetModel.from_pretrained(home / f"{name}-depth")
    told = {} if name == "sdxl" else {"safety_checker": None}
    pipeline = getattr(diffusers, kind).from_pretrained(home / name, controlnet=net, local_files_only=True, **told)
    pipeline.set_progress_bar_config(disable=True)
    plain = {"clip_sample": False, "thresholding": False, "variance_type": "fixed_small"}
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config, **plain)
    found = pipeline(
        prompt="red plastic", negative_prompt="blurry", image=picture, height=16, width=16, timesteps=[500],
        latents=noisy, guidance_scale=3.0, controlnet_conditioning_scale=0.7, output_type="latent",
    )[0]  # fmt: skip
    assert torch.allclose(found, ours, atol=2e-4, rtol=1e-4), float((found - ours).abs().max())
    assert (ours - without).abs().max() > 0.05, "the control has no say"
    model.set_control(None, "", 1.0)
    assert torch.equal(classifier_free(model.predict(noisy, torch.tensor([500]), scene), 3.0), without)


def test_every_part_of_a_batch_is_shown_its_own_picture(home):
    model = families.load(home / "sd", CPU)
    model.set_prompt("red plastic", "")
    model.set_control(home / "sd-depth", "normal", 1.0)
    scene = scene_of(shapes.torus(16, 8), 16, (0.0, 90.0, 200.0))
    noisy, times = torch.randn(3, 4, 8, 8), torch.tensor([100, 500, 900])
    at_once = model.predict(noisy, times, scene)
    model.rows = 2
    in_parts = model.predict(noisy, times, scene)
    assert torch.allclose(at_once.conditional, in_parts.conditional, atol=1e-4)
    assert torch.allclose(at_once.unconditional, in_parts.unconditional, atol=1e-4)
    copy = model.companion(0)
    told = copy.predict(noisy, times, scene)
    assert torch.allclose(told, in_parts.conditional, atol=1e-4), "the copy is not shown it"


# --- through the command ----------------------------------------------------------------------------


def texture(tmp_path, capsys, *arguments):
    """(exit code, what is told) of `python -m backend texture` with a cube."""
    (tmp_path / "cube.obj").write_text(CUBE)
    common = ["texture", tmp_path / "cube.obj", "--prompt", "red plastic", "--out", tmp_path / "out", "--steps", "2",
              "--texture-size", "512", "--device", "cpu"]  # fmt: skip
    code = command.main([str(argument) for argument in (*common, *arguments)])
    return code, capsys.readouterr().err


def test_the_command_textures_with_a_control_and_the_request_remembers_it(home, tmp_path, capsys):
    control_folder = home / "sd-depth"
    code, told = texture(tmp_path, capsys, "--model", home / "sd", "--control", control_folder)
    assert code == protocol.EXIT_OK, told
    request = json.loads((tmp_path / "out" / "job-0001" / "request.json").read_text())
    assert request["control"] == str(control_folder) and request["control_strength"] == 1.0


def test_bad_controls_get_a_sentence_each(home, tmp_path, capsys):
    nameless = toy_models.save_control("sd", tmp_path / "some-net")
    half = toy_models.save_control("sd", tmp_path / "half-depth")
    weights = half / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    pickled = toy_models.save_control("sd", tmp_path / "pickled-depth")
    (pickled / weights.name).rename(pickled / "diffusion_pytorch_model.bin")
    (tmp_path / "empty-depth").mkdir()
    cases = (
        (home / "sdxl-depth", r"is made for another family of models than “sd” \(cross_attention_dim is 28 in the one"),
        (nameless, r"looks at depth or at normals is written nowhere in it. Say it with --control-kind depth or"),
        (half, r"is not complete: .* is cut off or damaged. Download it again."),
        (pickled, r"diffusion_pytorch_model.bin is a pickle"),
        (tmp_path / "empty-depth", r"is no control: it holds no config.json that says so."),
        (home / "sd", r"holds a whole model and no control. Choose it as the model, or another folder."),
        (home / "sd" / "unet", r"holds a “UNet2DConditionModel”; as a control Patina can load ControlNetModel."),
        (tmp_path / "cube.obj", r"is a single file. Patina needs the model as a folder .* with config.json."),
        ("nobody/none-depth", r"There is no control “nobody/none-depth”. Choose the folder of a ControlNet"),
    )
    (tmp_path / "cube.obj").write_text(CUBE)
    shelf = models.ModelShelf()
    model = shelf.get(str(home / "sd"), CPU)
    for folder, sentence in cases:
        with pytest.raises(ModelError, match=sentence) as caught:
            models.set_control(model, str(folder), "", 1.0)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    models.set_control(model, "", "", 1.0)
    assert model.control is None
    code, told = texture(tmp_path, capsys, "--model", home / "sd", "--control", home / "sdxl-depth")
    assert code == protocol.EXIT_BAD_REQUEST and "is made for another family of models than “sd”" in told
    code, told = texture(tmp_path, capsys, "--control", home / "sd-depth")
    assert code == protocol.EXIT_BAD_REQUEST and "“built-in” takes no control: only Stable Diffusion 1.5" in told
    code, told = texture(tmp_path, capsys, "--control", home / "sd-depth", "--control-strength", "-1")
    assert code == protocol.EXIT_BAD_REQUEST and "control_strength must lie between 0 and 2" in told


@pytest.mark.parametrize("what", ["no model", "half", "pickle", "file", "unknown", "name", "scale", "guidance"])
def test_bad_models_and_settings_get_one_sentence_through_the_command(home, tmp_path, capsys, what):
    import shutil

    broken = tmp_path / "broken"
    extra, sentence = [], ""
    if what in ("half", "pickle", "unknown"):
        shutil.copytree(home / "sd", broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    match what:
        case "no model":
            broken.mkdir()
            sentence = "is no model folder: it holds no model_index.json."
        case "half":
            weights.write_bytes(weights.read_bytes()[:-100])
            sentence = "is cut off or damaged. Download it again."
        case "pickle":
            weights.rename(weights.with_suffix(".bin"))
            sentence = "is a pickle, which can run any program when it is opened"
        case "file":
            broken.with_suffix(".ckpt").write_bytes(b"x")
            broken = broken.with_suffix(".ckpt")
            sentence = "is a pickle checkpoint, which can run any program"
        case "unknown":
            (broken / "model_index.json").write_text('{"_class_name": "MysteryPipeline"}')
            sentence = "holds a “MysteryPipeline”, a kind of model that Patina does not know. It knows: IFPipeline"
        case "name":
            broken = "nobody/none"
            sentence = "Patina does not know the model “nobody/none”. Choose “built-in”, the folder of a model"
        case "scale":
            broken, extra = "built-in", ["--guidance-scale=-0.5"]
            sentence = "guidance_scale must lie between 0 and 200"
        case "guidance":
            broken, extra = "built-in", ["--guidance", "magic"]
            sentence = "guidance must be one of clamped, sds, csd"
    code, told = texture(tmp_path, capsys, "--model", broken, *extra)
    assert code == protocol.EXIT_BAD_REQUEST, told
    assert sentence in told and "Traceback" not in told and told.count(sentence) == 1
    assert not list((tmp_path / "out").glob("*.png")) if (tmp_path / "out").exists() else True
