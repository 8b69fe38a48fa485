# SPDX-License-Identifier: Apache-2.0
"""Solid patterns: functions of a 3D point that say how two components of a material mix.

Each pattern takes pattern coordinates q (N, 3), the surface normal (N, 3) and its random `Fields`,
and returns `Mix`: weight of the second component, a variation per cell or grain, and a height, all
(N,). Regular patterns (bricks, checks) have the periods 0.5 and 2 of the coordinates, locked to
them, so that a network that sees the coordinates can know their phase; noise has no such lock.
It knows geometry only; colours and roughness are in materials.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LATTICE = 16  # the noise repeats after so many units


@dataclass(frozen=True)
class Fields:
    """Randomness of one material instance: `volume` (1, 3, L+1, L+1, L+1) in 0..1 wraps round; offset (3,)."""

    volume: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Mix:
    weight: Tensor
    variation: Tensor
    height: Tensor


def draw_fields(generator: torch.Generator) -> Fields:
    volume = torch.rand(1, 3, LATTICE, LATTICE, LATTICE, generator=generator)
    for axis in (2, 3, 4):
        volume = torch.cat((volume, volume.narrow(axis, 0, 1)), dim=axis)
    return Fields(volume, torch.rand(3, generator=generator) * LATTICE)


def noise(fields: Fields, q: Tensor, frequency: float | Tensor) -> Tensor:
    """Smooth value noise (N, 3 channels) in 0..1, one lattice cell per 1/frequency units."""
    p = q * frequency + fields.offset
    cell = torch.floor(p)
    f = p - cell
    p = (cell + f * f * (3 - 2 * f)) % LATTICE
    grid = (p / LATTICE * 2 - 1).flip(-1).view(1, -1, 1, 1, 3)
    return torch.nn.functional.grid_sample(fields.volume, grid, align_corners=True)[0, :, :, 0, 0].T


def fbm(fields: Fields, q: Tensor, frequency: float, octaves: int = 3, stretch: Tensor | None = None) -> Tensor:
    """Fractal noise (N,) in 0..1, about 0.5 in the middle."""
    total, weight, amplitude = 0.0, 0.0, 1.0
    p = q if stretch is None else q * stretch
    for octave in range(octaves):
        total = total + amplitude * noise(fields, p + 7.3 * octave, frequency * 2**octave)[:, octave % 3]
        weight += amplitude
        amplitude *= 0.5
    return total / weight


def step(edge: float | Tensor, width: float, x: Tensor) -> Tensor:
    """Smooth step from 0 to 1 round `edge`."""
    t = ((x - edge) / width + 0.5).clamp(0, 1)
    return t * t * (3 - 2 * t)


def cells(fields: Fields, q: Tensor, frequency: float, jitter: float = 0.9) -> tuple[Tensor, Tensor, Tensor]:
    """Worley noise: distance to the nearest and second nearest point (in cells), and a random value per cell."""
    p = q * frequency + fields.offset
    base = torch.floor(p)
    shifts = torch.cartesian_prod(*[torch.arange(-1.0, 2.0)] * 3)
    corner = base[:, None] + shifts
    index = (corner % LATTICE).long()
    random = fields.volume[0, :, index[..., 0], index[..., 1], index[..., 2]].permute(1, 2, 0)
    distance = (corner + 0.5 + jitter * (random - 0.5) - p[:, None]).norm(dim=-1)
    nearest, which = distance.topk(2, dim=1, largest=False)
    value = random[..., 0].gather(1, which[:, :1])[:, 0]
    return nearest[:, 0], nearest[:, 1], value


def planar(q: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Box projection: coordinates (N,) across and up on the axis plane that the surface faces."""
    axis = normal.abs().argmax(1)
    across = torch.where(axis == 0, q[:, 1], q[:, 0])
    up = torch.where(axis == 2, q[:, 1], q[:, 2])
    return across, up


def _hash(a: Tensor, b: Tensor) -> Tensor:
    return torch.frac(torch.sin(a * 12.9898 + b * 78.233) * 43758.5453).abs()


def _flat(q: Tensor) -> Tensor:
    return torch.zeros_like(q[:, 0])


# --- patterns ---------------------------------------------------------------------------------


def plain(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    zero = _flat(q)
    return Mix(zero, zero + 0.5, zero)


def clouds(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Soft mottling."""
    weight = fbm(fields, q, 1.6)
    return Mix(step(0.5, 0.5, weight), weight, weight)


def patches(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Two components side by side with ragged edges (rust, chipped paint, moss on stone)."""
    field = fbm(fields, q, 1.7, octaves=4)
    detail = fbm(fields, q + 3.1, 5.0)
    weight = step(0.5, 0.07, field + 0.12 * (detail - 0.5))
    return Mix(weight, detail, weight * (0.5 + detail))


def grains(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Fine grain (sand, felt, concrete, fur)."""
    fine = fbm(fields, q, 7.0, octaves=2)
    return Mix(step(0.5, 0.8, fine), fbm(fields, q + 5.0, 2.0), fine)


def speckles(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Scattered grains of a second kind (granite, terrazzo, cookie)."""
    nearest, _, value = cells(fields, q, 4.5)
    weight = step(0.36, 0.12, -nearest + 0.72 * 1.0) * step(0.45, 0.1, value)
    return Mix(weight, value, weight * 0.3)


def veins(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Marble: thin lines where warped noise crosses its middle."""
    warped = q + 0.5 * (noise(fields, q, 1.5) - 0.5)
    ridge = (fbm(fields, warped, 1.3, octaves=3) - 0.5).abs()
    return Mix(1 - step(0.03, 0.06, ridge), fbm(fields, q + 9.0, 1.0), _flat(q))


def rings(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Wood grain: rings round a far upright axis, drawn out along it."""
    stretch = torch.tensor([1.0, 1.0, 0.3])
    warp = fbm(fields, q, 1.0, octaves=2, stretch=stretch)
    across = q[:, 0] + 0.35 * q[:, 1]
    phase = across * 4.0 + 1.6 * (warp - 0.5)
    saw = torch.frac(phase)
    saw = torch.where(saw < 0, saw + 1, saw)
    line = step(0.55, 0.5, saw) * (1 - step(0.95, 0.1, saw))
    fibre = fbm(fields, q, 6.0, octaves=2, stretch=torch.tensor([1.0, 1.0, 0.12]))
    return Mix((0.75 * line + 0.5 * (fibre - 0.35)).clamp(0, 1), warp, -line + 0.4 * fibre)


def planks(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Boards 0.5 wide with dark joints, each with its own grain and tone."""
    across, up = planar(q, normal)
    board = torch.floor(across * 2)
    inside = torch.frac(across * 2).abs()
    inside = torch.where(across < 0, 1 - inside, inside)
    joint = 1 - step(0.07, 0.06, torch.minimum(inside, 1 - inside))
    grain = rings(fields, q * torch.tensor([1.3, 1.3, 0.5]) + 3.7 * board[:, None], normal).weight
    return Mix(torch.maximum(joint, 0.6 * grain), _hash(board, board), -joint)


def bricks(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Running bond: bricks 0.5 x 0.25 with mortar joints (weight 1)."""
    across, up = planar(q, normal)
    row = torch.floor(up * 4)
    shifted = across * 2 + 0.5 * (row % 2)
    column = torch.floor(shifted)
    x, y = (shifted - column) * 0.5, (up * 4 - row) * 0.25
    edge = torch.minimum(torch.minimum(x, 0.5 - x), torch.minimum(y, 0.25 - y))
    rough = 0.012 * (fbm(fields, q, 5.0, octaves=2) - 0.5)
    mortar = 1 - step(0.026, 0.02, edge + rough)
    return Mix(mortar, _hash(column, row), 1 - mortar)


def tiles(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Square tiles of 0.25 or 0.5 with grout lines (weight 1)."""
    across, up = planar(q, normal)
    x, y = across * 4, up * 4
    column, row = torch.floor(x), torch.floor(y)
    edge = torch.minimum(torch.minimum(x - column, column + 1 - x), torch.minimum(y - row, row + 1 - y))
    grout = 1 - step(0.09, 0.07, edge)
    return Mix(grout, _hash(column, row), 1 - grout)


def checks(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Chequerboard of 0.25 squares."""
    across, up = planar(q, normal)
    square = torch.sin(across * 4 * torch.pi) * torch.sin(up * 4 * torch.pi)
    weight = step(0.0, 0.3, square)
    return Mix(weight, _flat(q) + 0.5, _flat(q))


def stripes(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Straight level bands, period 0.5 in height."""
    weight = step(0.0, 0.35, torch.sin(q[:, 2] * 4 * torch.pi))
    return Mix(weight, _flat(q) + 0.5, _flat(q))


def tartan(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Crossing bands: none, one or two on top of each other."""
    across, up = planar(q, normal)
    one = step(0.2, 0.25, torch.sin(across * 4 * torch.pi))
    two = step(0.2, 0.25, torch.sin(up * 4 * torch.pi))
    return Mix(0.5 * one + 0.5 * two, _flat(q) + 0.5, _flat(q))


def dots(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Round dots on a square grid of 0.5, every other row shifted."""
    across, up = planar(q, normal)
    row = torch.floor(up * 4)
    x = across * 2 + 0.5 * (row % 2)
    dx, dy = (x - torch.floor(x) - 0.5) * 0.5, (up * 4 - row - 0.5) * 0.25
    weight = 1 - step(0.085, 0.03, torch.sqrt(dx**2 + dy**2))
    return Mix(weight, _flat(q) + 0.5, _flat(q))


def zebra(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Wavering forked bands."""
    warp = noise(fields, q, 1.4) - 0.5
    phase = q[:, 2] * 3.4 + 1.5 * warp[:, 0] + 0.5 * warp[:, 1]
    weight = step(0.0, 0.35, torch.sin(phase * 2 * torch.pi))
    return Mix(weight, _flat(q) + 0.5, _flat(q))


def tiger(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Thin broken dark bands."""
    warp = noise(fields, q, 1.3) - 0.5
    phase = q[:, 2] * 3.0 + 1.8 * warp[:, 0]
    gate = fbm(fields, q + 4.0, 1.6)
    weight = step(0.62, 0.3, torch.sin(phase * 2 * torch.pi) + 0.9 * (gate - 0.5))
    return Mix(weight, gate, _flat(q))


def rosettes(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Leopard: broken dark rings."""
    nearest, _, value = cells(fields, q, 3.0, jitter=0.7)
    broken = 0.12 * (fbm(fields, q, 4.0) - 0.5)
    ring = step(0.2, 0.1, nearest + broken) * (1 - step(0.42, 0.08, nearest + broken))
    return Mix(ring * step(0.32, 0.1, value + fbm(fields, q + 2.0, 5.0) * 0.5), 1 - nearest, _flat(q))


def blotches(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Irregular round spots (dalmatian, ladybird, cheese holes)."""
    nearest, _, value = cells(fields, q, 2.6, jitter=0.8)
    wobble = 0.12 * (fbm(fields, q, 3.0) - 0.5)
    weight = 1 - step(0.2 + 0.16 * value, 0.07, nearest + wobble)
    return Mix(weight, value, -weight)


def camouflage(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Three flat tones in large lobes: weights 0, 0.5 and 1."""
    one = step(0.53, 0.04, fbm(fields, q, 1.5, octaves=2))
    two = step(0.56, 0.04, fbm(fields, q + 6.0, 1.5, octaves=2))
    return Mix(torch.maximum(0.5 * one, two), _flat(q) + 0.5, _flat(q))


def cracks(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Plates parted by lines (giraffe, cobbles, dry mud, crocodile)."""
    nearest, second, value = cells(fields, q, 2.4, jitter=0.8)
    line = 1 - step(0.13, 0.08, second - nearest)
    return Mix(line, value, 1 - line)


def scales(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Small plates (snake skin, pebbled leather)."""
    nearest, second, value = cells(fields, q, 4.6, jitter=0.55)
    line = 1 - step(0.16, 0.14, second - nearest)
    return Mix(line, value, 1 - line)


def dents(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Hammer marks: shallow bowls."""
    nearest, _, value = cells(fields, q, 3.2, jitter=0.8)
    return Mix(_flat(q), value, nearest**2 * 1.6)


def weave(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Over-and-under threads 0.125 wide."""
    across, up = planar(q, normal)
    x, y = across * 8, up * 8
    over = (torch.floor(x) + torch.floor(y)) % 2
    fx, fy = torch.sin(torch.pi * x).abs(), torch.sin(torch.pi * y).abs()
    height = torch.where(over > 0.5, fx * 0.6 + 0.4, fy * 0.6 + 0.4)
    return Mix(over, height, height)


def knit(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Columns of slanted stitches, 0.25 wide."""
    across, up = planar(q, normal)
    side = torch.frac(across * 4).abs() - 0.5
    stitch = torch.sin((up * 8 + 2.0 * side.abs() * 2) * torch.pi)
    height = 0.5 + 0.5 * stitch * (1 - (2 * side.abs() - 0.5) ** 2)
    return Mix(1 - height, height, height)


def streaks(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Long fine lines round the upright axis (brushed metal, bark, straw)."""
    fine = fbm(fields, q, 5.0, octaves=2, stretch=torch.tensor([0.12, 0.12, 1.6]))
    return Mix(step(0.5, 0.6, fine), fine, fine)


def bark(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Deep upright furrows."""
    ridge = (fbm(fields, q, 2.6, octaves=3, stretch=torch.tensor([1.0, 1.0, 0.25])) - 0.5).abs()
    weight = 1 - step(0.06, 0.1, ridge)
    return Mix(weight, fbm(fields, q + 3.0, 3.0), -weight)


def birch(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Pale bark with short level dashes."""
    field = fbm(fields, q, 1.8, octaves=3, stretch=torch.tensor([0.8, 0.8, 3.4]))
    weight = step(0.63, 0.06, field)
    return Mix(weight, field, -weight)


def ripples(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Wind ripples (sand dunes)."""
    warp = noise(fields, q, 1.2) - 0.5
    wave = torch.sin((q[:, 2] * 2.5 + q[:, 0] * 0.8 + 1.2 * warp[:, 0]) * 2 * torch.pi)
    grain = fbm(fields, q, 7.0, octaves=2)
    return Mix(0.35 * (0.5 + 0.5 * wave) + 0.4 * grain, grain, 0.5 * wave + 0.3 * grain)


def quilt(fields: Fields, q: Tensor, normal: Tensor) -> Mix:
    """Pillows between crossing diagonal seams."""
    across, up = planar(q, normal)
    a, b = (across + up) * 2, (across - up) * 2
    fa, fb = torch.sin(torch.pi * a).abs(), torch.sin(torch.pi * b).abs()
    seam = 1 - step(0.16, 0.16, torch.minimum(fa, fb))
    return Mix(seam, _flat(q) + 0.5, torch.sqrt(fa * fb + 1e-6))


Pattern = Callable[[Fields, Tensor, Tensor], Mix]
