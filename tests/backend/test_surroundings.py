# SPDX-License-Identifier: GPL-3.0-or-later
"""Panoramas as a run's light: exposed alike, drawn and turned at random, and really what the pictures are lit by."""

from dataclasses import dataclass, field, replace

import numpy as np
import OpenEXR
import pytest
import torch
from test_panoramas import picture
from test_texturing import REQUEST, Shelf, job_in, run

from addon import protocol
from backend import panoramas, surroundings
from backend.diffusion.interface import Prediction
from backend.maps import read_map

WARM = np.array([1.0, 0.6, 0.3])


def write_exr(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    with OpenEXR.File({}, {"RGB": np.ascontiguousarray(pixels, np.float32)}) as file:
        file.write(str(path))


@dataclass
class WantsGrey:
    """A Denoiser to whom every picture should be grey, whatever the light; remembers the lights it was shown."""

    render_size: int = 32
    name: str = "grey"
    guidance_scale: float = 1.0
    background: float | None = 0.5
    lights: list = field(default_factory=list)

    @property
    def alphas_cumprod(self):
        return torch.cos(torch.linspace(0.02, 1.55, 1000)) ** 2

    def set_prompt(self, prompt, negative_prompt):
        return ()

    def predict(self, noisy, timestep, scene, guided=True):
        self.lights.append(scene.lights)
        grey = torch.zeros_like(noisy)
        return Prediction(grey, grey)


@pytest.mark.parametrize("strength", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("lamp", [0.0, 60.0])
def test_panoramas_of_any_brightness_are_exposed_alike(strength, lamp):
    made = surroundings.exposed(panoramas.from_panorama(strength * picture(64, lamp)))
    lights = panoramas.lights([made], torch.zeros(1, dtype=torch.long))
    normals = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    wall = (
        lights.constant + 2 / 3 * torch.einsum("ni,bic->nc", normals, lights.linear)
        + torch.einsum("biic->bc", lights.quadratic) / 4
        + torch.einsum("ni,nj,bijc->nc", normals, normals, lights.quadratic) / 4
        + lights.residuals.diffuse(torch.zeros(4000, dtype=torch.long), normals)
        + (normals @ lights.sun_direction[0].T).clamp(min=0) @ lights.sun_irradiance[0] / np.pi
    )  # fmt: skip
    assert float(wall.mean(1).max()) == pytest.approx(surroundings.WHITE_WALL, rel=0.03)


def test_all_panoramas_are_drawn_and_turned():
    made = [surroundings.exposed(panoramas.from_panorama(c * picture(64))) for c in ([1.0, 0.1, 0.1], [0.1, 0.1, 1.0])]
    lights = surroundings.draw(made, 40, torch.Generator().manual_seed(0))
    red = lights.constant[:, 0] > lights.constant[:, 2]
    assert 8 < int(red.sum()) < 32
    brightest = lights.sun_direction[torch.arange(40), lights.sun_irradiance.mean(2).argmax(1)]
    assert float(brightest.mean(0).norm()) < 0.35, "light comes from all sides"
    again = surroundings.draw(made, 40, torch.Generator().manual_seed(0))
    assert torch.equal(again.linear, lights.linear)


def test_a_run_is_lit_by_the_panoramas_of_its_request(tmp_path):
    found = {}
    for name, request in (
        ("own", replace(REQUEST, steps=60)),
        ("warm", replace(REQUEST, steps=60, panoramas="lights")),
    ):
        job, model = job_in(tmp_path / name), WantsGrey()
        write_exr(job.lights / "warm.exr", 50 * WARM * np.ones((64, 128, 3)))
        events = run(job, request, shelf=Shelf(model))
        assert isinstance(events[-1], protocol.Done)
        assert len(model.lights) > 60
        assert all((lights.residuals is not None) == (name == "warm") for lights in model.lights)
        color = read_map(job.maps / "base_color.png").reshape(-1, 3).mean(0)
        found[name] = color / color.mean()
    print(found)
    # What looks grey under warm light is blue; under all colours of light it is grey.
    assert np.abs(found["own"] - 1).max() < 0.1
    assert found["warm"][2] > 1.2 and found["warm"][0] < 0.85


def test_light_that_cannot_be_used_gets_a_sentence(tmp_path):
    write_exr(tmp_path / "black" / "night.exr", np.zeros((32, 64, 3)))
    write_exr(tmp_path / "square" / "square.exr", np.ones((32, 32, 3)))
    (tmp_path / "empty").mkdir()
    for name, sentence in (
        ("black", "night.exr is black"),
        ("square", "square.exr: An environment is twice as wide as high"),
        ("empty", "holds no .exr or .hdr file"),
        ("none", "is no folder"),
    ):
        job = job_in(tmp_path / f"job {name}")
        with pytest.raises(protocol.ProtocolError, match=sentence):
            run(job, replace(REQUEST, panoramas=str(tmp_path / name)))
    with pytest.raises(protocol.ProtocolError, match="staged as in dreamfusion"):
        surroundings.read(tmp_path / "black", "dreamfusion")
