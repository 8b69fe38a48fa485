# SPDX-License-Identifier: Apache-2.0
"""Moving the maps by what points wish: each texel by the mean wish of the points it is read at.

Unlike a plain gradient, which is large where many pixels fall and small where few do, a mean moves all texels
alike. The mean runs over some steps, weighted by how often a texel was seen in them. Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 0.8  # share of the sums that stays from step to step
MOST = 4.0  # points that count of one step: what a close-up saw must not be repeated for long after it
ENOUGH = 0.1  # points (bilinear shares) from which on a texel follows its mean fully


@dataclass(frozen=True)
class Sums:
    """Of each parameter (1, C, ...): the moves wished for and the shares its texels had in the points (1, 1, ...)."""

    moves: tuple[Tensor, ...]
    reach: tuple[Tensor, ...]


def no_sums(parameters: Sequence[Tensor]) -> Sums:
    return Sums(
        tuple(torch.zeros_like(p, requires_grad=False) for p in parameters),
        tuple(torch.zeros_like(p[:, :1], requires_grad=False) for p in parameters),
    )


@torch.no_grad()
def descend(
    parameters: Sequence[Tensor],
    sums: Sums,
    summed: Sequence[tuple[Tensor, Tensor] | None],
    rates: Sequence[float],
    decays: Sequence[float],
) -> None:
    """Move `parameters` down in place, each by its rate of the mean wish, after losing `decay` of its value.

    `summed`: of each parameter the sum of share x wish and the sum of shares over this step's points; None where it was
    not read. Texels that no point of this step reads go on for a while by what was wished for before.
    """
    for index, parameter in enumerate(parameters):
        if summed[index] is None:
            continue
        moves, reach = summed[index]
        share = 1 / reach.clamp(min=MOST)
        sums.moves[index].mul_(MEMORY).addcmul_(moves, share)
        sums.reach[index].mul_(MEMORY).addcmul_(reach, share)
        parameter.mul_(1 - decays[index])
        parameter.addcdiv_(sums.moves[index], sums.reach[index] + ENOUGH, value=-rates[index])
