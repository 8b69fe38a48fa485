# SPDX-License-Identifier: GPL-3.0-or-later
"""What all methods share: saturation in the published order, thresholds, timesteps, options, joint views."""

import math
from dataclasses import dataclass

import priors_for_tests as priors
import pytest
import torch

from addon import protocol
from backend import planning
from backend.diffusion.interface import Prediction
from backend.distillation import (
    Options,
    guidance_scale,
    published,
    rescale,
    take_aim,
    threshold,
    timesteps,
)
from backend.guidance import GUIDANCE, GuidanceError
from backend.tiling import tile, untile

EVEN = {"highest": (0.98, 0.98), "lowest": (0.02, 0.02)}


def contrast(method, w, options, schedule, steps=400):
    """research.md 1.5's toy: a picture of 4096 pixels painted by Adam; its contrast, where 1 is the prompt's own."""
    prompt = (0.3 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(7))).clamp(-0.9, 0.9)
    model = priors.Gaussian((prompt, 0.3), (0.0, 0.5), alphas_cumprod=schedule.float())
    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(1, 1, 64, 64, requires_grad=True)
    optimiser, mask = torch.optim.Adam([x], lr=0.02), torch.ones(1, 1, 64, 64)
    for step in range(steps):
        aim = take_aim(model, x.detach(), None, mask, step / steps, method, w, options, generator)
        x.grad = aim.gradient(x.detach())
        optimiser.step()
    return float(x.detach().std() / prompt.std())


def test_over_saturation_and_its_cures_come_in_the_published_order():
    """The first table of research.md 1.5. Plain thresholding at most 1.5 and a plain clamp are as good as equal in it
    (they swap from w = 7.5 to w = 15), so nothing is asked of that pair."""
    half = Options(threshold_percentile=0.95, threshold_bound=1.5)
    ways = {
        "none": ("sds", Options()),
        "clamp": ("clamped", Options()),
        "half": ("sds", half),
        "unbounded": ("sds", Options(threshold_percentile=0.95)),
        "full": ("sds", Options(rescale=1.0)),
        "mix": ("sds", Options(rescale=0.7)),
    }
    tables = {
        7.5: (2.79, 2.15, 1.97, 1.56, 0.97, 1.87),
        15.0: (3.62, 1.98, 2.08, 1.45, 0.91, 2.34),
        25.0: (3.31, 2.02, 1.99, 1.40, 0.89, 2.86),
    }
    for w, table in tables.items():
        found = {name: contrast(*way[:1], w, way[1], priors.COSINE) for name, way in ways.items()}
        assert found["none"] > max(found["clamp"], found["half"], found["mix"]), found
        assert min(found["clamp"], found["half"], found["mix"]) > found["unbounded"] > found["full"], found
        assert abs(found["full"] - 1) < 0.12, "only the full rescale comes out with the prompt's contrast"
        for name, value in zip(ways, table, strict=True):
            assert found[name] == pytest.approx(value, rel=0.12), f"w = {w}, {name}"
        assert w == 7.5 or found["mix"] > found["clamp"], "from w = 15 on a part of the saturation is too much"


def test_the_methods_saturate_in_the_published_order():
    """The second line of research.md 1.5: even timesteps (ISM: up to a half), linear betas, w = 7.5; the published
    contrasts are 16.8, 5.1, 4.6, 3.3, 2.6, 1.3 and 0.99, and 1.7 to 1.5 for multi-step targets. Unbounded thresholding
    comes out at 1.55 and they at 1.5 to 1.6, so nothing is asked of that pair."""
    ways = {
        "csd": ("csd", Options(**EVEN)),
        "ism": ("ism", Options(highest=(0.5, 0.5), lowest=(0.02, 0.02))),
        "sds": ("sds", Options(**EVEN)),
        "sdi": ("sdi", Options(weighting="sds", **EVEN)),
        "clamp": ("clamped", Options(**EVEN)),
        "unbounded": ("sds", Options(threshold_percentile=0.95, **EVEN)),
        "full": ("sds", Options(rescale=1.0, **EVEN)),
    }
    found = {name: contrast(method, 7.5, options, priors.LINEAR, 300) for name, (method, options) in ways.items()}
    assert list(found) == sorted(found, key=found.get, reverse=True), found
    for name, value in {"ism": 5.1, "sds": 4.6, "sdi": 3.3, "clamp": 2.6, "full": 0.99}.items():
        assert found[name] == pytest.approx(value, rel=0.12), name
    for steps, value in {4: 1.65, 10: 1.5, 25: 1.7}.items():
        multi = contrast("k_step", 7.5, Options(k_steps=steps, **EVEN), priors.LINEAR, 300)
        assert found["full"] < multi < found["clamp"] and multi == pytest.approx(value, rel=0.12), steps
    alone = contrast("k_step", 1.0, Options(k_steps=10, **EVEN), priors.LINEAR, 300)
    assert abs(alone - 1) < 0.1, "without exaggeration a multi-step target has the prompt's contrast"


def test_dynamic_thresholding():
    generator = torch.Generator().manual_seed(0)
    tame = 2 * torch.rand(2, 3, 8, 8, generator=generator) - 1
    assert torch.equal(threshold(tame, 0.95, math.inf), tame), "what is in gamut stays"
    wild = 3 * torch.randn(2, 3, 32, 32, generator=generator)
    wild[1] *= 2
    assert torch.equal(threshold(wild, 0.0, math.inf), wild), "off"
    unbounded = threshold(wild, 0.95, math.inf)
    assert unbounded.abs().max() == 1 and abs(float((unbounded.abs() == 1).float().mean()) - 0.05) < 0.01
    q = torch.quantile(wild[0].abs().flatten(), 0.95)
    assert torch.allclose(unbounded[0], wild[0].clamp(-q, q) / q), "each picture has a bound of its own"
    assert torch.allclose(threshold(wild, 0.95, 1.5), wild.clamp(-1.5, 1.5) / 1.5)
    assert torch.equal(threshold(wild, 0.95, 1.0), wild.clamp(-1, 1))


def test_rescaling_takes_over_mean_and_contrast_of_the_object():
    generator = torch.Generator().manual_seed(5)
    conditional = 0.2 * torch.randn(2, 3, 16, 16, generator=generator) + 0.1
    guided = 3 * torch.randn(2, 3, 16, 16, generator=generator) - 0.4
    mask = (torch.rand(2, 1, 16, 16, generator=generator) < 0.4).float()
    # What lies outside of the object has no say.
    guided_outside = torch.where(mask > 0, guided, 100.0)

    def moments(x):
        inside = [[x[b, c][mask[b, 0] > 0] for c in range(3)] for b in range(2)]
        return torch.tensor([[[v.mean(), v.std(unbiased=False)] for v in row] for row in inside])

    full = rescale(guided_outside, conditional, mask, 1.0)
    assert torch.allclose(moments(full), moments(conditional), atol=1e-4)
    inside = mask.expand_as(guided) > 0
    one, other = full[inside], guided[inside]
    assert torch.corrcoef(torch.stack((one[:50], other[:50])))[0, 1] > 0.9, "the picture itself is kept"
    assert rescale(guided, conditional, mask, 0.0) is guided
    half = rescale(guided, conditional, mask, 0.5)
    assert torch.allclose(half, 0.5 * (guided + rescale(guided, conditional, mask, 1.0)), atol=1e-5)
    flat = torch.full_like(guided, 0.7)
    assert torch.isfinite(rescale(flat, flat, mask, 1.0)).all()
    assert torch.isfinite(rescale(guided, conditional, torch.zeros_like(mask), 1.0)).all()


def test_timesteps_are_stratified_and_their_range_narrows():
    generator = torch.Generator().manual_seed(6)
    widths, tops = [], []
    for fraction in (0.0, 0.25, 0.5, 1.0):
        drawn = torch.stack([timesteps(8, fraction, 1000, generator) for _ in range(300)])
        assert drawn.dtype == torch.int64 and drawn.min() >= 0 and drawn.max() < 1000
        low, high = drawn.min(), drawn.max()
        ordered = torch.sort(drawn, dim=1)[0]
        strata = ((ordered - low) * 8 / (high - low + 1)).floor()
        assert ((strata - torch.arange(8)).abs() <= 1).all(), "the batch does not spread over the range"
        assert (ordered[:, 1:] - ordered[:, :-1]).float().mean() == pytest.approx(float(high - low) / 8, rel=0.15)
        assert drawn.float().mean(0).std() < 0.1 * (high - low), "a place in the batch means a time"
        widths.append(int(high - low))
        tops.append(int(high))
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.65 * widths[0]
    assert tops == sorted(tops, reverse=True) and tops[0] > 940 and tops[-1] < 520
    assert torch.equal(*(timesteps(4, 0.3, 1000, torch.Generator().manual_seed(1)) for _ in range(2)))
    assert timesteps(1, 1.0, 10, generator).max() < 10


def test_timesteps_follow_the_options():
    generator = torch.Generator().manual_seed(0)
    linear = Options(highest=(0.98, 0.25), lowest=(0.98, 0.25), anneal="linear")
    assert [int(timesteps(1, f, 1000, generator, linear)) for f in (0.0, 0.5, 1.0)] == [980, 615, 250]
    root = published("hifa")
    assert int(timesteps(1, 0.25, 1000, generator, root)) == 640
    narrow = Options(highest=(0.5, 0.5), lowest=(0.02, 0.02))
    drawn = torch.cat([timesteps(4, 0.7, 1000, generator, narrow) for _ in range(200)])
    assert 20 <= drawn.min() < 40 and 480 < drawn.max() <= 500
    assert not Options(stratified=False) == Options() == published("clamped")
    alone = torch.stack([timesteps(8, 0.0, 1000, generator, Options(stratified=False)) for _ in range(300)])
    assert 300 <= alone.min() < 310 and 970 < alone.max() <= 980
    spread = [torch.sort(alone, dim=1)[0], torch.stack([timesteps(8, 0.0, 1000, generator) for _ in range(300)])]
    lowest = [part.amin(1).float().std() for part in spread]
    assert lowest[0] > 1.8 * lowest[1], "drawn alone, a batch may leave out a part of the range"
    for name in GUIDANCE:
        assert (published(name) == Options()) == (name in ("clamped", "k_step"))
        assert published(name).rescale == (None if name in ("clamped", "k_step") else 0.0)


def test_the_scale_moves_from_its_start_to_its_end():
    assert [guidance_scale(15.0, Options(guidance_scale_end=5.0), p) for p in (0.0, 0.5, 1.0)] == [15.0, 10.0, 5.0]
    assert guidance_scale(7.5, Options(), 0.9) == 7.5


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"guidance_scale_end": -1.0}, "last guidance scale is -1.0; it must lie between 0 and 200"),
        ({"rescale": 1.5}, "Rescaling is 1.5; it must lie between 0 and 1"),
        ({"threshold_percentile": 1.0}, "percentile from 0 to 1"),
        ({"threshold_bound": 0.5}, "a bound of at least 1"),
        ({"highest": (0.2, 0.2)}, "Timesteps from 0.3 to 0.2 are no range"),
        ({"anneal": "cubic"}, "not “cubic”"),
        ({"weighting": "heavy"}, "no weighting “heavy”; there are sds, uniform"),
        ({"k_steps": 0}, "must be at least 1"),
        ({"k_steps": 100000}, "at most 1000: each is a call"),
        ({"threshold_bound": math.nan}, "a bound of at least 1"),
        ({"inversion_scale": math.nan}, "inversion_scale must be a number"),
        ({"inversion_noise": -1.0}, "inversion_noise one from 0 to 1"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Options(**wrong)


@pytest.mark.parametrize("scale", [-0.5, math.nan])
def test_a_scale_below_zero_is_refused(scale):
    zeros = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="guidance scale is .*; it must be 0 or more"):
        take_aim(None, zeros, None, zeros[:, :1], 0.0, "sds", scale, Options(), torch.Generator())


@dataclass(frozen=True)
class Picture:
    """The part of a Scene that is looked at here."""

    size: int
    azimuth_deg: object = 0
    elevation_deg: object = 0
    tiles: object = None


class Halving:
    """A latent model: latents are half the picture's size; it wants every latent to be 0.25, and loses detail."""

    name, sees_geometry, alphas_cumprod = "halving", False, priors.COSINE.float()
    render_size, guidance_scale = 8, 1.0

    def __init__(self):
        self.asked = []

    def encode(self, picture):
        return torch.nn.functional.avg_pool2d(picture, 2) * 3

    def decode(self, latent):
        return torch.nn.functional.interpolate(latent / 3, scale_factor=2)

    def predict(self, noisy, timestep, scene, guided=True):
        self.asked.append((tuple(noisy.shape), scene))
        return Prediction(torch.full_like(noisy, 0.75), torch.zeros_like(noisy))


def aim(model, method="clamped", w=1.0, options=None, count=4, size=8, seed=0):
    x0 = 0.5 * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, 1, size, size)
    return x0, take_aim(model, x0, Picture(size), mask, 0.0, method, w, options or Options(), generator)


def test_a_latent_models_target_is_the_decoded_picture():
    model = Halving()
    x0, found = aim(model)
    assert model.asked[0][0] == (4, 3, 4, 4), "noise belongs to the latents"
    assert torch.allclose(found.picture, torch.full_like(x0, 0.25))
    _, wild = aim(model, w=10.0)
    assert torch.equal(wild.picture, torch.ones_like(x0)), "clamped as a picture, not as latents"
    # What the autoencoder loses is no part of a difference of predictions.
    x0, moved = aim(model, "csd", w=1.0)
    assert torch.allclose(moved.picture, x0 + 0.25, atol=1e-6)


def test_joint_views_are_painted_as_one_picture():
    numbers = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    tiled = tile(numbers)
    assert tiled.shape == (1, 1, 4, 4)
    assert tiled[0, 0, :, 0].tolist() == [0, 0, 2, 2] and tiled[0, 0, :, 3].tolist() == [1, 1, 3, 3]
    eight = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(untile(tile(eight)), eight)
    model = Halving()
    plan = planning.make_plan(protocol.TextureRequest(prompt="x", options={"joint_views": "true"}), model)
    x0, found = aim(model, options=plan.options, count=6, size=plan.render_size)
    shape, scene = model.asked[0]
    assert shape == (2, 3, 4, 4) and scene.size == model.render_size and scene.azimuth_deg is None
    assert found.picture.shape == x0.shape and found.weight.shape == (6,)
    assert found.weight[:4].unique().numel() == 1, "views of one picture share its timestep"
    model.sees_geometry = True
    with pytest.raises(GuidanceError, match="“halving” looks at each view's geometry.*Switch joint views off"):
        aim(model, options=Options(joint_views=True))


def test_same_seed_same_aim_and_each_picture_its_own_weight():
    one, other = aim(Halving())[1], aim(Halving())[1]
    assert torch.equal(one.picture, other.picture) and torch.equal(one.weight, other.weight)
    assert one.weight.unique().numel() == 4
    x0, found = aim(Halving(), options=Options(weighting="uniform"))
    assert torch.equal(found.gradient(x0), x0 - found.picture)
