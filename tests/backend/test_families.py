# SPDX-License-Identifier: GPL-3.0-or-later
"""Every family from a folder of the real classes at toy size: what the network is asked, and what comes of it."""

import gc
import json
from dataclasses import dataclass

import diffusers
import numpy as np
import pytest
import torch
import toy_models
import transformers
from PIL import Image

from addon import protocol
from backend import __main__ as command
from backend.diffusion import conversions, families, worded
from backend.diffusion.interface import Latent, ModelError, Worded, encode
from backend.distillation import Options, take_aim
from backend.guidance import GUIDANCE, TRAINED, add_noise, classifier_free

CPU = torch.device("cpu")
ALL = list(toy_models.FAMILIES)
FLOWS = ("sd3", "klein", "z_image")


@dataclass(frozen=True)
class Views:
    """The part of a Scene that these models look at."""

    azimuth_deg: torch.Tensor | None = None
    elevation_deg: torch.Tensor | None = None
    size: int = 16
    tiles: tuple | None = None


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    home, made = tmp_path_factory.mktemp("models"), {}

    def folder(name):
        if name not in made:
            made[name] = toy_models.save(name, home / name)
        return made[name]

    return folder


@pytest.fixture
def load(folders):
    def loaded(name, prompt="red plastic", negative=""):
        model = families.load(folders(name), CPU)
        model.set_prompt(prompt, negative)
        return model

    return loaded


def network_of(model):
    return model.unet if hasattr(model, "unet") else model.transformer


def listen(model):
    """Every call of the network from now on: a list of (positional, named) inputs and the output."""
    calls = []
    network_of(model).register_forward_hook(
        lambda module, positional, named, output: calls.append((positional, named, output)), with_kwargs=True
    )
    return calls


def noise_for(model, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    picture = torch.rand(count, 3, model.render_size, model.render_size, generator=generator) * 2 - 1
    clean = encode(model, picture)
    return clean, torch.randn(clean.shape, generator=generator)


@pytest.mark.parametrize("name", ALL)
def test_what_a_family_offers(load, name):
    model = load(name)
    assert isinstance(model, Worded) and isinstance(model, Latent) == (name != "pixel")
    assert model.name == name and model.background is None and not model.sees_geometry
    table = model.alphas_cumprod
    assert table.shape == (1000,) and (table[1:] < table[:-1]).all() and 0 <= table[-1] < 0.01 and table[0] > 0.99
    assert model.render_size == (8 if name == "pixel" else 16)
    assert not any(parameter.requires_grad for module in model.modules() for parameter in module.parameters())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("negative", ["", "blurry"])
def test_one_step_of_diffusers_own_pipeline_is_our_prediction(folders, load, name, negative):
    """The pipeline samples in a single step, whose result is x0_hat: words, time, signs, channels, scales and
    guidance are then all as its authors have them."""
    model, scale = load(name, negative=negative), 3.0
    pipeline = getattr(diffusers, model.folder.pipeline).from_pretrained(folders(name), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    count, size = 1, model.render_size
    noisy = torch.randn(noise_for(model, count)[1].shape, generator=torch.Generator().manual_seed(0))
    told = {"prompt": "red plastic", "height": size, "width": size, "output_type": "latent"}
    told["guidance_scale"] = scale - 1 if name == "z_image" else scale  # its formula counts from the prompt on
    if name != "klein":  # which knows no negative prompts
        told["negative_prompt"] = negative or None
    elif negative:
        pytest.skip("diffusers' klein has no negative prompt to compare with")
    if name in FLOWS:
        timestep = 999
        packed = pipeline._pack_latents(noisy) if name == "klein" else noisy
        shaped = noisy if name == "klein" else packed
        found = pipeline(**told, num_inference_steps=1, sigmas=[1.0], latents=shaped)[0]
    else:
        timestep = 500
        plain = {"clip_sample": False, "thresholding": False, "variance_type": "fixed_small"}
        pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config, **plain)
        if name == "pixel":
            told["output_type"] = "pt"
            found = pipeline(**told, timesteps=[500], generator=torch.Generator().manual_seed(0))[0]
        else:
            found = pipeline(**told, timesteps=[500], latents=noisy)[0]
    with torch.no_grad():
        ours = classifier_free(model.predict(noisy, torch.tensor([timestep]), Views()), scale)
        if name == "klein":  # which hands out latents in the autoencoder's own units
            mean, deviation = model._statistics(ours)
            ours = pipeline._unpatchify_latents(ours * deviation + mean)
    assert found.shape == ours.shape
    assert torch.allclose(found, ours, atol=2e-4, rtol=1e-4), float((found - ours).abs().max())
    assert ours.std() > 0.05


@pytest.mark.parametrize("name", [name for name in ALL if name != "pixel"])
def test_the_autoencoders_units_are_the_pipelines(folders, load, name):
    """encode: shifted and scaled (klein: patched and normalised); decode: back again."""
    model = load(name)
    picture = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        raw = model.vae.encode(picture).latent_dist.mode()
        config = model.vae.config
        if name == "klein":
            stored = raw.view(2, 4, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 16, 4, 4)
            bn = model.vae.bn
            wanted = (stored - bn.running_mean[:, None, None]) / (bn.running_var[:, None, None] + 1e-4).sqrt()
        else:
            shift = {"sd3": 0.0609, "z_image": 0.1159}.get(name, 0.0)
            scale = {"sd3": 1.5305, "z_image": 0.3611, "sdxl": 0.13025}.get(name, 0.18215)
            assert config.scaling_factor == scale
            wanted = (raw - shift) * scale
        found = model.encode(picture)
        assert torch.allclose(found, wanted, atol=1e-5)
        assert torch.allclose(model.decode(found), model.vae.decode(raw).sample, atol=1e-4)
    with pytest.raises(ModelError, match="must be a multiple of .* pixels wide, not 15"):
        model.encode(torch.zeros(1, 3, 15, 15))


@pytest.mark.parametrize("name", ["pixel", "sd", "sd_v", "sdxl"])
def test_what_a_unet_is_asked(load, name):
    model = load(name)
    calls = listen(model)
    clean, noise = noise_for(model)
    timestep = torch.tensor([120, 730])
    noisy = add_noise(clean, noise, model.alphas_cumprod[timestep])
    prediction = model.predict(noisy, timestep, Views())
    (positional, named, output) = calls[0]
    assert len(calls) == 1 and torch.equal(positional[0], torch.cat((noisy, noisy)))
    assert positional[1].tolist() == [120, 730, 120, 730] and positional[1].dtype == torch.int64
    text = named["encoder_hidden_states"]
    assert text.shape == (4, 77, {"pixel": 16, "sdxl": 28}.get(name, 16))
    assert torch.equal(text[0], text[1]) and not torch.equal(text[0], text[2]), "with the prompt, then without it"
    answer = output.sample
    assert answer.shape[1] == (6 if name == "pixel" else 4)
    a, s = (root.view(-1, 1, 1, 1) for root in (model.alphas_cumprod[timestep].sqrt(),
                                                (1 - model.alphas_cumprod[timestep]).sqrt()))  # fmt: skip
    first = answer[:2, :3] if name == "pixel" else answer[:2]
    wanted = a * noisy - s * first if name == "sd_v" else (noisy - s * first) / a
    assert torch.allclose(prediction.conditional, wanted, atol=1e-4)
    told = named.get("added_cond_kwargs")
    if name != "sdxl":
        assert not told
        return
    assert told["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 4
    assert told["text_embeds"].shape == (4, 12)
    assert not told["text_embeds"][2:].any() and not text[2:].any(), "no words are zeros to SDXL"
    assert told["text_embeds"][:2].any()
    model.predict(torch.randn(1, 4, 4, 6), timestep[:1], Views(), guided=False)
    assert calls[1][1]["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 8, 12]], "height before width"


@pytest.mark.parametrize("name", FLOWS)
def test_what_a_flow_network_is_asked(load, name):
    model = load(name)
    calls = listen(model)
    clean, noise = noise_for(model)
    timestep = torch.tensor([499, 989])
    prediction = model.predict(add_noise(clean, noise, model.alphas_cumprod[timestep]), timestep, Views())
    sigma = model.sigmas[timestep]
    if name != "klein":  # shift 3: 0.5 -> 0.75, 0.99 -> 2.97 / 2.98
        assert torch.allclose(sigma, torch.tensor([0.75, 2.97 / 2.98]), atol=1e-6)
    wide = sigma.view(-1, 1, 1, 1)
    x = (1 - wide) * clean + wide * noise
    positional, named, output = calls[0]
    if name == "z_image":
        asked, time, texts = torch.stack(positional[0]).squeeze(2), positional[1], positional[2]
        assert torch.allclose(time, 1 - torch.cat((sigma, sigma)), atol=1e-6)
        assert [len(text) for text in texts] == [60, 60, 49, 49], "texts are not padded"
        velocity = -torch.stack(output[0]).squeeze(2)
    else:
        asked, time = named["hidden_states"], named["timestep"]
        unit = 1000 if name == "sd3" else 1
        assert torch.allclose(time, unit * torch.cat((sigma, sigma)), rtol=1e-6)
        velocity = output.sample
        if name == "sd3":
            assert named["pooled_projections"].shape == (4, 28)
        else:
            assert named["guidance"] is None and asked.shape == (4, 16, 16)
            asked, velocity = (tokens.permute(0, 2, 1).reshape(4, 16, 4, 4) for tokens in (asked, velocity))
            assert named["img_ids"][0, :, 1:3].tolist() == [[h, w] for h in range(4) for w in range(4)]
    assert torch.allclose(asked, torch.cat((x, x)), atol=1e-5), "the flow's own units"
    assert torch.allclose(prediction.conditional, x - wide * velocity[:2], atol=1e-5)


def test_all_kinds_of_answers_mean_the_same_picture():
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(6, 4, 8, 8, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.02, 0.2, 0.5, 0.7, 0.9, 0.98])
    alpha_bar = conversions.flow_alpha_bar(sigma)
    a, s, wide = (v.view(-1, 1, 1, 1) for v in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), sigma))
    noisy = add_noise(x0, noise, alpha_bar)
    found = {
        "epsilon": conversions.from_vp("epsilon", noisy, noise, alpha_bar),
        "v_prediction": conversions.from_vp("v_prediction", noisy, a * noise - s * x0, alpha_bar),
        "sample": conversions.from_vp("sample", noisy, x0, alpha_bar),
        "flow": conversions.from_flow((1 - wide) * x0 + wide * noise, noise - x0, sigma),
    }
    for name, x0_hat in found.items():
        assert (x0_hat - x0).abs().max() < 1e-5 * (50 if name == "epsilon" else 1), name
        assert (x0_hat - x0)[:5].abs().max() < 1e-5, name
    unit = conversions.flow_unit(sigma).view(-1, 1, 1, 1)
    assert torch.allclose(noisy * unit, (1 - wide) * x0 + wide * noise, atol=1e-5)
    alpha_bar = conversions.flow_alpha_bar(sigma.double())
    assert torch.allclose(((1 - alpha_bar) / alpha_bar).sqrt(), (sigma / (1 - sigma)).double(), rtol=1e-5)
    assert torch.allclose(conversions.shifted(1000, 3.0)[[499, 999]], torch.tensor([0.75, 1.0]))
    assert torch.allclose(conversions.shifted(4, 1.0), torch.tensor([0.25, 0.5, 0.75, 1.0]))
    with pytest.raises(ValueError, match="predicts “score” is unknown; known are epsilon"):
        conversions.from_vp("score", noisy, noise, alpha_bar)


@pytest.mark.parametrize("name", ALL)
def test_the_prompt_is_read_once_and_its_reader_leaves_memory(load, name, monkeypatch):
    def readers():
        gc.collect()
        return sum(issubclass(type(thing), transformers.PreTrainedModel) for thing in gc.get_objects())

    before = readers()
    model = load(name)
    assert readers() == before
    monkeypatch.setattr(type(model), "encode_texts", lambda *_: pytest.fail("read again"))
    assert model.set_prompt("red plastic", "") == ()
    model.predict(*[noise_for(model)[1], torch.tensor([10, 900])], Views())


@pytest.mark.parametrize("name", ["sd", "z_image"])
def test_words_of_the_view_follow_the_camera(load, name):
    model = load(name, negative="blurry")
    noise = noise_for(model, 5)[1][:1].expand(5, -1, -1, -1)
    timestep = torch.full((5,), 600)
    views = Views(torch.tensor([0.0, 90.0, 270.0, 180.0, 33.0]), torch.tensor([0.0, 0.0, 10.0, -20.0, 85.0]))
    found = model.predict(noise, timestep, views, guided=False).conditional
    each = ("front view", "side view", "side view", "back view", "overhead view")
    wanted = model.predict_words(noise, timestep, views, each)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert (found[0] - found[3]).abs().max() > 1e-3, "front and back are the same to it"
    other = model.predict(noise, timestep, views).unconditional
    assert torch.allclose(other, model.predict_words(noise, timestep, views, ("negative",) * 5), atol=1e-4)
    nothing = model.predict_words(noise, timestep, views, ("nothing",) * 5)
    assert (other - nothing).abs().max() > 1e-4
    half = Views(torch.full((5,), 45.0), torch.zeros(5))
    mixed = model.words_of_views(half, 5).sequence[0]
    if name == "sd":
        assert torch.allclose(mixed, model._embedded.sequence[1:3].mean(0), atol=1e-6)
    else:
        assert model.words_of_views(half, 5).length[0] == model._embedded.length[2], "at 45 degrees: the side"


@pytest.mark.parametrize("name", ["pixel", "sdxl", "klein", "z_image"])
def test_memory_does_not_grow_with_the_views_and_batches_change_nothing(load, name):
    model = load(name)
    clean, noise = noise_for(model, 6)
    timestep = torch.tensor([50, 200, 400, 600, 800, 950])
    at_once = model.predict(noise, timestep, Views())
    calls = listen(model)
    model.rows = 2
    in_parts = model.predict(noise, timestep, Views())
    assert len(calls) == 6
    for positional, named, _ in calls:
        asked = named.get("hidden_states", positional[0] if positional else None)
        assert len(asked) <= 2
    assert torch.allclose(at_once.conditional, in_parts.conditional, atol=1e-4, rtol=1e-4)
    assert torch.allclose(at_once.unconditional, in_parts.unconditional, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", list(GUIDANCE))
@pytest.mark.parametrize("name", ["pixel", "sd", "sd3"])
def test_every_guidance_takes_its_aim_with_every_kind_of_space(load, name, method):
    model = load(name, negative="blurry")
    size = model.render_size
    x0 = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    views = Views(torch.tensor([0.0, 130.0, 250.0]), torch.tensor([0.0, 30.0, 55.0]), size)
    mask = torch.ones(3, 1, size, size)
    options = Options(rescale=0.5, threshold_percentile=0.95, perp_neg=True, negative_prompt=True)

    def take(scale, options):
        companion = model.companion(0) if method in TRAINED else None
        return take_aim(
            model, x0, views, mask, 0.4, method, scale, options, torch.Generator().manual_seed(0), companion
        )

    aim = take(7.5, options)
    assert aim.picture.shape == x0.shape and aim.weight.shape == (3,) and (aim.weight > 0).all()
    assert torch.isfinite(aim.picture).all() and not aim.picture.requires_grad
    again = take(7.5, options)
    assert torch.equal(aim.picture, again.picture)
    other = take(0.0, options)
    assert not torch.equal(aim.picture, other.picture), "the scale has no effect"
    if size == 16:
        assert take(7.5, Options(joint_views=True)).picture.shape == x0.shape


def test_a_distilled_model_says_what_it_is_good_for(tmp_path):
    toy_models.save("klein", tmp_path / "fast", distilled=True)
    model = families.load(tmp_path / "fast", CPU)
    (sentence,) = model.set_prompt("red plastic", "")
    assert "fast was distilled" in sentence and "k_step" in sentence and model.guidance_scale == 1.0


def test_sd3_does_without_its_largest_reader(tmp_path):
    toy_models.save("sd3", tmp_path / "small", t5=False)
    model = families.load(tmp_path / "small", CPU)
    assert model.set_prompt("red plastic", "") == ()
    prediction = model.predict(torch.randn(1, 8, 8, 8), torch.tensor([500]), Views())
    assert torch.isfinite(prediction.conditional).all()


def test_a_prompt_that_is_cut_is_told(load):
    model = load("sd")
    (sentence,) = model.set_prompt("red " * 60, "")
    assert sentence == "The prompt is too long for sd: its end was not read."


def test_precision_follows_the_device():
    assert worded.working_dtype(CPU) == torch.float32
    assert worded.working_dtype(torch.device("mps")) == torch.float16


CUBE = """v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
f 1 4 3 2
f 5 6 7 8
f 1 2 6 5
f 2 3 7 6
f 3 4 8 7
f 4 1 5 8
"""


@pytest.mark.parametrize("name", ALL)
def test_the_command_textures_a_mesh_with_a_folder(folders, tmp_path, name):
    """python -m backend texture MESH --prompt … --model FOLDER --out DIR"""
    (tmp_path / "cube.obj").write_text(CUBE)
    model = folders(name)
    if name == "pixel":  # a picture of 8 pixels is too small to look at anything
        model = toy_models.save(name, tmp_path / "pixel")
        config = json.loads((model / "unet" / "config.json").read_text())
        (model / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": 16}))
    arguments = ["texture", tmp_path / "cube.obj", "--prompt", "red plastic", "--model", model, "--out",
                 tmp_path / "out", "--steps", "2", "--texture-size", "512", "--device", "cpu"]  # fmt: skip
    assert command.main([str(argument) for argument in arguments]) == protocol.EXIT_OK
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"] == name and report["steps"] == 2
    for map_name in protocol.MAP_NAMES:
        image = np.asarray(Image.open(tmp_path / "out" / f"{map_name}.png"))
        assert image.shape[:2] == (512, 512)
