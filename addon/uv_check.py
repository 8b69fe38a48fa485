# SPDX-License-Identifier: GPL-3.0-or-later
"""Are UVs usable for texturing? numpy only; knows neither bpy nor how to make better ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RANGE_TOLERANCE = 0.01
OVERLAP_LIMIT = 0.01
COLLAPSED_LIMIT = 0.01
_GRID = 512  # samples a side for measuring overlap
_ROWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class UvReport:
    """`reason` is why they are not usable, as the end of "UV layer X ..."; `overlap` in 0..1 of the covered texels."""

    usable: bool
    reason: str = ""
    overlap: float = 0.0


def shifted(uvs: np.ndarray) -> np.ndarray:
    """UVs (F, 3, 2) with each triangle moved by whole tiles into [0, 1]: images repeat, so nothing changes."""
    return (uvs - np.floor(uvs.mean(axis=1, keepdims=True))).astype(np.float32)


def usability(uvs: np.ndarray, areas: np.ndarray) -> UvReport:
    """Check UVs (F, 3, 2) of triangles with surface areas (F,).

    Usable: finite, inside [0, 1] after whole-tile shifts, not collapsed to points or lines, and less than 1 % of the
    covered texels belong to several triangles of the same winding. Mirrored halves may share texels.
    """
    if not np.isfinite(uvs).all():
        return UvReport(False, "holds values that are no numbers")
    uvs = shifted(uvs).astype(np.float64)
    if uvs.size and (uvs.min() < -RANGE_TOLERANCE or uvs.max() > 1.0 + RANGE_TOLERANCE):
        return UvReport(False, "leaves the square from 0 to 1")
    edges = uvs[:, 1:] - uvs[:, :1]
    winding = edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]
    total = float(areas.sum())
    if total > 0 and float(areas[np.abs(winding) < 1e-12].sum()) > COLLAPSED_LIMIT * total:
        return UvReport(False, "gives part of the surface no room in the texture")
    counts = [_coverage(uvs[chosen]) for chosen in (winding > 0, winding < 0)]
    covered = int(((counts[0] + counts[1]) > 0).sum())
    overlap = int(((counts[0] > 1) | (counts[1] > 1)).sum()) / max(covered, 1)
    if overlap >= OVERLAP_LIMIT:
        return UvReport(False, f"overlaps itself ({overlap:.0%})", overlap)
    return UvReport(True, "", overlap)


def _coverage(triangles: np.ndarray) -> np.ndarray:
    """How many of the triangles (F, 3, 2) cover each sample of the grid.

    By scan lines: each triangle adds +1 where it begins in a row and -1 where it ends, a running sum counts. Crossings
    of a shared edge are computed from the same sorted end points and intervals are half open, so that neighbours
    never count twice.
    """
    order = np.argsort(triangles[:, :, 1], axis=1, kind="stable")
    corners = np.take_along_axis(triangles, order[:, :, None], axis=1) * _GRID - 0.5
    first = np.clip(np.ceil(corners[:, 0, 1]), 0, _GRID).astype(np.int64)
    behind = np.clip(np.ceil(corners[:, 2, 1]), 0, _GRID).astype(np.int64)
    rows = np.maximum(behind - first, 0)
    steps = np.zeros((_GRID, _GRID + 1), np.int64)
    ends = np.cumsum(rows)
    begin = 0
    while begin < len(rows):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + _ROWS_AT_ONCE, side="right")))
        _add_rows(steps, corners[begin:end], first[begin:end], rows[begin:end])
        begin = end
    return np.cumsum(steps[:, :-1], axis=1)


def _add_rows(steps: np.ndarray, corners: np.ndarray, first: np.ndarray, rows: np.ndarray) -> None:
    which = np.repeat(np.arange(len(rows)), rows)
    if not len(which):
        return
    row = np.arange(len(which)) - np.repeat(np.cumsum(rows) - rows, rows) + first[which]
    low, middle, high = (corners[which, k] for k in range(3))
    long_side = _crossing(low, high, row)
    short_side = np.where(row < middle[:, 1], _crossing(low, middle, row), _crossing(middle, high, row))
    start = np.clip(np.ceil(np.minimum(long_side, short_side)), 0, _GRID).astype(np.int64)
    stop = np.clip(np.ceil(np.maximum(long_side, short_side)), 0, _GRID).astype(np.int64)
    np.add.at(steps, (row, start), 1)
    np.add.at(steps, (row, stop), -1)


def _crossing(below: np.ndarray, above: np.ndarray, row: np.ndarray) -> np.ndarray:
    height = above[:, 1] - below[:, 1]
    share = (row - below[:, 1]) / np.where(height == 0, 1.0, height)
    return below[:, 0] + share * (above[:, 0] - below[:, 0])


def udim_tiles(uvs: np.ndarray) -> list[int]:
    """The UDIM tiles (1001, 1002, ...) that whole triangles (F, 3, 2) lie in; empty: they are not laid out so."""
    tiles = np.floor(uvs.mean(1)).astype(np.int64)
    inside = (uvs >= tiles[:, None] - 0.01).all() and (uvs <= tiles[:, None] + 1.01).all()
    if not len(uvs) or not inside or tiles.min() < 0 or tiles[:, 0].max() > 9:
        return []
    numbers = np.unique(1001 + tiles[:, 0] + 10 * tiles[:, 1])
    return numbers.tolist() if len(numbers) > 1 else []
