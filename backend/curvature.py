# SPDX-License-Identifier: Apache-2.0
"""How much pictures have told of each map value, and the step towards a wanted picture that follows from it.

Gauss-Newton, place by place. With J the derivative of a pixel's display colour by its seven stored values, the mean
of J'J over the views and lights of the last steps says how strongly each value shows here, and which ones show alike
(a darker metal and a lighter dielectric). Dividing by it moves weakly visible values as far as they must, and the
steps vanish where the picture fits. All of J would cost three passes; its product with random signs costs one and has
the same mean square (Hutchinson 1990).

It knows points and their derivatives; it knows no maps, materials or models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import lookup

VALUES = 7
PAIRS = [(row, column) for row in range(VALUES) for column in range(row + 1)]
SIDE_AT_MOST = 256  # texels: what is told changes slowly over the surface
MEMORY = 0.9  # share of the sums that stays from one observation to the next
# At first every step tells; later every third, since what views and lights tell on average changes slowly. (Not every
# second: close-ups come by turns.)
EARLY_STEPS, EVERY = 30, 3
# Before anything is seen, each value is taken to show this much, with the weight of this many points.
EXPECTED, EXPECTED_POINTS = 0.3, 0.3
# A derivative counts up to this: in the highlights of mirrors they grow to millions, and a few pixels would say all.
STEEPEST = 30.0
LEAST_PIVOT = 1e-4  # what rounding leaves of one that is 0
FARTHEST = 0.5  # in stored values, of one pixel's wish


def nothing_told(finest: int, device: torch.device | str = "cpu") -> Tensor:
    """(1, 29, S, S): sums over points of the 28 products of derivatives, and of the points; row 0 is v = 0."""
    side = min(finest, SIDE_AT_MOST)
    return torch.zeros(1, len(PAIRS) + 1, side, side, device=device)


def is_due(step: int) -> bool:
    """Whether this step of a run adds to what is told: it costs a pass through the shading."""
    return step < EARLY_STEPS or step % EVERY == 0


@torch.no_grad()
def observe(told: Tensor, uv: Tensor, signed: Tensor) -> None:
    """Add points at uv (N, 2) to what was `told`; signed (N, 7) is J' s with random signs s (3,) at each."""
    signed = signed.clamp(-STEEPEST, STEEPEST)
    products = [signed[:, row] * signed[:, column] for row, column in PAIRS]
    points = torch.stack((*products, torch.ones_like(products[0])), dim=1)
    told.mul_(MEMORY).add_(lookup.spread(points, told.shape, lookup.image_grid(uv)))


@torch.no_grad()
def newton_step(told: Tensor, uv: Tensor, slope: Tensor, residual: Tensor, damping: float) -> Tensor:
    """(N, K) to subtract from the first K stored values at uv (N, 2), so that display colours lose `residual` (N, 3).

    slope (N, K) is J' residual; the values behind the K-th stay as they are. `damping` is added to the curvature: what
    shows less than that moves slowly. A pixel in a highlight says much more than the mean A allows for: with j its own
    derivative along the residual, (A + j j')^-1 j = A^-1 j / (1 + j' A^-1 j) (Sherman and Morrison), which never goes
    farther than the residual.
    """
    sums = lookup.read(told, lookup.image_grid(uv)).unbind(1)
    weight = sums[-1] + EXPECTED_POINTS
    mean = {pair: total / weight for pair, total in zip(PAIRS, sums[:-1], strict=True)}
    for value in range(slope.shape[1]):
        mean[value, value] = mean[value, value] + EXPECTED * EXPECTED_POINTS / weight + damping
    step = _solve(mean, slope)
    own = (slope * step).sum(1) / (residual**2).sum(1).clamp(min=1e-12)
    return (step / (1 + own.clamp(min=0))[:, None]).clamp(-FARTHEST, FARTHEST)


def _solve(matrix: dict[tuple[int, int], Tensor], right: Tensor) -> Tensor:
    """x (N, K) of `matrix` x = right (N, K), one symmetric positive matrix a point, as its lower triangle's (N,).

    LDL' written out: one operation for all points at once is many times as fast as LAPACK's batches of small ones.
    """
    lower, pivot, count = {}, [], right.shape[1]
    for column in range(count):
        scaled = [lower[column, k] * pivot[k] for k in range(column)]
        left = matrix[column, column]
        for k in range(column):
            left = left - lower[column, k] * scaled[k]
        pivot.append(left.clamp(min=LEAST_PIVOT))
        for row in range(column + 1, count):
            left = matrix[row, column]
            for k in range(column):
                left = left - lower[row, k] * scaled[k]
            lower[row, column] = left / pivot[column]
    x = list(right.unbind(1))
    for row in range(count):
        for k in range(row):
            x[row] = x[row] - lower[row, k] * x[k]
    x = [value / p for value, p in zip(x, pivot, strict=True)]
    for row in reversed(range(count)):
        for k in range(row + 1, count):
            x[row] = x[row] - lower[k, row] * x[k]
    return torch.stack(x, dim=1)
