# SPDX-License-Identifier: Apache-2.0
"""How two components of a material mix: patterns made of procedural textures.

Each pattern takes the textures at N points (procedural.py) and returns `Mix`: weight of the second component,
a variation per cell or grain, and a height, all (N,). It knows no colours and no roughness; those are in
materials.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .procedural import Procedural


@dataclass(frozen=True)
class Mix:
    weight: Tensor
    variation: Tensor
    height: Tensor


Pattern = Callable[[Procedural], Mix]


def step(edge: float | Tensor, width: float, x: Tensor) -> Tensor:
    """Smooth step from 0 to 1 round `edge`."""
    t = ((x - edge) / width + 0.5).clamp(0, 1)
    return t * t * (3 - 2 * t)


def fractal(p: Procedural, channel: int = 0) -> Tensor:
    """Fractal noise (N,) in 0..1, about 0.5 in the middle; three channels that have little in common."""
    one, two, three = (p.coarse[:, channel], p.medium[:, (channel + 1) % 3], p.fine[:, (channel + 2) % 3])
    return (one + 0.5 * two + 0.25 * three) / 1.75


def fine_fractal(p: Procedural, channel: int = 0) -> Tensor:
    """The same an octave higher."""
    return (p.medium[:, channel] + 0.5 * p.fine[:, (channel + 1) % 3]) / 1.5


def _flat(p: Procedural) -> Tensor:
    return torch.zeros_like(p.coarse[:, 0])


def _two_tone(weight: Tensor) -> Mix:
    return Mix(weight, torch.full_like(weight, 0.5), torch.zeros_like(weight))


# --- patterns ---------------------------------------------------------------------------------


def plain(p: Procedural) -> Mix:
    return _two_tone(_flat(p))


def clouds(p: Procedural) -> Mix:
    """Soft mottling."""
    field = (2 * fractal(p) + 0.35 * p.finer[:, 0]) / 2.35
    return Mix(step(0.5, 0.5, field), field, field)


def patches(p: Procedural) -> Mix:
    """Two components side by side with ragged edges (rust, chipped paint, moss on stone)."""
    detail = (p.fine[:, 0] + 0.7 * p.finer[:, 1]) / 1.7
    ragged = 0.7 * p.fine[:, 1] + 0.6 * p.finer[:, 0] + 0.35 * p.finest[:, 2]
    weight = step(0.5, 0.04, (0.5 * p.coarse[:, 1] + p.medium[:, 2] + ragged) / 3.15)
    return Mix(weight, detail, weight * (0.5 + detail))


def mottle(p: Procedural) -> Tensor:
    """Light and dark (N,) in 0..1 within one component, in flecks a good deal smaller than patches."""
    flecks = (0.6 * p.fine[:, 2] + p.finer[:, 1] + 0.6 * p.finest[:, 0]) / 2.2
    return 0.3 * p.medium[:, 0] + 0.7 * step(0.5, 0.45, flecks)


def hide(p: Procedural) -> Mix:
    """Large spots with soft outlines (cow)."""
    return _two_tone(step(0.5, 0.05, (p.coarse[:, 1] + 0.5 * p.medium[:, 2]) / 1.5))


def grains(p: Procedural) -> Mix:
    """Fine grain (felt, concrete, paper)."""
    fine = (0.6 * p.finer[:, 0] + p.finest[:, 1]) / 1.6
    return Mix(step(0.5, 0.6, fine), (fractal(p, 2) + fine) / 2, fine)


def speckles(p: Procedural) -> Mix:
    """Close-set grains of two kinds (granite, cork)."""
    value = p.tiny_cells[:, 2]
    weight = step(0.68, 0.06, value + 0.12 * (p.fine[:, 0] - 0.5))
    return Mix(weight, (value / 0.68 + p.finest[:, 0]) / 2, weight * 0.3)


def chips(p: Procedural) -> Mix:
    """Scattered lumps of a second kind (terrazzo, cookie)."""
    nearest, value = p.small_cells[:, 0] + 0.12 * (p.finer[:, 0] - 0.5), p.small_cells[:, 2]
    weight = (1 - step(0.44, 0.08, nearest)) * step(0.45, 0.1, value)
    return Mix(weight, p.finer[:, 1], weight * 0.3)


def veins(p: Procedural) -> Mix:
    """Marble: thin lines where noise crosses its middle."""
    ridge = (fractal(p, 0) - 0.5).abs()
    line, haze = 1 - step(0.035, 0.06, ridge), 0.3 * (1 - step(0.09, 0.18, ridge))
    return Mix(torch.maximum(line, haze), fractal(p, 2), _flat(p))


def grain(p: Procedural) -> Mix:
    """Wood grain: rings round a far upright axis, and fibres."""
    # From light to dark along a ring, then back at once.
    line = step(0.1, 1.6, p.rings[:, 1] + 0.5 * p.rings[:, 0])
    fibre = (p.fibre[:, 0] + p.fibre[:, 1] + p.hairs[:, 0]) / 3
    pores = step(0.72, 0.2, p.hairs[:, 1])
    return Mix((0.7 * line + 0.7 * (fibre - 0.4) + 0.25 * pores).clamp(0, 1), p.furrow[:, 0], -line + 0.4 * fibre)


def planks(p: Procedural) -> Mix:
    """Boards 0.5 wide with dark joints, each with its tone, and grain."""
    joint = 1 - step(0.035, 0.03, p.boards[:, 0])
    return Mix(torch.maximum(joint, 0.6 * grain(p).weight), p.boards[:, 1], -joint)


def bricks(p: Procedural) -> Mix:
    """Running bond: bricks 0.5 x 0.25 with mortar joints (weight 1)."""
    rough = 0.012 * (p.fine[:, 0] - 0.5) + 0.012 * (p.finer[:, 0] - 0.5)
    mortar = 1 - step(0.022, 0.016, p.bricks[:, 0] + rough)
    grit = step(0.5, 0.6, (p.finer[:, 1] + p.finest[:, 0]) / 2)
    return Mix(mortar, 0.65 * p.bricks[:, 2] + 0.35 * grit, (1 - mortar) * (0.85 + 0.15 * p.finer[:, 1]))


def tiles(p: Procedural) -> Mix:
    """Square tiles of 0.25 with grout lines (weight 1)."""
    grout = 1 - step(0.024, 0.018, p.squares[:, 0])
    return Mix(grout, p.squares[:, 1], 1 - grout)


def checks(p: Procedural) -> Mix:
    """Chequerboard of 0.25 squares."""
    return _two_tone(step(0.0, 0.3, p.across[:, 0] * p.up[:, 0]))


def stripes(p: Procedural) -> Mix:
    """Straight level bands, period 0.5 in height."""
    return _two_tone(step(0.0, 0.35, p.level[:, 0]))


def tartan(p: Procedural) -> Mix:
    """Crossing bands: none, one or two on top of each other."""
    return _two_tone(0.5 * step(0.2, 0.25, p.across[:, 0]) + 0.5 * step(0.2, 0.25, p.up[:, 0]))


def dots(p: Procedural) -> Mix:
    """Round dots on a grid of 0.5 x 0.25, every other row shifted."""
    return _two_tone(1 - step(0.085, 0.03, p.bricks[:, 1]))


def zebra(p: Procedural) -> Mix:
    """Wavering bands."""
    return _two_tone(step(0.0, 0.35, p.bands[:, 0]))


def tiger(p: Procedural) -> Mix:
    """Thin broken dark bands."""
    gate = fractal(p, 2)
    return Mix(step(0.55, 0.3, p.bands[:, 0] + 1.6 * (gate - 0.5)), gate, _flat(p))


def rosettes(p: Procedural) -> Mix:
    """Leopard: broken dark rings."""
    nearest = p.large_cells[:, 0] + 0.12 * (p.medium[:, 0] - 0.5)
    ring = step(0.2, 0.1, nearest) * (1 - step(0.42, 0.08, nearest))
    return Mix(ring * step(0.4, 0.12, p.medium[:, 1]), 1 - p.large_cells[:, 0], _flat(p))


def blotches(p: Procedural) -> Mix:
    """Irregular round spots (dalmatian, ladybird, cheese holes)."""
    value = p.large_cells[:, 2]
    wobble = 0.12 * (p.medium[:, 0] - 0.5)
    weight = 1 - step(0.2 + 0.16 * value, 0.07, p.large_cells[:, 0] + wobble)
    return Mix(weight, value, -weight)


def camouflage(p: Procedural) -> Mix:
    """Three flat tones in large lobes: weights 0, 0.5 and 1."""
    one, two = step(0.53, 0.04, fractal(p, 0)), step(0.56, 0.04, fractal(p, 1))
    return _two_tone(torch.maximum(0.5 * one, two))


def cracks(p: Procedural) -> Mix:
    """Plates parted by lines (giraffe, cobbles, dry mud, crocodile)."""
    line = 1 - step(0.13, 0.08, p.large_cells[:, 1])
    return Mix(line, p.large_cells[:, 2], 1 - line)


def scales(p: Procedural) -> Mix:
    """Small plates (snake skin, gravel)."""
    line = 1 - step(0.16, 0.14, p.small_cells[:, 1])
    return Mix(line, p.small_cells[:, 2], 1 - line)


def pebbles(p: Procedural) -> Mix:
    """The fine grain of leather."""
    line = 1 - step(0.14, 0.22, p.tiny_cells[:, 1])
    return Mix(0.7 * line, (fractal(p, 1) + p.tiny_cells[:, 2]) / 2, 1 - line)


def dents(p: Procedural) -> Mix:
    """Hammer marks: shallow bowls."""
    return Mix(_flat(p), p.large_cells[:, 2], p.large_cells[:, 0] ** 2 * 1.6)


def weave(p: Procedural) -> Mix:
    """Over-and-under threads."""
    height = p.weave[:, 0]
    return Mix(p.weave[:, 1], height, height)


def knit(p: Procedural) -> Mix:
    """Columns of slanted stitches."""
    height = p.knit[:, 0]
    return Mix(1 - height, height, height)


def streaks(p: Procedural) -> Mix:
    """Long fine lines round the upright axis (brushed metal)."""
    fine = (p.brushing[:, 0] + 0.7 * p.streaks[:, 1]) / 1.7
    return Mix(step(0.5, 0.6, fine), fine, fine)


def bark(p: Procedural) -> Mix:
    """Deep upright furrows."""
    ridge = ((0.6 * p.furrow[:, 0] + p.fibre[:, 0] + 0.4 * p.hairs[:, 0]) / 2 - 0.5).abs()
    weight = 1 - step(0.06, 0.16, ridge)
    return Mix(weight, (p.fibre[:, 1] + p.finer[:, 0]) / 2, -weight)


def strands(p: Procedural) -> Mix:
    """Fine upright strands (fur, grass)."""
    fine = (0.6 * p.fibre[:, 1] + p.hairs[:, 0] + 0.6 * p.hairs[:, 1]) / 2.2
    return Mix(step(0.5, 0.35, fine), fine_fractal(p, 1), fine)


def birch(p: Procedural) -> Mix:
    """Pale bark with short level dashes."""
    field = (p.dashes[:, 0] + 0.4 * p.medium[:, 2]) / 1.4
    weight = step(0.63, 0.06, field)
    return Mix(weight, field, -weight)


def ripples(p: Procedural) -> Mix:
    """Wind ripples (sand dunes)."""
    wave, fine = p.ripples[:, 0], (p.finer[:, 0] + p.finest[:, 2]) / 2
    drift = (fractal(p, 1) + fine) / 2
    return Mix((0.35 * (0.5 + 0.5 * wave) + 0.4 * fine).clamp(0, 1), drift, 0.5 * wave + 0.15 * fine)


def quilt(p: Procedural) -> Mix:
    """Pillows between crossing diagonal seams."""
    seam = 1 - step(0.16, 0.16, p.diagonal.amin(1))
    return Mix(seam, torch.full_like(seam, 0.5), torch.sqrt(p.diagonal.prod(1) + 1e-6))
