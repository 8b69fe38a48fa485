# SPDX-License-Identifier: Apache-2.0
"""View words in the object's frame, softly: how much of front, side, back and overhead a camera sees. No torch here.

Azimuth 0 is the object's front (-Y). Interpolation and the weights of Perp-Neg are the published ones (DreamFusion;
Armandpour et al. 2023, research.md 1.6), with a soft step to "overhead" where threestudio has a hard one.
"""

from __future__ import annotations

import math

VIEWS = ("front view", "side view", "back view", "overhead view")
OVERHEAD_DEG = (50.0, 70.0)  # elevations between which the words change to "overhead view"

# Perp-Neg's A exp(-B r) + C for each pair (of what is wanted, pushed off).
_SIDE_BACK, _FRONT_SIDE_BACK = (1.0, 0.5, -0.606), (1.0, 0.5, 0.967)
_FRONT_SIDE = _SIDE_FRONT = (4.0, 0.5, -2.426)


def view_shares(azimuth_deg: float, elevation_deg: float) -> tuple[float, float, float, float]:
    """Weights of VIEWS, which sum to 1."""
    off_front = _off_front(azimuth_deg)
    front, back = max(0.0, 1 - off_front / 90), max(0.0, off_front / 90 - 1)
    overhead = _overhead(elevation_deg)
    level = 1 - overhead
    return level * front, level * (1 - front - back), level * back, overhead


def other_views(
    azimuths_deg: list[float], elevations_deg: list[float]
) -> tuple[tuple[tuple[str, ...], list[float]], tuple[tuple[str, ...], list[float]]]:
    """Perp-Neg's two negatives of each view: ((words, weights), (words, weights)), each as long as the views. The
    weights are at most 0, and 0 from above, where no view word is wrong."""
    first, second = [], []
    for azimuth_deg, elevation_deg in zip(azimuths_deg, elevations_deg, strict=True):
        off_front = _off_front(azimuth_deg)
        level = 1 - _overhead(elevation_deg)
        if off_front < 90:
            r = 1 - off_front / 90
            pair = ("front view", -_decay(_FRONT_SIDE, r)), ("side view", -_decay(_SIDE_FRONT, 1 - r))
        else:
            r = 2 - off_front / 90
            pair = ("side view", -_decay(_SIDE_BACK, r)), ("front view", -_decay(_FRONT_SIDE_BACK, r))
        first.append((pair[0][0], level * pair[0][1]))
        second.append((pair[1][0], level * pair[1][1]))
    return tuple((tuple(words for words, _ in part), [weight for _, weight in part]) for part in (first, second))


def _off_front(azimuth_deg: float) -> float:
    return abs((azimuth_deg + 180) % 360 - 180)


def _overhead(elevation_deg: float) -> float:
    low, high = OVERHEAD_DEG
    return min(1.0, max(0.0, (elevation_deg - low) / (high - low)))


def _decay(curve: tuple[float, float, float], r: float) -> float:
    scale, rate, offset = curve
    return max(0.0, scale * math.exp(-rate * r) + offset)
