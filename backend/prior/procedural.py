# SPDX-License-Identifier: Apache-2.0
"""Solid procedural textures, as an artist has them in Blender's texture nodes: noise, Voronoi, bricks, waves.

Everything is a fixed function of the pattern coordinates q (N, 3) and the surface normal (N, 3). The generator
(patterns.py) builds its materials' patterns from these, and the built-in prior is given the same textures at every
point (field.py): what it learns is which of them a word calls for, and how. Because nothing is drawn at random,
all views of an object agree; another offset of q gives another pattern.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor

LATTICE = 16  # noise repeats after so many of its cells
FINE_LATTICE = 32  # the fine ones, of which more lie on an object
NOISE_SEED = 2026
TURN = ((0.6, -4 / 13, 9.6 / 13), (0.8, 3 / 13, -7.2 / 13), (0.0, 12 / 13, 5 / 13))  # away from the axes


@dataclass(frozen=True)
class Procedural:
    """Textures at N points, (N, C) each. Noise and random values lie in 0..1, waves in -1..1, distances in q units."""

    coarse: Tensor  # 3: smooth noise, 1.5 cells a unit
    medium: Tensor  # 3: 3 cells
    fine: Tensor  # 3: 6 cells
    fibre: Tensor  # 3: noise drawn out along z
    furrow: Tensor  # 3: the same, wider
    dashes: Tensor  # 3: noise pressed flat along z
    streaks: Tensor  # 3: the same, finer and longer
    large_cells: Tensor  # 3: Voronoi, 2.5 cells a unit: distance to the nearest point, gap to the second, cell's value
    small_cells: Tensor  # 3: 4.5 cells a unit
    bricks: Tensor  # 3: running bond 0.5 x 0.25: distance to the joint, to the middle, brick's value
    squares: Tensor  # 2: 0.25 x 0.25: distance to the joint, square's value
    boards: Tensor  # 2: 0.5 wide: distance to the joint, board's value
    across: Tensor  # 4: sine and cosine across the facade, periods 0.5 and 0.25
    up: Tensor  # 4: the same upwards
    diagonal: Tensor  # 2: |sine| along both diagonals, zero at the seams of a quilt
    level: Tensor  # 2: sine and cosine of height, period 0.5
    bands: Tensor  # 2: the same wavering, 3.5 a unit
    rings: Tensor  # 2: wood rings round a far upright axis
    ripples: Tensor  # 2: wind ripples
    weave: Tensor  # 2: height and over/under of threads
    knit: Tensor  # 1: height of slanted stitches
    finer: Tensor  # 3: smooth noise, 12 cells a unit
    finest: Tensor  # 3: 24 cells
    hairs: Tensor  # 3: noise drawn out along z, 20 cells across
    brushing: Tensor  # 3: noise pressed flat along z, 28 cells
    tiny_cells: Tensor  # 3: Voronoi, 18 cells a unit

    def stacked(self) -> Tensor:
        """(N, CHANNELS), each channel about -1..1."""
        together = torch.cat([getattr(self, f.name) for f in fields(self)], dim=1)
        middle, half_width = torch.tensor(_RANGES).to(together).T
        return (together - middle) / half_width


def evaluate(q: Tensor, normal: Tensor) -> Procedural:
    across, up = planar(q, normal)
    coarse, fibre = noise(q, 1.5), noise(q, (6.0, 6.0, 0.75))
    one, two, tau = across[:, None], up[:, None], 2 * torch.pi
    running = _masonry(across, up, 0.5, 0.25, running_bond=True)
    square = _masonry(across, up, 0.25, 0.25, running_bond=False)
    board = _masonry(across, torch.zeros_like(up) + 2.0, 0.5, 4.0, running_bond=False)
    warp = coarse - 0.5
    band = 3.5 * q[:, 2] + 1.2 * warp[:, 0] + 0.5 * warp[:, 1]
    furrow = noise(q, (2.6, 2.6, 0.65))
    ring = 4.0 * q[:, 0] + 1.4 * q[:, 1] + 2.8 * (noise(q, (1.0, 1.0, 0.4))[:, 0] - 0.5) + 0.7 * (furrow[:, 1] - 0.5)
    turn = torch.tensor(TURN).to(q)
    ripple = 2.5 * q[:, 2] + 0.8 * q[:, 0] + 1.2 * warp[:, 2]
    over = (torch.floor(across * 6) + torch.floor(up * 6)) % 2
    thread = torch.where(over > 0.5, torch.sin(torch.pi * 6 * across).abs(), torch.sin(torch.pi * 6 * up).abs())
    side = (torch.remainder(across * 4, 1.0) - 0.5).abs()
    stitch = torch.sin((up * 8 + 4.0 * side) * torch.pi)
    return Procedural(
        coarse=coarse,
        medium=noise(q, 3.0),
        fine=noise(q, 6.0),
        fibre=fibre,
        furrow=furrow,
        dashes=noise(q, (1.5, 1.5, 6.0)),
        streaks=noise(q, (0.7, 0.7, 8.0)),
        large_cells=cells(q, 2.5, jitter=0.8),
        small_cells=cells(q, 4.5, jitter=0.65),
        bricks=running,
        squares=square[:, ::2],
        boards=board[:, ::2],
        across=torch.cat([f(k * tau * one) for k in (2, 4) for f in (torch.sin, torch.cos)], dim=1),
        up=torch.cat([f(k * tau * two) for k in (2, 4) for f in (torch.sin, torch.cos)], dim=1),
        diagonal=torch.sin(tau * torch.cat((one + two, one - two), dim=1)).abs(),
        level=_circle(2 * q[:, 2]),
        bands=_circle(band),
        rings=_circle(ring),
        ripples=_circle(ripple),
        weave=torch.stack((0.6 * thread + 0.4, over), dim=1),
        knit=(0.5 + 0.5 * stitch * (1 - (2 * side - 0.5) ** 2))[:, None],
        finer=noise(q @ turn, 12.0, FINE_LATTICE),
        finest=noise(q @ turn.T, 24.0, FINE_LATTICE),
        hairs=noise(q, (20.0, 20.0, 2.5), FINE_LATTICE),
        brushing=noise(q, (1.2, 1.2, 28.0), FINE_LATTICE),
        tiny_cells=cells(q @ turn, 18.0, jitter=0.9, lattice=FINE_LATTICE),
    )


def noise(q: Tensor, frequency: float | tuple[float, float, float], lattice: int = LATTICE) -> Tensor:
    """Smooth value noise (N, 3 channels) in 0..1 with `frequency` lattice cells a unit, per axis."""
    p = q * torch.tensor(frequency, dtype=q.dtype, device=q.device)
    cell = torch.floor(p)
    f = p - cell
    p = (cell + f * f * (3 - 2 * f)) % lattice
    grid = (p / lattice * 2 - 1).flip(-1).view(1, -1, 1, 1, 3)
    return torch.nn.functional.grid_sample(_volume(lattice).to(q), grid, align_corners=True)[0, :, :, 0, 0].T


def cells(q: Tensor, frequency: float, jitter: float, lattice: int = LATTICE) -> Tensor:
    """Voronoi (N, 3): distance to the nearest point, gap to the second nearest (in cells), a value per cell."""
    p = q * frequency
    shifts = torch.cartesian_prod(*[torch.arange(-1.0, 2.0)] * 3).to(q)
    corner = torch.floor(p)[:, None] + shifts
    index = (corner % lattice).long()
    flat = (index[..., 0] * lattice + index[..., 1]) * lattice + index[..., 2]
    random = _volume(lattice)[0, :, :-1, :-1, :-1].reshape(3, -1).T.contiguous().to(q)[flat]
    distance = (corner + 0.5 + jitter * (random - 0.5) - p[:, None]).norm(dim=-1)
    nearest, which = distance.topk(2, dim=1, largest=False)
    value = random[..., 0].gather(1, which[:, :1])
    return torch.cat((nearest[:, :1], nearest[:, 1:] - nearest[:, :1], value), dim=1)


def planar(q: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Box projection: coordinates (N,) across and up on the axis plane that the surface faces."""
    axis = normal.abs().argmax(1)
    across = torch.where(axis == 0, q[:, 1], q[:, 0])
    up = torch.where(axis == 2, q[:, 1], q[:, 2])
    return across, up


def _masonry(across: Tensor, up: Tensor, width: float, height: float, running_bond: bool) -> Tensor:
    """(N, 3): distance to the nearest joint, distance to the block's middle, a random value per block."""
    row = torch.floor(up / height)
    along = across / width + (0.5 * (row % 2) if running_bond else 0.0)
    column = torch.floor(along)
    x, y = (along - column) * width, up - row * height
    edge = torch.minimum(torch.minimum(x, width - x), torch.minimum(y, height - y))
    middle = torch.sqrt((x - width / 2) ** 2 + (y - height / 2) ** 2)
    value = _volume(LATTICE).to(across)[0, 0, (column % LATTICE).long(), (row % LATTICE).long(), 3]
    return torch.stack((edge, middle, value), dim=1)


def _circle(turns: Tensor) -> Tensor:
    return torch.stack((torch.sin(2 * torch.pi * turns), torch.cos(2 * torch.pi * turns)), dim=1)


@cache
def _volume(lattice: int) -> Tensor:
    """(1, 3, L+1, L+1, L+1) random values that wrap round."""
    volume = torch.rand(1, 3, lattice, lattice, lattice, generator=torch.Generator().manual_seed(NOISE_SEED))
    for axis in (2, 3, 4):
        volume = torch.cat((volume, volume.narrow(axis, 0, 1)), dim=axis)
    return volume


CHANNELS = 70
# Middle and half width of each channel's range, by which they are brought to about -1..1.
_NOISE, _WAVE, _VORONOI = (0.5, 0.4), (0.0, 1.0), ((0.5, 0.3), (0.25, 0.25), (0.5, 0.4))
_RANGES = (
    *(_NOISE,) * 21, *_VORONOI, *_VORONOI,
    (0.06, 0.06), (0.14, 0.1), _NOISE,  # bricks
    (0.06, 0.06), _NOISE, (0.12, 0.12), _NOISE,  # squares, boards
    *(_WAVE,) * 8, (0.5, 0.5), (0.5, 0.5), *(_WAVE,) * 8,
    (0.7, 0.3), (0.5, 0.5), (0.5, 0.5),  # weave, knit
    *(_NOISE,) * 12, *_VORONOI,
)  # fmt: skip
