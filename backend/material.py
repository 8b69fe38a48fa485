# SPDX-License-Identifier: Apache-2.0
"""The learnable maps: what the optimiser changes, and how they are looked up and baked.

Seven raw channels (base colour 3, metallic, roughness, tangent-normal x and y) are the sum of

  * volumes: coarse 3D grids over the object's box, read at the point's position. They carry what is
    decided at object level, and know no UV seams;
  * a pyramid of UV images, from coarse to the finest, read at the point's uv. A level counts fully
    while its texels are wider than the pixel's footprint and fades out when they are half as wide,
    which filters the lookup and gives most covered texels a gradient every step.

value = clamp(0.5 + raw): most true materials are 0 or 1 somewhere (no metal at all, black ink), and a limit that is
reached only at infinity never lets them be. Derivatives that lead back inside pass beyond the limits, so that these
are no dead ends. Colours are display values (interpolated, then decoded, as Blender does). It knows points and
texels, not losses or cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import lookup, seams
from .mesh import Mesh
from .rasterize import GBuffer, Triangles, texels_of
from .shading import SurfaceMaps, srgb_to_linear

CHANNELS = 7
VOLUME_SIDES = (1, 6, 16, 40)
COARSEST_LEVEL = 32
TILT_MAX = 0.6  # of the normal's x and of its y: up to 58 degrees together
SLOPE = (1.0, 1.0, 1.0, 1.0, 1.0, 0.35, 0.35)  # stored value by raw value, by channel
BASE_COLOR, METALLIC, ROUGHNESS, NORMAL = slice(0, 3), 3, 4, slice(5, 7)
# Grey, half rough, undecided between metal and dielectric: at object level, where a run begins, the light
# tells them apart from either side, while a start at 0 can stay there (metallic is bistable).
START = (0.0, 0.0, 0.0, -0.1, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class LearnableMaps:
    """volumes: (1, 7, D, D, D) each; pyramid: (1, 7, T, T) each, coarse to fine; row 0 is v = 0."""

    volumes: tuple[Tensor, ...]
    pyramid: tuple[Tensor, ...]

    def parameters(self) -> list[Tensor]:
        return [*self.volumes, *self.pyramid]


def new_maps(finest: int, device: torch.device | str = "cpu") -> LearnableMaps:
    """Maps at the starting material with a finest UV level of `finest` texels."""
    volumes = [torch.zeros(1, CHANNELS, side, side, side, device=device) for side in VOLUME_SIDES]
    volumes[0] += torch.tensor(START, device=device).view(1, -1, 1, 1, 1)
    sides = []
    side = COARSEST_LEVEL
    while side <= finest:
        sides.append(side)
        side *= 2
    pyramid = [torch.zeros(1, CHANNELS, side, side, device=device) for side in sides]
    return LearnableMaps(tuple(v.requires_grad_(True) for v in volumes), tuple(p.requires_grad_(True) for p in pyramid))


def raw_values(maps: LearnableMaps, position: Tensor, uv: Tensor, footprint: Tensor, detail: float = 1.0) -> Tensor:
    """Raw channels (N, 7) at points; `detail` in 0..1 lets levels in from coarse to fine."""
    return _blend(maps.volumes, maps.pyramid, position, uv, footprint, detail)


@torch.no_grad()
def scatter(
    maps: LearnableMaps, gbuffer: GBuffer, values: Tensor, detail: float = 1.0
) -> list[tuple[Tensor, Tensor] | None]:
    """What raw_values reads, the other way round: for each of `maps.parameters()` the sums (1, 7, ...) of the points'
    `values` (N, 7) by the texels' shares in them, and the sums of these shares (1, 1, ...); None: not open."""
    weights = _weights(maps.volumes, maps.pyramid, gbuffer.footprint, detail)
    grid3, grid2 = lookup.volume_grid(gbuffer.position), lookup.image_grid(gbuffer.uv)
    values = torch.cat((values, torch.ones_like(values[:, :1])), dim=1)
    sums: list[tuple[Tensor, Tensor] | None] = []
    for parameter, weight in zip(maps.parameters(), weights, strict=True):
        if weight is None:
            sums.append(None)
            continue
        weighted = values * (weight[:, None] if isinstance(weight, Tensor) else weight)
        summed = lookup.spread(weighted, parameter.shape, grid3 if parameter.ndim == 5 else grid2)
        sums.append((summed[:, :-1], summed[:, -1:]))
    return sums


def gain(maps: LearnableMaps, footprint: Tensor, shares: Sequence[float], detail: float = 1.0) -> Tensor:
    """(N,) how far a point's raw values move when each of `maps.parameters()` moves by its share of 1."""
    total = torch.zeros_like(footprint)
    for weight, share in zip(_weights(maps.volumes, maps.pyramid, footprint, detail), shares, strict=True):
        if weight is not None:
            total = total + weight * share
    return total


def _weights(
    volumes: Sequence[Tensor], pyramid: Sequence[Tensor], footprint: Tensor, detail: float
) -> list[float | Tensor | None]:
    """How much each level counts at points: a number for all, (N,), or None where it is not open."""
    count = len(volumes) + len(pyramid)
    opened = [min(1.0, 1 + detail * (count - 1) - level) for level in range(count)]
    weights = [share if share > 0 else None for share in opened]
    for level, image in enumerate(pyramid, start=len(volumes)):
        if weights[level] is not None:
            # log2 of texels under the footprint: 0 keeps the level, 1 drops it.
            fade = (1 - torch.log2((footprint * image.shape[-1]).clamp(min=1e-6))).clamp(0, 1)
            weights[level] = weights[level] * fade
    return weights


def _blend(
    volumes: Sequence[Tensor], pyramid: Sequence[Tensor], position: Tensor, uv: Tensor, footprint: Tensor, detail: float
) -> Tensor:
    weights = _weights(volumes, pyramid, footprint, detail)
    total = position.new_zeros(position.shape[0], volumes[0].shape[1])
    grid3, grid2 = lookup.volume_grid(position), lookup.image_grid(uv)
    for weight, volume in zip(weights, volumes, strict=False):
        if weight is not None:
            total = total + weight * lookup.read(volume, grid3)
    for weight, image in zip(weights[len(volumes) :], pyramid, strict=True):
        if weight is not None:
            total = total + weight[:, None] * lookup.read(image, grid2)
    return total


class _Clamp(torch.autograd.Function):
    """Clamp to low..high; beyond them the derivative passes when descending it leads back."""

    @staticmethod
    def forward(ctx, values: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.limits = low, high
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        low, high = ctx.limits
        return torch.where(leads_out(values, gradient, low, high), 0.0, gradient), None, None


def limited(values: Tensor, low: float, high: float) -> Tensor:
    """`values` clamped to low..high, without dead ends: what descends back inside passes."""
    return _Clamp.apply(values, low, high)


def leads_out(values: Tensor, gradient: Tensor, low: float, high: float) -> Tensor:
    """Where `values` lie beyond a limit and descending `gradient` takes them farther."""
    return ((values > high) & (gradient < 0)) | ((values < low) & (gradient > 0))


def stored_values(raw: Tensor) -> Tensor:
    """Raw (..., 7) -> map values (..., 7) in 0..1 as written to files, normal x and y as 0..1."""
    value = limited(raw[..., : NORMAL.start] + 0.5, 0.0, 1.0)
    tilt = limited(raw[..., NORMAL] * SLOPE[-1] + 0.5, 0.5 - TILT_MAX / 2, 0.5 + TILT_MAX / 2)
    return torch.cat((value, tilt), dim=-1)


def raw_moves(raw: Tensor, moves: Tensor) -> Tensor:
    """Moves (N, 7), to be subtracted, of raw values that are `moves` of stored ones: none farther out of the limits,
    and those back begin at the limit."""
    beyond = _beyond(raw)
    back = torch.where(moves != 0, moves + beyond, moves)
    return torch.where(beyond * moves < 0, 0.0, back) / moves.new_tensor(SLOPE)


def _beyond(raw: Tensor) -> Tensor:
    """(N, 7) how far beyond its limits each stored value would be without them."""
    values = raw * raw.new_tensor(SLOPE) + 0.5
    half = values.new_tensor([0.5] * NORMAL.start + [TILT_MAX / 2] * 2)
    return values - torch.minimum(torch.maximum(values, 0.5 - half), 0.5 + half)


def tangent_normal(stored: Tensor) -> Tensor:
    """Unit tangent-space normals (..., 3) of stored values (..., 7)."""
    xy = stored[..., NORMAL] * 2 - 1
    z = torch.sqrt((1 - (xy**2).sum(-1, keepdim=True)).clamp(min=0.05))  # TILT_MAX keeps ours above
    return torch.cat((xy, z), dim=-1)


def surface_maps(stored: Tensor) -> SurfaceMaps:
    """Stored values (N, 7) -> what the shader takes."""
    return SurfaceMaps(
        srgb_to_linear(stored[:, BASE_COLOR]), stored[:, METALLIC], stored[:, ROUGHNESS], tangent_normal(stored)
    )


def look_up(maps: LearnableMaps, gbuffer: GBuffer, detail: float = 1.0) -> Tensor:
    """Stored values (N, 7) at the G-buffer's points."""
    return stored_values(raw_values(maps, gbuffer.position, gbuffer.uv, gbuffer.footprint, detail))


@dataclass(frozen=True)
class Texels:
    """Which texels of a size x size image the mesh shows: index (K,) into rows from the top, position (K, 3),
    triangle (K,); border (K,) bool: beside an island, read only between texels. `cuts`: where islands meet in space."""

    size: int
    index: Tensor
    position: Tensor
    triangle: Tensor
    border: Tensor
    cuts: seams.Cuts

    @property
    def uv(self) -> Tensor:
        """(K, 2) of their centres."""
        row, column = self.index // self.size, self.index % self.size
        return torch.stack(((column + 0.5) / self.size, 1 - (row + 0.5) / self.size), dim=1)


def texels(mesh: Mesh, size: int, device: torch.device | str = "cpu") -> Texels:
    inside = texels_of(Triangles.of(mesh, device), size)
    covered = torch.zeros(size * size, dtype=torch.bool)
    covered[inside[0].cpu()] = True
    cuts = seams.find(mesh, size)
    beside = [part.to(device) for part in seams.border_texels(cuts, covered.view(size, size))]
    border = torch.zeros(len(inside[0]) + len(beside[0]), dtype=torch.bool, device=device)
    border[len(inside[0]) :] = True
    return Texels(size, *(torch.cat(parts) for parts in zip(inside, beside, strict=True)), border, cuts)


def bake(
    maps: LearnableMaps, where: Texels, correct: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """The four maps (S, S, C) in 0..1, row 0 at the top, alike on both sides of UV seams; uncovered texels hold 0.

    `correct` may change the stored values (K, 7) before the seams are closed.
    """
    uv, stored = where.uv, []
    with torch.no_grad():
        for chunk in torch.arange(uv.shape[0], device=uv.device).split(1 << 20):
            footprint = torch.full((len(chunk),), 1.0 / where.size, device=uv.device)
            stored.append(stored_values(raw_values(maps, where.position[chunk], uv[chunk], footprint)))
        values = torch.cat(stored) if stored else torch.zeros(0, CHANNELS, device=uv.device)
        values = correct(values) if correct is not None else values
        fitted = seams.stitch(where.cuts, where.index.cpu(), values.cpu(), where.border.cpu(), where.size)
        return split_maps(fitted.to(values), where)


def split_maps(values: Tensor, where: Texels) -> dict[str, Tensor]:
    """Stored values (K, 7) of covered texels -> the four images."""
    normal = tangent_normal(values) * 0.5 + 0.5
    parts = {
        "base_color": values[:, BASE_COLOR],
        "metallic": values[:, METALLIC : METALLIC + 1],
        "roughness": values[:, ROUGHNESS : ROUGHNESS + 1],
        "normal": normal,
    }
    images = {}
    for name, part in parts.items():
        flat = torch.zeros(where.size**2, part.shape[1], device=part.device)
        images[name] = flat.index_copy(0, where.index, part).view(where.size, where.size, -1)
    return images


def coverage(where: Texels) -> Tensor:
    """(S, S) bool, row 0 at the top."""
    mask = torch.zeros(where.size**2, dtype=torch.bool, device=where.index.device)
    mask[where.index] = True
    return mask.view(where.size, where.size)
