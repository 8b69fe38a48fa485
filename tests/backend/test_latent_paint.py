# SPDX-License-Identifier: GPL-3.0-or-later
"""Latent-Paint: a latent texture takes what the model wants of the views, and is decoded once."""

from dataclasses import replace

import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch
import toy_models
from test_texturing import job_in

from addon import protocol
from backend import latent_paint, material, object_start, starts, texturing
from backend.diffusion import families
from backend.diffusion.interface import Prediction
from backend.distillation import Options
from backend.guidance import GuidanceError
from backend.rasterize import Triangles

RED, BLUE = (0.9, -0.6, -0.8, 0.1), (-0.7, -0.5, 0.8, 0.3)


class Latents:
    """Latents are the colour and a fourth channel, a quarter as wide; one half shall be red and the other blue."""

    name, render_size, guidance_scale, background, sees_geometry = "latents", 128, 1.0, None, False
    latent_colors = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)

    def __init__(self):
        self.decodings = 0

    @property
    def alphas_cumprod(self):
        return torch.cos(torch.linspace(0.02, 1.55, 1000)) ** 2

    def set_prompt(self, prompt, negative_prompt):
        return ()

    def encode(self, picture):
        small = torch.nn.functional.avg_pool2d(picture, 4)
        return torch.cat((small, 0 * small[:, :1]), dim=1)

    def decode(self, latent):
        self.decodings += 1
        return torch.nn.functional.interpolate(latent[:, :3], scale_factor=4, mode="bilinear")

    def predict(self, noisy, timestep, scene, guided=True):
        behind = (scene.gbuffer.position[:, :2].sum(1) > 0).long()
        wish = torch.tensor([RED, BLUE])[behind]
        if scene.gbuffer.coverage.shape[1] != noisy.shape[2]:  # asked for a picture, not for the texture's views
            return Prediction(noisy, noisy)
        picture = scene.gbuffer.picture(wish, torch.zeros(*scene.gbuffer.coverage.shape, 4)).permute(0, 3, 1, 2)
        return Prediction(picture, picture)


def test_the_texture_takes_what_the_model_wants_in_the_objects_frame():
    mesh = shapes.mesh_of(shapes.torus(24, 12))
    model, generator = Latents(), torch.Generator().manual_seed(0)
    mask = torch.from_numpy(mesh.face_mask)
    options = Options(weighting="uniform")
    steps = latent_paint.paint(model, Triangles.of(mesh), mask, "clamped", 1.0, 4, 250, options, generator, 128)
    *_, texture = steps
    assert texture.shape == (1, 4, 64, 64) and model.decodings == 0, "the autoencoder has no part in it"
    where = material.texels(mesh, 64)
    row, column = where.index // 64, where.index % 64
    uv = torch.stack(((column + 0.5) / 64, 1 - (row + 0.5) / 64), dim=1)
    aslant = where.position[:, :2].sum(1)
    decoded = latent_paint.decoded(model, texture)
    for found in (latent_paint.at(texture, uv)[:, :3], latent_paint.colors(decoded, where) * 2 - 1):
        for side, wish in ((aslant < -0.3, RED), (aslant > 0.3, BLUE)):
            assert (found[side].mean(0) - torch.tensor(wish[:3])).abs().max() < 0.1
    assert model.decodings == 1


@pytest.mark.parametrize(
    ("family", "grey", "first"),
    [
        ("sd", (0.5, 0.5, 0.5), (0.649, 0.6035, 0.604)),
        ("sdxl", (150 / 255, 140 / 255, 130 / 255), (210 / 255, 200 / 255, 190 / 255)),
        ("sd3", None, None),
    ],
)
def test_the_linear_preview_is_the_autoencoders(family, grey, first, tmp_path):
    """Two autoencoders of four channels mean different colours by them."""
    model = families.load(toy_models.save(family, tmp_path / "model"), torch.device("cpu"))
    texture = torch.zeros_like(model.encode(torch.zeros(1, 3, 32, 32)))
    if grey is None:
        assert latent_paint.preview(model, texture) is None
        return
    assert torch.allclose(latent_paint.preview(model, texture)[0, :, 0, 0], torch.tensor(grey), atol=1e-3)
    texture[:, 0] = 1.0
    assert torch.allclose(latent_paint.preview(model, texture)[0, :, 0, 0], torch.tensor(first), atol=1e-3)
    model.vae.register_to_config(scaling_factor=0.5)  # Playground's, in SDXL's pipeline
    assert latent_paint.preview(model, texture) is None


def test_models_without_latents_and_controls_are_refused():
    triangles = Triangles.of(shapes.mesh_of(shapes.torus(16, 8)))
    pixels = oracle.Oracle(lambda gbuffer: None)
    arguments = triangles, torch.ones(256), "sds", 1.0, 2, 2, Options(), torch.Generator(), 64
    with pytest.raises(GuidanceError, match="“oracle” paints pixels and has no latents. Begin with uniform"):
        next(latent_paint.paint(pixels, *arguments))
    model = Latents()
    model.control = object()
    with pytest.raises(GuidanceError, match="Latent-Paint takes no control"):
        next(latent_paint.paint(model, *arguments))


def test_a_run_ends_with_it_as_a_method_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(starts, "SHOWN_SECONDS", 0.0)
    model = Latents()
    shelf = type("Shelf", (), {"get": lambda self, name, device: model})()
    request = protocol.TextureRequest(
        prompt="x", texture_size=512, start="latent_paint", guidance="none", device="cpu", options={"latent_steps": "3"}
    )
    events = list(texturing.run(request, job_in(tmp_path / "latents"), shelf, lambda: None))
    assert isinstance(events[-1], protocol.Done) and events[0].total_steps == 0
    assert "Painting latents" in [event.stage for event in events if isinstance(event, protocol.Progress)]
    assert sum(isinstance(event, protocol.Preview) for event in events) == 4, "one a step, and the start"


def test_it_takes_the_size_and_the_timesteps_that_were_asked_for(tmp_path, monkeypatch):
    model, seen, own = Latents(), [], latent_paint.paint
    monkeypatch.setattr(object_start, "FIT_STEPS", 5)
    monkeypatch.setattr(latent_paint, "paint", lambda *arguments: seen.append(arguments) or own(*arguments))
    shelf = type("Shelf", (), {"get": lambda self, name, device: model})()
    request = protocol.TextureRequest(prompt="x", texture_size=512, start="latent_paint", guidance="none", device="cpu")
    said = {"latent_steps": "2", "highest": "0.4,0.3", "lowest": "0.2,0.1"}
    encoded = []
    monkeypatch.setattr(Latents, "encode", lambda self, picture, own=Latents.encode: (
        encoded.append(picture.shape[-1]) or own(self, picture)))
    list(texturing.run(replace(request, render_size=64, options=said), job_in(tmp_path / "said"), shelf, lambda: None))
    assert (seen[0][7].highest, seen[0][7].lowest) == ((0.4, 0.3), (0.2, 0.1)) and set(encoded) == {64}
    once = replace(request, guidance="sdi", steps=1, views=1, render_size=32, options={"latent_steps": "1"})
    list(texturing.run(once, job_in(tmp_path / "once"), shelf, lambda: None))
    assert seen[1][7].highest == seen[1][7].lowest == (0.98, 0.25), "from noise, and by the method's own timesteps"


@pytest.mark.parametrize(
    ("why", "end"), [("pause", protocol.Paused), pytest.param("cancel", protocol.Cancelled, marks=pytest.mark.slow)]
)
def test_a_start_that_is_stopped_leaves_nothing_and_is_made_again(tmp_path, why, end):
    model = Latents()
    shelf = type("Shelf", (), {"get": lambda self, name, device: model})()
    request = protocol.TextureRequest(
        prompt="x", texture_size=512, start="latent_paint", guidance="none", device="cpu", options={"latent_steps": "9"}
    )
    job, events, asked = job_in(tmp_path / "stopped"), [], []

    def third_time():
        if any(getattr(event, "stage", "") == "Painting latents" for event in events):
            asked.append(None)
        return why if len(asked) == 3 else None

    for event in texturing.run(request, job, shelf, third_time):
        events.append(event)
    assert isinstance(events[-1], end) and len(asked) == 3 and not job.checkpoint.exists()
    assert isinstance(list(texturing.run(request, job, shelf, lambda: None))[-1], protocol.Done)
