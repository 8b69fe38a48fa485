# SPDX-License-Identifier: GPL-3.0-or-later
"""Guidance against closed forms: Gaussian priors have known fixed points, a true denoiser leaves nothing to do."""

import pytest
import torch

from backend import guidance
from backend.diffusion.interface import Prediction

# Mean and deviation without and with the prompt (research.md 1.5).
PLAIN, PROMPT = (0.0, 0.5), (0.4, 0.3)
ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def denoise(prior, noisy, alpha_bar):
    """E[x0 | x_t] of a Gaussian prior."""
    mean, deviation = prior
    variance = deviation**2
    gain = alpha_bar.sqrt() * variance / (alpha_bar * variance + 1 - alpha_bar)
    return mean + gain * (noisy - alpha_bar.sqrt() * mean)


def predict(noisy, alpha_bar):
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return Prediction(denoise(PROMPT, noisy, alpha_bar), denoise(PLAIN, noisy, alpha_bar))


def fixed_point(w, timestep):
    """research.md 1.5: x* = [(1-w)(1-k_u) mu_u + w (1-k_c) mu_c] / [1 - (1-w) k_u - w k_c]."""
    alpha_bar = float(ALPHA_BAR[timestep])
    k_u, k_c = (alpha_bar * s**2 / (alpha_bar * s**2 + 1 - alpha_bar) for _, s in (PLAIN, PROMPT))
    return ((1 - w) * (1 - k_u) * PLAIN[0] + w * (1 - k_c) * PROMPT[0]) / (1 - (1 - w) * k_u - w * k_c)


def mean_gradient(name, x, w, timestep, draws=512):
    """Over antithetic noise, so that its mean is exactly 0 as in the closed form."""
    noise = torch.randn(draws, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.cat((noise, -noise))
    x0 = torch.full_like(noise, x)
    alpha_bar = ALPHA_BAR[timestep].expand(len(x0))
    x0_hat = guidance.classifier_free(predict(guidance.add_noise(x0, noise, alpha_bar), alpha_bar), w)
    return guidance.GUIDANCE[name](x0, x0_hat, alpha_bar)


@pytest.mark.parametrize("timestep", [100, 300, 980])
@pytest.mark.parametrize("w", [0.0, 1.0, 7.5])
def test_score_distillation_stands_still_at_the_closed_form(w, timestep):
    x = fixed_point(w, timestep)
    assert abs(float(mean_gradient("sds", x, w, timestep).mean())) < 1e-9
    # And it pushes towards it: a step against the gradient is a step closer.
    assert float(mean_gradient("sds", x + 0.1, w, timestep).mean()) > 1e-4
    assert float(mean_gradient("sds", x - 0.1, w, timestep).mean()) < -1e-4


def test_the_published_fixed_points():
    assert [round(fixed_point(w, t), 2) for w, t in ((1, 100), (1, 980), (7.5, 100), (7.5, 300), (7.5, 980))] == [
        0.4, 0.4, 0.78, 1.9, 3.0,
    ]  # fmt: skip


@pytest.mark.parametrize("timestep", [100, 300, 980])
def test_clamping_keeps_the_target_in_gamut(timestep):
    """With w = 7.5 the unclamped target leaves -1..1; the clamped one stands still inside, near the bound."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if float(mean_gradient("clamped", middle, 7.5, timestep).mean()) < 0:
            low = middle
        else:
            high = middle
    published = {100: 0.74, 300: 0.997, 980: 1.0}[timestep]
    assert abs(low - published) < 0.01
    gradient = mean_gradient("clamped", 1.0, 7.5, timestep)
    assert (gradient >= 0).all(), "nothing may push a value out of gamut"


def test_clamped_and_plain_agree_inside_the_gamut():
    generator = torch.Generator().manual_seed(1)
    x0, x0_hat = (2 * torch.rand(4, 3, 5, 5, generator=generator) - 1 for _ in range(2))
    alpha_bar = torch.tensor([0.9, 0.5, 0.1, 0.001])
    assert torch.equal(guidance.clamped(x0, x0_hat, alpha_bar), guidance.sds(x0, x0_hat, alpha_bar))
    inside = guidance.sds(x0, (3 * x0_hat).clamp(-1, 1), alpha_bar)
    assert torch.equal(guidance.clamped(x0, 3 * x0_hat, alpha_bar), inside)


@pytest.mark.parametrize("name", list(guidance.GUIDANCE))
def test_a_denoiser_that_finds_the_picture_leaves_nothing_to_do(name):
    x0 = 2 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)) - 1
    alpha_bar = torch.tensor([0.99, 0.6, 0.2, 0.001])
    assert not guidance.GUIDANCE[name](x0, x0.clone(), alpha_bar).any()


def test_the_gradient_is_dreamfusions_written_in_x0():
    """omega (eps_hat - e) with omega = 1 - alpha_bar, by way of the noise."""
    generator = torch.Generator().manual_seed(3)
    x0, x0_hat, noise = (torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    alpha_bar = torch.tensor([0.999, 0.8, 0.5, 0.1, 0.01], dtype=torch.float64)
    wide = alpha_bar.view(-1, 1, 1, 1)
    noisy = guidance.add_noise(x0, noise, alpha_bar)
    eps_hat = (noisy - wide.sqrt() * x0_hat) / (1 - wide).sqrt()
    assert torch.allclose(guidance.sds(x0, x0_hat, alpha_bar), (1 - wide) * (eps_hat - noise), atol=1e-12)


def test_noise_keeps_the_variance():
    generator = torch.Generator().manual_seed(4)
    x0, noise = (torch.randn(3, 3, 64, 64, generator=generator) for _ in range(2))
    for value in (1.0, 0.3, 0.0):
        noisy = guidance.add_noise(x0, noise, torch.full((3,), value))
        assert abs(float(noisy.std()) - 1) < 0.02
        assert abs(float((noisy * x0).mean()) - value**0.5) < 0.02


def test_the_scale_of_one_is_the_prompt_and_zero_is_none():
    conditional, unconditional = torch.full((1, 3, 2, 2), 0.3), torch.full((1, 3, 2, 2), -0.1)
    prediction = Prediction(conditional, unconditional)
    assert torch.equal(guidance.classifier_free(prediction, 0.0), unconditional)
    assert torch.allclose(guidance.classifier_free(prediction, 1.0), conditional)
    assert torch.allclose(guidance.classifier_free(prediction, 3.0), torch.tensor(1.1))


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

    full = guidance.rescale(guided_outside, conditional, mask, 1.0)
    assert torch.allclose(moments(full), moments(conditional), atol=1e-4)
    inside = mask.expand_as(guided) > 0
    one, other = full[inside], guided[inside]
    assert torch.corrcoef(torch.stack((one[:50], other[:50])))[0, 1] > 0.9, "the picture itself is kept"
    assert guidance.rescale(guided, conditional, mask, 0.0) is guided
    half = guidance.rescale(guided, conditional, mask, 0.5)
    assert torch.allclose(half, 0.5 * (guided + guidance.rescale(guided, conditional, mask, 1.0)), atol=1e-5)
    flat = torch.full_like(guided, 0.7)
    assert torch.isfinite(guidance.rescale(flat, flat, mask, 1.0)).all()
    assert torch.isfinite(guidance.rescale(guided, conditional, torch.zeros_like(mask), 1.0)).all()


def test_timesteps_are_stratified_and_their_range_narrows():
    generator = torch.Generator().manual_seed(6)
    widths, tops = [], []
    for fraction in (0.0, 0.25, 0.5, 1.0):
        drawn = torch.stack([guidance.timesteps(8, fraction, 1000, generator) for _ in range(300)])
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
    assert torch.equal(*(guidance.timesteps(4, 0.3, 1000, torch.Generator().manual_seed(1)) for _ in range(2)))
    assert guidance.timesteps(1, 1.0, 10, generator).max() < 10
