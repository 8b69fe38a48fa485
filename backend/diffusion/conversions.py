# SPDX-License-Identifier: Apache-2.0
"""What networks answer -> the clean picture x0_hat. Written once; the families only say which of these they are.

VP: x_t = a x0 + s e with a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar). Flow: x = (1 - S) x0 + S e, S in (0, 1].
Flow is VP in other units: divided by sqrt((1 - S)^2 + S^2), a flow's x is a VP x_t of the same gamma = S / (1 - S).
All tensors (B, C, H, W), alpha_bar and sigma (B,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def from_vp(kind: str, noisy: Tensor, answer: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0_hat of a VP network whose scheduler calls its answer `kind`. Raises ValueError for another kind."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if kind == "epsilon":
        # At the end of a schedule without terminal signal nothing is left of x0; the largest float is no answer.
        return (noisy - s * answer) / a.clamp(min=1e-6)
    if kind == "v_prediction":
        return a * noisy - s * answer
    if kind == "sample":
        return answer
    raise ValueError(f"A model that predicts “{kind}” is unknown; known are {', '.join(PREDICTIONS)}.")


def from_flow(noisy: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x0_hat of a flow network: velocity = e - x0, noisy in the flow's own units."""
    return noisy - sigma.view(-1, 1, 1, 1) * velocity


def flow_alpha_bar(sigma: Tensor) -> Tensor:
    """The alpha_bar whose VP noise is the flow's at `sigma`."""
    return (1 - sigma) ** 2 / flow_unit(sigma) ** 2


def flow_unit(sigma: Tensor) -> Tensor:
    """What a VP x_t is multiplied by to be the flow's x at `sigma`."""
    return ((1 - sigma) ** 2 + sigma**2).sqrt()


def shifted(count: int, shift: float) -> Tensor:
    """(count,) sigmas by timestep, lowest first: even ones moved towards noise by `shift` (SD3: 3)."""
    even = torch.arange(1, count + 1, dtype=torch.float64) / count
    return (shift * even / (1 + (shift - 1) * even)).float()


def shift_of(mu: float) -> float:
    """The shift that schedulers with a dynamic one mean by `mu`."""
    return math.exp(mu)
