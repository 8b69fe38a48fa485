# SPDX-License-Identifier: GPL-3.0-or-later
"""Every guidance against closed forms: Gaussian priors, mixtures, a model that knows the noise."""

import dataclasses
import math
import types

import priors_for_tests as priors
import pytest
import torch
from priors_for_tests import LINEAR, Believes, Gaussian, Mixture, Truthful, antithetic, gain

from addon import protocol
from backend import guidance, optimisation, planning
from backend.diffusion import view_words
from backend.diffusion.interface import Prediction
from backend.distillation import NFSD_NEGATIVE, WEIGHTINGS, Options, negative_prompt, take_aim
from backend.guidance import GUIDANCE

# Mean and deviation without and with the prompt (research.md 1.5), and of a negative one.
PLAIN, PROMPT, NEGATIVE = (0.0, 0.5), (0.4, 0.3), (-0.1, 0.4)
PAINTED = (0.0003, 0.0005)  # what vsd's companion believes of the run's pictures, in the units of small(0.001)
SCALES, TIMES = (0.0, 1.0, 7.5, 25.0), (100, 300, 980)
ALL = list(GUIDANCE)


def small(share=1.0):
    """The priors above, scaled, so that no clamp is ever reached."""
    return Gaussian(*((share * mean, share * deviation) for mean, deviation in (PROMPT, PLAIN, NEGATIVE)))


def line_of(prior, timestep):
    """x0_hat = slope x_t + offset of a Gaussian prior."""
    mean, deviation = prior
    alpha_bar = LINEAR[timestep]
    slope = float(gain(deviation, alpha_bar) / alpha_bar.sqrt())
    return slope, mean * (1 - slope * float(alpha_bar.sqrt()))


def guided_line(model, timestep, w):
    (a, b), (c, d) = line_of(model.conditional, timestep), line_of(model.unconditional, timestep)
    return c + w * (a - c), d + w * (b - d)


def ddim(state, line, now, after):
    """A (slope, offset) of x in x0 carried from timestep `now` to `after` by DDIM with x0_hat = line."""
    (p, q), (a, b) = state, line
    root, rest = float(LINEAR[now]) ** 0.5, (1 - float(LINEAR[now])) ** 0.5
    hat = (a * p, a * q + b)
    eps = ((p - root * hat[0]) / rest, (q - root * hat[1]) / rest)
    root, rest = float(LINEAR[after]) ** 0.5, (1 - float(LINEAR[after])) ** 0.5
    return (root * hat[0] + rest * eps[0], root * hat[1] + rest * eps[1]), eps


def expected_target(name, model, w, timestep, options):
    """(slope, offset) of the mean target in x0, by hand: linear algebra over one variable."""
    root, rest = float(LINEAR[timestep]) ** 0.5, (1 - float(LINEAR[timestep])) ** 0.5
    gamma = rest / root

    def mean_hat(prior):
        slope, offset = line_of(prior, timestep)
        return slope * root, offset

    (c, c0), (u, u0), (n, n0) = (mean_hat(prior) for prior in (model.conditional, model.unconditional, model.negative))
    if name in ("clamped", "sds", "hifa"):
        return u + w * (c - u), u0 + w * (c0 - u0)
    if name == "csd":
        return 1 + w * (c - u), w * (c0 - u0)
    if name == "vsd":
        own, own0 = mean_hat(PAINTED)
        return 1 + u + w * (c - u) - own, u0 + w * (c0 - u0) - own0
    if name == "nfsd":
        if timestep < 200:  # -gamma e_u has the mean u - x
            return u + w * (c - u), u0 + w * (c0 - u0)
        return 1 + (u - n) + w * (c - u), (u0 - n0) + w * (c0 - u0)
    if name == "ism":
        before = max(0, timestep - 100)
        state, times = (1.0, 0.0), [min(200 * number, before) for number in range(-(-before // 200) + 1)]
        for now, after in zip(times, times[1:], strict=False):
            state, _ = ddim(state, guided_line(model, now, 0), now, after)
        state, eps = ddim(state, guided_line(model, before, 0), before, timestep)
        (p, q), (a, b) = state, guided_line(model, timestep, w)
        hat = (a * p, a * q + b)
        later = ((p - root * hat[0]) / rest, (q - root * hat[1]) / rest)
        return 1 - gamma * (later[0] - eps[0]), -gamma * (later[1] - eps[1])
    if name == "sdi":
        late = int(torch.randint(0, 100, (1,), generator=torch.Generator().manual_seed(0)))
        end = min(timestep + late, 999)
        state, times = (1.0, 0.0), [min(100 * number, end) for number in range(-(-end // 100) + 1)]
        for now, after in zip(times, times[1:], strict=False):
            state, _ = ddim(state, guided_line(model, now, -7.5), now, after)
        over, under = float(LINEAR[end]) ** 0.5, (1 - float(LINEAR[end])) ** 0.5
        found = ((state[0] - over) / under, state[1] / under)
        (a, b) = guided_line(model, timestep, w)
        return a * (root + rest * found[0]), a * rest * found[1] + b
    assert name == "k_step"
    steps = options.k_steps
    times = [timestep * (steps - number) // steps for number in range(steps)]
    state = (root, 0.0)  # the mean over the noise
    for now, after in zip(times, times[1:], strict=False):
        state, _ = ddim(state, guided_line(model, now, w), now, after)
    a, b = guided_line(model, times[-1], w)
    return a * state[0], a * state[1] + b


def mean_target(name, model, x, w, timestep, options=None):
    deterministic = name in ("ism", "sdi")
    noise = antithetic(1 if deterministic else 64, (1, 1, 1))
    if deterministic:
        noise = noise[:1]
    x0 = torch.full_like(noise, x)
    look = priors.look(model, x0, noise, timestep, w, options, companion=Believes(model, PAINTED))
    return float(GUIDANCE[name](look).x0.mean())


@pytest.mark.parametrize("timestep", TIMES)
@pytest.mark.parametrize("w", SCALES)
@pytest.mark.parametrize("name", ALL)
def test_every_method_aims_where_algebra_says(name, w, timestep):
    model, options = small(0.001), Options(inversion_noise=0.0, k_steps=4)
    slope, offset = expected_target(name, model, w, timestep, options)
    for x in (-0.0007, 0.0, 0.0004):
        wanted = slope * x + offset
        found = mean_target(name, model, x, w, timestep, options)
        assert found == pytest.approx(wanted, rel=1e-8, abs=1e-12)
    if abs(1 - slope) > 1e-6:  # the fixed point: a target that is the picture itself
        fixed = offset / (1 - slope)
        if abs(fixed) < 0.2:
            assert mean_target(name, model, fixed, w, timestep, options) == pytest.approx(fixed, rel=1e-6, abs=1e-12)


def fixed_point(w, timestep):
    """research.md 1.5: x* = [(1-w)(1-k_u) mu_u + w (1-k_c) mu_c] / [1 - (1-w) k_u - w k_c]."""
    k_u, k_c = (float(gain(s, LINEAR[timestep])) for _, s in (PLAIN, PROMPT))
    return ((1 - w) * (1 - k_u) * PLAIN[0] + w * (1 - k_c) * PROMPT[0]) / (1 - (1 - w) * k_u - w * k_c)


@pytest.mark.parametrize("timestep", TIMES)
@pytest.mark.parametrize("w", SCALES)
def test_score_distillation_stands_still_at_the_published_fixed_points(w, timestep):
    x, model = fixed_point(w, timestep), small()
    assert mean_target("sds", model, x, w, timestep) == pytest.approx(x, abs=1e-9)
    # And it pushes towards it.
    assert mean_target("sds", model, x + 0.1, w, timestep) < x + 0.1 - 1e-4
    assert mean_target("sds", model, x - 0.1, w, timestep) > x - 0.1 + 1e-4
    table = {(1, 100): 0.4, (1, 980): 0.4, (7.5, 100): 0.78, (7.5, 300): 1.9, (7.5, 980): 3.0}
    table |= {(25, 100): 0.87, (25, 300): 3.18, (25, 980): 10.0}
    if (w, timestep) in table:
        assert x == pytest.approx(table[w, timestep], abs=0.006)


@pytest.mark.parametrize("name", ALL)
def test_a_scale_of_zero_knows_no_prompt_and_one_no_more_than_it(name):
    """Whatever the prompt means, w = 0 does not see it; and at w = 1 SDS-like methods do not see the other branch."""
    options = Options(inversion_noise=0.0, inversion_scale=0.0)
    model, other = small(0.001), small(0.001)
    other.conditional = (-0.0009, 0.0001)
    at_zero = [mean_target(name, m, 0.0003, 0.0, 300, options) for m in (model, other)]
    assert at_zero[0] == pytest.approx(at_zero[1], abs=1e-12)
    at_one = [mean_target(name, m, 0.0003, 1.0, 300, options) for m in (model, other)]
    assert abs(at_one[0] - at_one[1]) > 1e-5
    if name in ("clamped", "sds", "hifa", "vsd", "k_step"):
        blind = small(0.001)
        blind.unconditional = (0.0008, 0.0007)
        assert mean_target(name, blind, 0.0003, 1.0, 300, options) == pytest.approx(at_one[0], abs=1e-12)


@pytest.mark.parametrize("w", SCALES)
@pytest.mark.parametrize("name", ALL)
def test_a_model_that_finds_the_picture_leaves_nothing_to_do(name, w):
    """The delta denoiser: bit for bit, in both precisions, and so are the gradients that a run takes from it."""
    for kind in (torch.float64, torch.float32):
        x0 = 1.8 * torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(2)).to(kind) - 0.9
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3)).to(kind)
        options = Options(inversion_noise=0.0, threshold_percentile=0.95, highest=(0.98, 0.98), lowest=(0.21, 0.21))
        model = Truthful(x0, LINEAR.to(kind))
        model.companion = Believes(model, (x0, 0.0))
        for timestep in (210, 500, 980):
            assert torch.equal(GUIDANCE[name](priors.look(model, x0, noise, timestep, w, options)).x0, x0)
        for progress in (0.0, 0.5):
            aim = take_aim(
                model, x0, None, torch.ones_like(x0[:, :1]), progress, name, w, options,
                torch.Generator().manual_seed(5), model.companion,
            )  # fmt: skip
            assert not aim.gradient(x0).any() and (aim.weight > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_pictures_of_a_batch_do_not_see_each_other(name):
    generator = torch.Generator().manual_seed(4)
    x0, noise = (0.3 * torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    times = torch.tensor([90, 150, 310, 440, 560, 700, 850, 970])
    options = Options(inversion_noise=0.0, inversion_steps=1000)  # a stride of 1: nothing is drawn
    options = options if name == "sdi" else Options()
    if name == "sdi":
        times = torch.tensor([5, 8, 9, 12, 13, 16, 20, 25])  # as many model calls as timesteps
    together = GUIDANCE[name](priors.look(small(), x0, noise, times, 7.5, options, progress=0.2)).x0
    for i in range(8):
        one = slice(i, i + 1)
        alone = GUIDANCE[name](priors.look(small(), x0[one], noise[one], times[one], 7.5, options, progress=0.2)).x0
        assert torch.allclose(together[one], alone, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("w", [1.0, 7.5, 25.0])
def test_in_a_mixture_every_method_goes_to_the_mode_the_prompt_means(name, w):
    """Between the two modes, and from the other one at late timesteps, the target lies towards the prompt's."""
    red = torch.tensor([0.6, -0.4, -0.5], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    model = Mixture(torch.cat((red, -red)), 0.1)
    noise = antithetic(16, (3, 4, 4))
    for timestep in (300, 600, 950):
        x0 = torch.zeros_like(noise)
        moved = GUIDANCE[name](priors.look(model, x0, noise, timestep, w, Options(inversion_noise=0.0))).x0
        along = (moved * red).mean() / (red * red).mean()
        assert along > 0.05, f"{timestep}: {float(along):.3f}"


def test_a_mixture_without_a_prompt_falls_into_one_mode_when_time_anneals_and_stays_undecided_at_late_times():
    mode = torch.tensor([0.6, -0.4, -0.5], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    model = Mixture(torch.cat((mode, -mode)), 0.1)

    def descend(times):
        generator = torch.Generator().manual_seed(1)
        x = 0.02 * torch.randn(1, 3, 2, 2, generator=generator, dtype=torch.float64)
        for timestep in times:
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            target = GUIDANCE["sds"](priors.look(model, x, noise, timestep, 0.0)).x0
            x = x + 0.1 * (target - x)
        return float((x * mode).mean() / (mode * mode).mean())

    assert abs(abs(descend(range(900, 100, -4))) - 1) < 0.15
    assert abs(descend([995] * 200)) < 0.5


def test_clamping_keeps_the_target_in_gamut():
    """With w = 7.5 the unclamped target leaves -1..1; the clamped one stands still inside, near the bound."""
    for timestep, published in ((100, 0.74), (300, 0.997), (980, 1.0)):
        noise = antithetic(512)
        alpha = LINEAR[timestep]

        def mean_gradient(x, noise=noise, timestep=timestep, alpha=alpha):
            x0 = torch.full_like(noise, x)
            target = GUIDANCE["clamped"](priors.look(small(), x0, noise, timestep, 7.5))
            assert target.clamp
            return float((WEIGHTINGS["sds"](alpha) * (x0 - target.x0.clamp(-1, 1))).mean())

        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_gradient(middle) < 0 else (low, middle)
        assert abs(low - published) < 0.01


def test_the_gradient_is_dreamfusions_written_in_x0():
    """omega (eps_hat - e) with omega = 1 - alpha_bar, by way of the noise; and the other published weights."""
    generator = torch.Generator().manual_seed(3)
    x0, x0_hat, noise = (torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    alpha_bar = torch.tensor([0.999, 0.8, 0.5, 0.1, 0.01], dtype=torch.float64)
    wide = alpha_bar.view(-1, 1, 1, 1)
    noisy = guidance.add_noise(x0, noise, alpha_bar)
    difference = guidance.noise_in(noisy, x0_hat, alpha_bar) - noise
    snr = wide / (1 - wide)
    omegas = {
        "sds": 1 - wide,
        "score": torch.ones_like(wide),
        "fantasia3d": wide.sqrt() * (1 - wide),
        "min_snr": snr.clamp(max=5) / snr,
    }
    for name, omega in omegas.items():
        found = WEIGHTINGS[name](alpha_bar).view(-1, 1, 1, 1) * (x0 - x0_hat)
        assert torch.allclose(found, omega * difference, atol=1e-12), name
    gamma = ((1 - alpha_bar) / alpha_bar).sqrt()
    sigma = gamma / (1 + gamma)  # a flow's time for the same share of noise
    assert torch.allclose(WEIGHTINGS["flow"](alpha_bar), sigma * (1 - sigma), atol=1e-12)
    assert torch.equal(WEIGHTINGS["uniform"](alpha_bar), torch.ones(5, dtype=torch.float64))


def test_the_scale_of_one_is_the_prompt_and_zero_is_none():
    conditional, unconditional = torch.full((1, 3, 2, 2), 0.3), torch.full((1, 3, 2, 2), -0.1)
    prediction = Prediction(conditional, unconditional)
    assert torch.equal(guidance.classifier_free(prediction, 0.0), unconditional)
    assert torch.allclose(guidance.classifier_free(prediction, 1.0), conditional)
    assert torch.allclose(guidance.classifier_free(prediction, 3.0), torch.tensor(1.1))


def test_perp_neg_pushes_only_across_the_prompts_direction():
    generator = torch.Generator().manual_seed(5)
    c, u, n1, n2 = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    prediction, none = Prediction(c, u), torch.zeros(2, 2, dtype=torch.float64)
    assert not guidance.perp_neg(prediction, torch.stack((n1, n2)), none).any()
    weights = torch.tensor([[-1.5, -0.5], [0.0, -2.0]], dtype=torch.float64)
    pushed = guidance.perp_neg(prediction, torch.stack((n1, n2)), weights)
    assert ((pushed * (c - u)).sum((1, 2, 3)).abs() < 1e-9).all(), "the prompt's own direction is untouched"
    assert ((pushed[0] * (n1 - u)[0]).sum() < 0) and ((pushed[1] * (n2 - u)[1]).sum() < 0)
    same = guidance.perp_neg(prediction, torch.stack((c, c)), weights)
    assert same.abs().max() < 1e-9, "a negative that means the prompt has no say"


class KnowsViews:
    """A Denoiser whose pictures are constant: 0.3 in red with the prompt, nothing without; each view word in green."""

    name, alphas_cumprod = "views", LINEAR
    guidance_scale, render_size = 7.5, 64
    green = {"front view": 0.1, "side view": 0.2, "back view": 0.4, "overhead view": 0.8}

    def predict(self, noisy, timestep, scene, guided=True):
        return Prediction(noisy * 0 + torch.tensor([0.3, 0, 0]).view(3, 1, 1), noisy * 0)

    def predict_words(self, noisy, timestep, scene, words):
        green = torch.tensor([self.green.get(word, 0.0) for word in words]).view(-1, 1, 1, 1)
        return noisy * 0 + green * torch.tensor([0, 1.0, 0]).view(3, 1, 1)


@pytest.mark.parametrize("name", ALL)
def test_perp_neg_pushes_every_method_off_the_wrong_views(name):
    """Seen from the side: off the front, hardly off the back, by the published weights."""
    x0 = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    scene = types.SimpleNamespace(azimuth_deg=torch.tensor([45.0, 45.0]), elevation_deg=torch.tensor([0.0, 80.0]))
    moved = []
    for push in (False, True):
        look = priors.look(KnowsViews(), x0, x0, 500, 4.0, Options(perp_neg=push, k_steps=1, inversion_noise=0.0))
        look = dataclasses.replace(look, scene=scene, companion=Believes(small(), PAINTED))
        moved.append(GUIDANCE[name](look).x0)
    level, above = (moved[1] - moved[0]).mean((2, 3))
    weight = 4 * math.exp(-0.25) - 2.426  # of the front and of the side alike, halfway between them
    assert level.tolist() == pytest.approx([0, -4 * weight * (0.1 + 0.2), 0], abs=1e-6)
    assert above.abs().max() < 1e-9, "no words are wrong from above"


@pytest.mark.parametrize("name", ["csd", "nfsd"])
def test_the_literatures_methods_run_as_published(name):
    """Where the prompt says nothing new, nothing moves: a rescaled target would leave x0 for the model's own picture.
    As the product runs them, by plan and step."""
    model = Gaussian(PROMPT, PROMPT, PROMPT)
    model.guidance_scale, model.render_size = 7.5, 4
    plan = planning.make_plan(protocol.TextureRequest("x", guidance=name), model)
    state = types.SimpleNamespace(generator=torch.Generator().manual_seed(0), companion=None)
    gbuffer = types.SimpleNamespace(coverage=torch.ones(2, 4, 4))
    x0 = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.5
    aim = optimisation._aim(x0, state, plan, model, types.SimpleNamespace(gbuffer=gbuffer), 0.0)
    small = aim.time < guidance.NFSD_SMALL
    moved = aim.gradient(x0).abs().amax((1, 2, 3))
    assert moved[~small].max() < 1e-6 and (~small).any()
    ours = dataclasses.replace(plan, options=Options())
    aim = optimisation._aim(x0, state, ours, model, types.SimpleNamespace(gbuffer=gbuffer), 0.0)
    assert aim.gradient(x0).abs().max() > 0.01, "this test can see it"


def test_nfsd_brings_its_negative_prompt_where_none_is_given():
    assert negative_prompt("nfsd", " ", small()) == NFSD_NEGATIVE
    assert negative_prompt("nfsd", "mud", small()) == "mud" and negative_prompt("csd", "", small()) == ""
    knows = type("Knows", (), {"believed_material": lambda self, scene: None})()
    assert negative_prompt("nfsd", "", knows) == "", "a model that reads materials only"


def test_perp_negs_words_and_weights_are_the_published_ones():
    def decay(scale, offset, r):
        return max(0.0, scale * math.exp(-0.5 * r) + offset)

    azimuths = [0.0, 45.0, 90.0, 135.0, 180.0, -45.0, 270.0, 45.0]
    (first, second) = view_words.other_views(azimuths, [0.0] * 7 + [85.0])
    assert first[0] == ("front view", "front view", *["side view"] * 3, "front view", "side view", "front view")
    assert second[0] == ("side view", "side view", *["front view"] * 3, "side view", "front view", "side view")
    half = -decay(4, -2.426, 0.5)
    assert first[1] == pytest.approx(
        [-decay(4, -2.426, 1), half, -decay(1, -0.606, 1), -decay(1, -0.606, 0.5), -decay(1, -0.606, 0), half,
         -decay(1, -0.606, 1), 0], abs=1e-9
    )  # fmt: skip
    assert second[1] == pytest.approx(
        [-decay(4, -2.426, 0), half, -decay(1, 0.967, 1), -decay(1, 0.967, 0.5), -decay(1, 0.967, 0), half,
         -decay(1, 0.967, 1), 0], abs=1e-9
    )  # fmt: skip


def test_methods_that_need_other_words_say_so():
    model = small()
    mute = type("Mute", (), {"name": "mute", "alphas_cumprod": LINEAR, "predict": model.predict})()
    zeros = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    with pytest.raises(guidance.GuidanceError, match="“mute” cannot be asked for “nothing”.*Choose another"):
        GUIDANCE["nfsd"](priors.look(mute, zeros, zeros, 500, 7.5))
    alone = priors.look(mute, zeros, zeros, 500, 7.5)
    with pytest.raises(guidance.GuidanceError, match="“vsd” trains a copy .* “mute” does not offer"):
        GUIDANCE["vsd"](dataclasses.replace(alone, companion=None))
    with pytest.raises(guidance.GuidanceError, match="Perp-Neg needs a model that reads view words"):
        GUIDANCE["sds"](priors.look(mute, zeros, zeros, 500, 7.5, Options(perp_neg=True)))


class Regression:
    """A Companion of one line x0_hat = slope x_t + offset, fitted to the pictures at hand by least squares."""

    def __init__(self, model):
        self.model, self.pictures = model, None

    def learn(self, x0, scene, generator):
        self.pictures = x0

    def predict(self, noisy, timestep, scene):
        root = self.model.alphas_cumprod[timestep[0]].sqrt()
        other = antithetic(len(self.pictures) // 2, self.pictures.shape[1:], seed=8)
        seen = root * self.pictures + (1 - root**2).sqrt() * other
        rows = torch.stack((seen.flatten(), torch.ones_like(seen.flatten())), dim=1)
        slope, offset = torch.linalg.lstsq(rows, self.pictures.flatten()[:, None]).solution[:, 0]
        return slope * noisy + offset


def test_variational_score_distillation_paints_what_the_prompt_means_in_all_its_variety_and_sds_one_picture():
    """ProlificDreamer's claim, in closed form: many pictures, and a companion that learns from them, end as samples of
    the prompt's own N(0.4, 0.3); with a companion that knows each picture (SDS) all of them end at its mode."""
    model = small()
    generator = torch.Generator().manual_seed(6)
    ends = {}
    for name in ("vsd", "sds"):
        x = -0.5 + 0.1 * torch.randn(2000, 1, 1, 1, generator=generator, dtype=torch.float64)
        companion = Regression(model)
        companion.learn(x, None, None)
        for step in range(300):
            noise = antithetic(1000, (1, 1, 1), seed=step)
            look = priors.look(model, x, noise, 120, 1.0, companion=companion)
            x = x + 0.3 * (GUIDANCE[name](look).x0 - x)
        ends[name] = float(x.mean()), float(x.std())
    assert ends["vsd"] == pytest.approx(PROMPT, abs=0.02), ends
    assert ends["sds"][0] == pytest.approx(PROMPT[0], abs=0.02) and ends["sds"][1] < 0.2, ends


def test_a_companion_that_knows_the_picture_makes_variational_score_distillation_sds():
    x0 = torch.linspace(-0.5, 0.5, 8, dtype=torch.float64).view(8, 1, 1, 1)
    noise = antithetic(4, (1, 1, 1))
    for w in SCALES:
        one, other = (GUIDANCE[name](priors.look(small(), x0, noise, 300, w)).x0 for name in ("vsd", "sds"))
        assert torch.allclose(one, other, atol=1e-12)


def test_csd_moves_from_no_words_to_the_negative_ones():
    model, options = small(0.001), Options(negative_prompt=True)
    # With a negative prompt, a model's unconditional branch is the negative one.
    model.predict_words = lambda noisy, t, scene, words: model.denoise((0.0002, 0.0004), noisy, t)
    noise = antithetic(8, (1, 1, 1))
    x0 = torch.zeros_like(noise)
    first, last, middle = (
        GUIDANCE["csd"](priors.look(model, x0, noise, 500, 2.0, options, progress)).x0.mean()
        for progress in (0.0, 1.0, 0.5)
    )
    plain = GUIDANCE["csd"](priors.look(model, x0, noise, 500, 2.0)).x0.mean()
    assert torch.isclose(last, plain) and not torch.isclose(first, plain)
    assert torch.isclose(middle, (first + last) / 2)


def test_noise_keeps_the_variance():
    generator = torch.Generator().manual_seed(4)
    x0, noise = (torch.randn(3, 3, 64, 64, generator=generator) for _ in range(2))
    for value in (1.0, 0.3, 0.0):
        noisy = guidance.add_noise(x0, noise, torch.full((3,), value))
        assert abs(float(noisy.std()) - 1) < 0.02
        assert abs(float((noisy * x0).mean()) - value**0.5) < 0.02
