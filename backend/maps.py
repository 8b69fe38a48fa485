# SPDX-License-Identifier: Apache-2.0
"""Maps onto the disk: fill what no camera saw between the islands, quantise, write all or nothing.

Knows the four maps as stored values in 0..1 with row 0 at the top (v = 1); knows no UVs and no
material. What is far from covered texels in 3D but near in UV is filled before, by its owner.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from addon.protocol import MAP_NAMES

CHANNELS = {"base_color": 3, "metallic": 1, "roughness": 1, "normal": 3}

# zlib level 1: at 4096 x 4096 three times as fast as the default for files a tenth larger.
_COMPRESS_LEVEL = 1
_RINGS = 4  # texels around an island that take the colour of its border and of no other's
# How much a texel that was itself filled counts beside a covered one.
_FILLED_WEIGHT = 1e-3


def write_maps(
    folder: Path,
    maps: dict[str, torch.Tensor | np.ndarray],
    covered: torch.Tensor | np.ndarray,
    prefix: str = "",
    as_given: dict[str, torch.Tensor] | None = None,
) -> dict[str, Path]:
    """Write `maps` (name -> (H,W,3) or (H,W,1), stored values in 0..1) as 8-bit PNG files.

    Texels outside of `covered` (H,W) bool are filled from their neighbours, normals made unit
    length; not so where `as_given` (name -> (H,W) bool) says that texels are final. The files
    `<folder>/<prefix><name>.png` appear together or, on OSError (disk full), not at all: old files stay as
    they were. Raises ValueError for values that are no maps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{prefix}{name}.png" for name in maps}
    beside = {name: path.with_name(f".{path.name}.{os.getpid()}.part") for name, path in paths.items()}
    covered = torch.as_tensor(covered).detach().cpu()
    try:
        for name, values in maps.items():
            values = _checked(name, values, covered)
            filled = fill_uncovered(values, covered)
            if name == "normal":
                filled = unit_normals(filled)
            if as_given is not None:
                filled = torch.where(as_given[name][..., None], values, filled)
            texels = quantise(filled)
            with open(beside[name], "wb") as file:
                Image.fromarray(texels).save(file, format="PNG", compress_level=_COMPRESS_LEVEL)
                file.flush()
                os.fsync(file.fileno())
        for name, path in paths.items():
            os.replace(beside[name], path)
    except BaseException:
        for path in beside.values():
            path.unlink(missing_ok=True)
        raise
    return paths


def read_map(path: Path) -> np.ndarray:
    """A written map as stored values (H,W,3) or (H,W) float32 in 0..1, row 0 at the top."""
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.float32) / 255


def fill_uncovered(values: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
    """`values` (H,W,C) with every texel outside of `covered` (H,W) bool filled from covered ones.

    The nearest texels grow ring by ring, the rest by push-pull: averages of covered texels climb a
    pyramid, then descend into the holes. So a gutter takes the colour of its island's border at
    every mip level. Covered texels stay bit-equal.
    """
    if not covered.any():
        raise ValueError("No texel of the maps is covered, so there is nothing to fill them from.")
    if covered.all():
        return values
    values = values.detach().clone()
    grown = covered.clone()
    for _ in range(_RINGS):
        _grow(values, grown)
    # One channel at a time: a 4096 x 4096 map of three would need over a gigabyte at once.
    weights = _weights(grown.to(values.dtype)[None, None])
    if len(weights) > 1:
        for c in range(values.shape[-1]):
            values[..., c] = _fill_channel(values[..., c], grown, weights)
    return values


def unit_normals(stored: torch.Tensor) -> torch.Tensor:
    """Normals (H,W,3) stored as 0..1 scaled to unit length; one without a length becomes +Z."""
    vectors = stored * 2 - 1
    length = vectors.square().sum(dim=-1, keepdim=True).sqrt_()
    flat = vectors.new_tensor([0.0, 0.0, 1.0])
    vectors = torch.where(length < 1e-3, flat, vectors.div_(length.clamp_min(1e-3)))
    return vectors.add_(1).mul_(0.5)


def quantise(values: torch.Tensor) -> np.ndarray:
    """Stored values (H,W,C) in 0..1, rounded to uint8; (H,W) when C is 1."""
    texels = (values.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()
    return np.ascontiguousarray(texels[..., 0] if texels.shape[-1] == 1 else texels)


def _checked(name: str, values: torch.Tensor | np.ndarray, covered: torch.Tensor) -> torch.Tensor:
    if name not in MAP_NAMES:
        raise ValueError(f"{name!r} is no map; the maps are {', '.join(MAP_NAMES)}.")
    values = torch.as_tensor(values).detach().to("cpu", torch.float32)
    if values.shape != (*covered.shape, CHANNELS[name]):
        raise ValueError(f"The map {name} has the shape {tuple(values.shape)}; coverage is {tuple(covered.shape)}.")
    if not torch.isfinite(values.sum(dtype=torch.float64)):
        raise ValueError(f"The map {name} holds values that are not numbers: the optimisation diverged.")
    return values


def _grow(values: torch.Tensor, covered: torch.Tensor) -> None:
    """Give the uncovered texels that touch `covered` the mean of their covered neighbours, in place."""
    near = covered.clone()
    near[1:] |= covered[:-1]
    near[:-1] |= covered[1:]
    across = near.clone()
    near[:, 1:] |= across[:, :-1]
    near[:, :-1] |= across[:, 1:]
    y, x = torch.nonzero(near & ~covered, as_tuple=True)
    total, weight = values.new_zeros(len(y), values.shape[-1]), values.new_zeros(len(y), 1)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            # At the border a neighbour counts twice instead of one that is not there.
            at = (y + dy).clamp_(0, covered.shape[0] - 1), (x + dx).clamp_(0, covered.shape[1] - 1)
            share = covered[at][:, None] * (1.0 if dx * dy == 0 else 0.5)
            total += torch.where(share > 0, values[at], 0) * share
            weight += share
    values[y, x] = total / weight
    covered[y, x] = True


def _weights(weight: torch.Tensor) -> list[torch.Tensor]:
    """Coverage at each level (1,1,H,W): the share of covered texels under it; the last level has no hole."""
    levels = [weight]
    while not bool((levels[-1] > 0).all()):
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True))
    return levels


def _fill_channel(channel: torch.Tensor, covered: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    sums = [torch.where(covered, channel, 0)[None, None]]
    for _ in weights[1:]:
        sums.append(F.avg_pool2d(sums[-1], 2, ceil_mode=True))
    coarse = sums[-1] / weights[-1]
    for parent, own, total in zip(weights[:0:-1], weights[-2::-1], sums[-2::-1], strict=True):
        # Upsampled with covered texels far heavier than filled ones: no colour of another island
        # comes in as long as this island reaches.
        trust = parent.gt(0).to(coarse.dtype).clamp_min_(_FILLED_WEIGHT)
        above = F.interpolate(coarse * trust, size=own.shape[-2:], mode="bilinear", align_corners=False)
        above /= F.interpolate(trust, size=own.shape[-2:], mode="bilinear", align_corners=False)
        coarse = torch.where(own > 0, total / own.clamp_min(1e-30), above)
    return coarse[0, 0]  # of a covered texel: itself / 1, bit-equal
