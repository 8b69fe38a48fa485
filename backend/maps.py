# SPDX-License-Identifier: Apache-2.0
"""Maps onto the disk: fill what lies between the islands, write all files or none.

Knows the four maps as stored values in 0..1 with row 0 at the top (v = 1); knows no UVs and no
material. What is far from covered texels in 3D but near in UV is filled before, by its owner.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from addon.protocol import EXTRA_MAPS, FILE_FORMATS, MAP_NAMES

from . import map_files

CHANNELS = {"base_color": 3, "metallic": 1, "roughness": 1, "normal": 3}
_EXTRA_CHANNELS = dict.fromkeys(EXTRA_MAPS, 1)

_RINGS = 4  # texels around an island that take the colour of its border and of no other's
# How much a texel that was itself filled counts beside a covered one.
_FILLED_WEIGHT = 1e-3


def write_maps(
    folder: Path,
    maps: dict[str, torch.Tensor | np.ndarray],
    covered: torch.Tensor | np.ndarray,
    prefix: str = "",
    file_format: str = "png",
    bits: int | None = None,
    as_given: dict[str, torch.Tensor] | None = None,
) -> dict[str, Path]:
    """Write `maps` (name -> (H,W,3) or (H,W,1), stored values in 0..1) as files of one format (map_files.py).

    Texels outside of `covered` (H,W) bool are filled from their neighbours, normals made unit
    length; not so where `as_given` (name -> (H,W) bool) says that texels are final. The files
    `<folder>/<prefix><name>.<file_format>` appear together or, on OSError (disk full), not at all: old files stay
    as they were. Raises ValueError for values that are no maps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{prefix}{name}.{file_format}" for name in maps}
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
            map_files.write(beside[name], filled, name == "base_color", file_format, bits)
            with open(beside[name], "rb+") as file:
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
    return map_files.read(path, path.stem.endswith("base_color"))


def find_map(folder: Path, name: str) -> Path:
    """The file of map `name` in `folder`, whatever its format. Raises FileNotFoundError."""
    for file_format in FILE_FORMATS:
        if (folder / f"{name}.{file_format}").is_file():
            return folder / f"{name}.{file_format}"
    raise FileNotFoundError(f"There is no map {name} in {folder}.")


def fill_uncovered(values: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
    """`values` (H,W,C) with every texel outside of `covered` (H,W) bool filled from covered ones.

    Ring by ring the islands grow into the gaps, then go on growing at half the size, a quarter and so on, where a
    ring is wider: push-pull that keeps islands apart. So a gutter takes the colour of its island's border at every
    mip level, half way to the next island. Covered texels stay bit-equal.
    """
    if not covered.any():
        raise ValueError("No texel of the maps is covered, so there is nothing to fill them from.")
    if covered.all():
        return values
    return _filled(values.detach().clone(), covered.clone())


def _filled(values: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
    """Fill `values` (H,W,C) in place; `covered` is used up."""
    for _ in range(_RINGS):
        _grow(values, covered)
    if covered.all():
        return values
    share = F.avg_pool2d(covered.to(values.dtype)[None, None], 2, ceil_mode=True)
    # One channel at a time: a 4096 x 4096 map of three would need over a gigabyte at once.
    halved = torch.cat([_halved(torch.where(covered, channel, 0), share) for channel in values.unbind(-1)], dim=-1)
    reached = share[0, 0] > 0
    # What islands reach at this size is far heavier than what coarser levels made up.
    trust = reached.to(values.dtype).clamp_min_(_FILLED_WEIGHT)[None, None]
    below = _filled(halved, reached)
    size = covered.shape
    total = F.interpolate(trust, size=size, mode="bilinear", align_corners=False)
    for c in range(values.shape[-1]):
        above = F.interpolate(below[..., c] * trust, size=size, mode="bilinear", align_corners=False)
        values[..., c] = torch.where(covered, values[..., c], (above / total)[0, 0])
    return values


def _halved(channel: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """(h,w,1): means of the covered texels, by the share (1,1,h,w) of them."""
    sums = F.avg_pool2d(channel[None, None], 2, ceil_mode=True)
    return (sums / share.clamp_min(1e-30))[0, 0, ..., None]


def unit_normals(stored: torch.Tensor) -> torch.Tensor:
    """Normals (H,W,3) stored as 0..1 scaled to unit length; one without a length becomes +Z."""
    vectors = stored * 2 - 1
    length = vectors.square().sum(dim=-1, keepdim=True).sqrt_()
    flat = vectors.new_tensor([0.0, 0.0, 1.0])
    vectors = torch.where(length < 1e-3, flat, vectors.div_(length.clamp_min(1e-3)))
    return vectors.add_(1).mul_(0.5)


def _checked(name: str, values: torch.Tensor | np.ndarray, covered: torch.Tensor) -> torch.Tensor:
    channels = CHANNELS | _EXTRA_CHANNELS
    if name not in channels:
        raise ValueError(f"{name!r} is no map; the maps are {', '.join(MAP_NAMES)}.")
    values = torch.as_tensor(values).detach().to("cpu", torch.float32)
    if values.shape != (*covered.shape, channels[name]):
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
