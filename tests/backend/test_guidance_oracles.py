# SPDX-License-Identifier: GPL-3.0-or-later
"""Every guidance beside models that know what they want: view words in the object's frame, and light painted in."""

import pytest
import torch

from backend import ggx_tables, lighting
from backend.diffusion.interface import Adaptable, Denoiser, Latent, Worded, decode, encode
from backend.diffusion.view_words import VIEWS
from backend.evaluate import _oracles as oracles
from backend.evaluate._shapes import sphere
from backend.evaluate.recovery import new_pool
from backend.guidance import GUIDANCE, TRAINED

TABLES = ggx_tables.load()
STEPS = 30
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("hifa", "ism", "sdi", "k_step", "nfsd", "vsd")]
METHODS = [*(name for name in GUIDANCE if name not in ("hifa", "ism", "sdi", "k_step", "nfsd", "vsd")), *SLOW]


@pytest.mark.parametrize("method", METHODS)
def test_view_words_come_out_right_in_the_objects_frame_under_changing_lights(method):
    """Red in front (-Y), green at both sides, blue behind, yellow on top. (Not with Perp-Neg: among colours, to be
    pushed off red is to be pulled to cyan, which real negatives are not.)"""
    found = oracles.view_words(method, STEPS)
    assert found["right"] == found["places"] == 6, found


def test_the_view_oracle_sees_words_that_turn_with_the_camera(monkeypatch):
    """A model whose words are a quarter turn off, or always the same, is found out."""
    shares = oracles.view_shares
    monkeypatch.setattr(oracles, "view_shares", lambda azimuth, elevation: shares(azimuth + 90, elevation))
    found = oracles.view_words("clamped", STEPS)
    assert found["right"] <= 2 and found["margin"] < 0, found


@pytest.mark.parametrize("family", oracles.FAMILIES)
def test_light_that_a_model_wants_painted_in_is_measured(family):
    """As a share of the base colour: much, where the model wants it; where it paints under the given lights, little."""
    wanted, not_wanted = (oracles.baked_light("clamped", family, STEPS, wanted=wanted) for wanted in (True, False))
    assert wanted > 0.05 and not_wanted < 0.6 * wanted, (wanted, not_wanted)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in GUIDANCE if name != "clamped"])
def test_every_guidance_has_its_number_of_baked_light(method):
    assert 0.02 < oracles.baked_light(method, "latents (SD)", STEPS) < 3


def test_the_oracles_are_models_like_others():
    pool = new_pool(sphere(16, 8), oracles.PICTURE, 0)
    scene = pool.scene([0, 1], lighting.sample(2, torch.Generator().manual_seed(0)), 1.0, torch.zeros(3))
    noisy = torch.zeros(2, 3, oracles.PICTURE, oracles.PICTURE)
    time = torch.tensor([200, 700])
    for family, (_, factor) in oracles.FAMILIES.items():
        model: Denoiser = oracles.painter(oracles.by_view_words(TABLES), family)
        assert isinstance(model, Worded) and isinstance(model, Adaptable) and isinstance(model, Latent) == (factor > 1)
        assert len(model.alphas_cumprod) == 1000 and (model.alphas_cumprod.diff() < 0).all()
        latents = encode(model, noisy)
        assert latents.shape[-1] == oracles.PICTURE // factor
        prediction = model.predict(latents, time, scene)
        assert prediction.conditional.shape == latents.shape
        assert decode(model, prediction.conditional).shape == noisy.shape
        front, nothing = (
            model.predict_words(latents, time, scene, (words,) * 2) for words in ("front view", "nothing")
        )
        assert torch.equal(nothing, prediction.unconditional) and not torch.allclose(front, nothing, atol=0.1)
    assert tuple(oracles.COLOURS) == VIEWS and TRAINED == ("vsd",)


def test_the_companion_learns_mean_and_deviation_of_the_pictures():
    companion = oracles.GaussianCompanion(oracles.FAMILIES["pixels (IF)"][0]())
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1)
    for _ in range(80):
        companion.learn(wanted + 0.2 * torch.randn(4, 3, 16, 16, generator=generator), None, generator)
    late, early = (companion.predict(torch.zeros(1, 3, 2, 2), torch.tensor([t]), None) for t in (995, 0))
    assert torch.allclose(late, wanted.expand_as(late), atol=0.03), "nothing but noise: the mean"
    assert torch.allclose(early, torch.zeros(1), atol=0.01), "hardly any noise: the picture itself"
    assert torch.allclose(companion.variance.sqrt(), torch.tensor(0.2), atol=0.03)
