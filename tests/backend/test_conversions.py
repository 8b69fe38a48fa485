# SPDX-License-Identifier: GPL-3.0-or-later
"""What networks answer is one and the same picture, at every timestep of every schedule."""

import pytest
import torch
from diffusers import DDPMScheduler

from backend.diffusion import conversions
from backend.guidance import add_noise, noise_in

SCHEDULERS = {
    "linear": DDPMScheduler(),
    "stable diffusion": DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "deepfloyd": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
}
CLOSE = 1e-5


@pytest.mark.parametrize("name", [*SCHEDULERS, "sd3"])
def test_every_kind_of_answer_gives_the_same_picture_and_the_same_noise(name):
    """epsilon, v, sample and flow, each made of (x0, e) by its own definition; and diffusers' scheduler agrees."""
    generator = torch.Generator().manual_seed(0)
    if name == "sd3":
        sigma = conversions.shifted(1000, 3.0).double()[:-1]  # at the last one nothing of x0 is left
        alpha_bar = conversions.flow_alpha_bar(sigma)
    else:
        alpha_bar = SCHEDULERS[name].alphas_cumprod.double()
        gamma = ((1 - alpha_bar) / alpha_bar).sqrt()
        sigma = gamma / (1 + gamma)
    x0, noise = (torch.randn(len(sigma), 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    a, s, wide = (v.view(-1, 1, 1, 1) for v in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), sigma))
    noisy, flow = add_noise(x0, noise, alpha_bar), (1 - wide) * x0 + wide * noise
    assert (noisy * conversions.flow_unit(sigma).view(-1, 1, 1, 1) - flow).abs().max() < CLOSE
    answers = {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}
    found = {kind: conversions.from_vp(kind, noisy, answer, alpha_bar) for kind, answer in answers.items()}
    found["flow"] = conversions.from_flow(flow, noise - x0, sigma)
    for kind, x0_hat in found.items():
        assert (x0_hat - x0).abs().max() < CLOSE, kind
        assert (noise_in(noisy, x0_hat, alpha_bar) - noise).abs().max() < CLOSE, kind
    for kind, answer in answers.items() if name in SCHEDULERS else ():
        theirs = DDPMScheduler.from_config(SCHEDULERS[name].config, prediction_type=kind, clip_sample=False)
        for t in (1, 500, 950):
            told = theirs.step(answer[t : t + 1], t, noisy[t : t + 1]).pred_original_sample
            assert (told - found[kind][t]).abs().max() < CLOSE, kind
