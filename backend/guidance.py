# SPDX-License-Identifier: Apache-2.0
"""Score distillation: from a frozen model's prediction to a gradient on the rendered picture.

Notation (DDPM): x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) e; gamma = sqrt((1 - alpha_bar) / alpha_bar).
eps_hat - e = (x0 - x0_hat) / gamma, so every method is a target for x0 and a weight. Plain functions;
they know no cameras, maps or model families.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .diffusion.interface import Prediction


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t (B, 3, H, W) for alpha_bar (B,)."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def classifier_free(prediction: Prediction, guidance_scale: float) -> Tensor:
    """x0_hat with guidance: w = 0 unconditional, w = 1 conditional (Ho and Salimans 2022)."""
    return prediction.unconditional + guidance_scale * (prediction.conditional - prediction.unconditional)


def rescale(guided: Tensor, conditional: Tensor, mask: Tensor, strength: float) -> Tensor:
    """Pull mean and deviation of each channel over the object (mask (B, 1, H, W)) to the conditional
    branch's: cures the over-saturation that a clamp only bounds (research.md 1.5)."""
    if strength == 0:
        return guided
    total = mask.sum((2, 3), keepdim=True).clamp(min=1e-6)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x * mask).sum((2, 3), keepdim=True) / total
        return mean, (((x - mean) ** 2 * mask).sum((2, 3), keepdim=True) / total).sqrt()

    mean, deviation = moments(guided)
    wanted_mean, wanted_deviation = moments(conditional)
    matched = (guided - mean) * (wanted_deviation / deviation.clamp(min=1e-4)) + wanted_mean
    return strength * matched + (1 - strength) * guided


def clamped(x0: Tensor, x0_hat: Tensor, alpha_bar: Tensor) -> Tensor:
    """(omega / gamma)(x0 - clamp(x0_hat)) with omega = 1 - alpha_bar (CasTex). Gradient (B, 3, H, W)."""
    return _weight(alpha_bar) * (x0 - x0_hat.clamp(-1, 1))


def sds(x0: Tensor, x0_hat: Tensor, alpha_bar: Tensor) -> Tensor:
    """DreamFusion's gradient omega (eps_hat - e) with omega = 1 - alpha_bar, written in x0."""
    return _weight(alpha_bar) * (x0 - x0_hat)


def _weight(alpha_bar: Tensor) -> Tensor:
    """omega / gamma = sqrt(alpha_bar (1 - alpha_bar)), as (B, 1, 1, 1)."""
    return torch.sqrt(alpha_bar * (1 - alpha_bar)).view(-1, 1, 1, 1)


Guidance = Callable[[Tensor, Tensor, Tensor], Tensor]
GUIDANCE: dict[str, Guidance] = {"clamped": clamped, "sds": sds}


def timesteps(count: int, fraction: float, total: int, generator: torch.Generator) -> Tensor:
    """(B,) timesteps stratified over the batch; the range narrows with the square root of progress
    (CasTex, Paint-it): highest 0.98 -> 0.5, lowest 0.3 -> 0.1 of `total`."""
    root = fraction**0.5
    highest, lowest = 0.98 - 0.48 * root, 0.3 - 0.2 * root
    strata = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return ((lowest + (highest - lowest) * strata) * total).long().clamp(0, total - 1)
