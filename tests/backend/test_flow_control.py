# SPDX-License-Identifier: GPL-3.0-or-later
"""ControlNets of the flow models: what they are asked, and that they work as in diffusers' own pipelines."""

from dataclasses import replace

import diffusers
import pytest
import shapes_for_tests as shapes
import torch
import toy_models
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from test_control import scene_of, texture
from test_families import CPU

from addon import protocol
from backend.diffusion import control, families
from backend.diffusion.folder import FolderError
from backend.diffusion.interface import Controllable, ModelError
from backend.diffusion.memory import Memory
from backend.guidance import classifier_free

KINDS = {"sd3": {}, "sd3-shared": {"shared": True}, "z_image": {}, "z_image-2": {"channels": 9}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("flow-control")
    for name in ("sd3", "z_image", "klein"):
        toy_models.save(name, home / name)
    for name, settings in KINDS.items():
        toy_models.save_control(name.partition("-")[0], home / f"{name}-depth", **settings)
    return home


def loaded(home, kind, strength=0.7):
    model = families.load(home / kind.partition("-")[0], CPU)
    model.set_prompt("red plastic", "blurry")
    if strength:
        model.set_control(home / f"{kind}-depth", "", strength)
    return model


def scene(count=1):
    return scene_of(shapes.torus(16, 8), 16, (30.0, 120.0, 200.0)[:count])


def noise(model, count=1):
    return torch.randn(count, 8, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_diffusers_own_control_pipeline_is_our_prediction(home, kind, monkeypatch):
    name, scale = kind.partition("-")[0], 3.0
    seen, model = replace(scene(), azimuth_deg=None, elevation_deg=None), loaded(home, kind)
    noisy = noise(model)
    ours = classifier_free(model.predict(noisy, torch.tensor([999]), seen), scale)
    picture = control.shown("depth", seen)
    # SD3's pipeline draws from what the autoencoder says; we take its middle.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    kinds = {"sd3": ("SD3ControlNetModel", "StableDiffusion3ControlNetPipeline"),
             "z_image": ("ZImageControlNetModel", "ZImageControlNetPipeline")}  # fmt: skip
    net = getattr(diffusers, kinds[name][0]).from_pretrained(home / f"{kind}-depth", low_cpu_mem_usage=False)
    whole = diffusers.DiffusionPipeline.from_pretrained(home / name, local_files_only=True)
    pipeline = getattr(diffusers, kinds[name][1])(**whole.components, controlnet=net)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        prompt="red plastic", negative_prompt="blurry", control_image=picture * 2 - 1, height=16, width=16,
        num_inference_steps=1, sigmas=[1.0], latents=noisy, controlnet_conditioning_scale=0.7, output_type="latent",
        guidance_scale=scale - 1 if name == "z_image" else scale,
    )[0]  # fmt: skip
    assert torch.allclose(found, ours, atol=2e-4, rtol=1e-4), float((found - ours).abs().max())
    model.set_control(None, "", 1.0)
    without = classifier_free(model.predict(noisy, torch.tensor([999]), seen), scale)
    assert (ours - without).abs().max() > 0.02, "the control has no say"
    assert torch.equal(without, classifier_free(loaded(home, kind, 0).predict(noisy, torch.tensor([999]), seen), scale))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_control_is_asked(home, kind):
    model, seen = loaded(home, kind), scene()
    calls = []
    model.control.net.register_forward_hook(
        lambda module, positional, named, output: calls.append((positional, named)), with_kwargs=True
    )
    model.predict(noise(model), torch.tensor([499]), seen)
    ((positional, named),) = calls
    picture = control.shown("depth", seen) * 2 - 1
    raw = model.vae.encode(picture).latent_dist.mode()
    assert named["conditioning_scale"] == 0.7
    if kind.startswith("z_image"):
        x, time, texts, latent = positional
        assert len(x) == len(texts) == 2 and torch.allclose(time, torch.full((2,), 0.25)), "its time runs backwards"
        assert latent.shape == (2, 9 if kind == "z_image-2" else 8, 1, 8, 8)
        assert torch.allclose(latent[0, :8, 0], (raw[0] - 0.1159) * 0.3611, atol=1e-5) and not latent[:, 8:].any()
        assert torch.equal(latent[0], latent[1]), "with the prompt and without it"
        return
    assert torch.allclose(named["timestep"], torch.full((2,), 750.0)), "0.5 shifted by 3"
    shift = 0.0609 if kind == "sd3-shared" else 0.0
    assert torch.allclose(named["controlnet_cond"], ((raw - shift) * 1.5305).expand(2, -1, -1, -1), atol=1e-5)
    assert bool(named["pooled_projections"].any()) is (kind == "sd3-shared")
    assert (named["encoder_hidden_states"] is None) is (kind == "sd3-shared")


@pytest.mark.parametrize("kind", ["sd3", "z_image"])
def test_every_part_of_a_batch_is_shown_its_own_picture_wherever_the_networks_are(home, kind):
    model, seen = loaded(home, kind), scene(3)
    noisy, times = noise(model, 3), torch.tensor([100, 500, 900])
    at_once = model.predict(noisy, times, seen)
    model.set_memory(Memory(rows=2, offload="parts"))
    in_parts = model.predict(noisy, times, seen)
    assert torch.allclose(at_once.conditional, in_parts.conditional, atol=1e-4)
    assert torch.allclose(at_once.unconditional, in_parts.unconditional, atol=1e-4)
    if kind == "sd3":
        model.set_memory(Memory(offload="blocks"))
        assert torch.allclose(at_once.conditional, model.predict(noisy, times, seen).conditional, atol=1e-4)
    else:
        with pytest.raises(ModelError, match="The control of “z_image” works with parts of its network.*offload=parts"):
            model.set_memory(Memory(offload="blocks"))


def test_controls_for_others_get_a_sentence_each(home, tmp_path):
    toy_models.save("sd", tmp_path / "sd")
    toy_models.save_control("sd", tmp_path / "sd-depth")
    toy_models.save_control("sd3", tmp_path / "wide-depth", num_attention_heads=4, caption_projection_dim=32)
    toy_models.save_control("sd3", tmp_path / "inpaint-depth", extra_conditioning_channels=1)
    toy_models.save_control("z_image", tmp_path / "deep-depth", n_refiner_layers=2)
    other = "is made for another family of models than"
    for model, folder, sentence in (
        ("sd3", tmp_path / "sd-depth", f"{other} “sd3” \\(it is a ControlNetModel, which is no SD3ControlNetModel"),
        ("z_image", home / "sd3-depth", f"{other} “z_image” \\(it is a SD3ControlNetModel, which is no ZImageControl"),
        ("sd3", tmp_path / "wide-depth", f"{other} “sd3” \\(num_attention_heads is 4 in the one and 2 in the other"),
        ("sd3", tmp_path / "inpaint-depth", "inpaint-depth is made for inpainting. Choose one of depth or normals."),
        ("z_image", tmp_path / "deep-depth", f"{other} “z_image” \\(n_refiner_layers is 2 in the one and 1 in the"),
    ):
        with pytest.raises(FolderError, match=sentence) as caught:
            families.load(home / model, CPU).set_control(folder, "", 1.0)
        assert "\n" not in str(caught.value)
    with pytest.raises(FolderError, match=f"{other} “sd” \\(it is a SD3ControlNetModel"):
        families.load(tmp_path / "sd", CPU).set_control(home / "sd3-depth", "", 1.0)
    assert not isinstance(families.load(home / "klein", CPU), Controllable)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd3", "z_image"])
def test_the_command_textures_with_it(home, tmp_path, capsys, kind):
    given = "--model", home / kind, "--control", home / f"{kind}-depth", "--control-kind", "normal"
    code, told = texture(tmp_path, capsys, *given)
    assert code == protocol.EXIT_OK, told


def test_flux_says_that_it_takes_none(home, tmp_path, capsys):
    code, told = texture(tmp_path, capsys, "--model", home / "klein", "--control", home / "sd3-depth")
    assert code == protocol.EXIT_BAD_REQUEST
    assert "“klein” takes no control: only Stable Diffusion 1.5, 2.x, SDXL, SD3 and Z-Image do." in told
