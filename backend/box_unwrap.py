# SPDX-License-Identifier: Apache-2.0
"""Plain UVs for any mesh of any size: projection along six axes, folds peeled off, packed in shelves.

What `uv.unwrap` falls back on where xatlas crashes or would take minutes. More seams than xatlas
makes and about half the texture used, but linear in time and without failure modes.
"""

from __future__ import annotations

import numpy as np

from .frames import components, flat_normals, same_rows, shared_edges
from .uv import coverage_texels

_PADDING = 4 / 1024
_GRID = 1024  # folds narrower than its texels are not seen
_SMOOTHING_ROUNDS, _PEELING_ROUNDS = 8, 8
_STEEPEST = 0.25  # cosine below which a triangle is not projected along an axis for its neighbours' sake
# Right-handed in-plane axes (u, v) as seen from outside, for +x -x +y -y +z -z.
_AXES = np.array([(1, 2), (2, 1), (2, 0), (0, 2), (0, 1), (1, 0)])


def box_unwrap(positions: np.ndarray) -> np.ndarray:
    """UVs (F,3,2) float32 in [0,1] for finite triangles (F,3,3); texture area follows surface area."""
    low = positions.reshape(-1, 3).min(axis=0).astype(np.float64)
    size = float(np.ptp(positions.reshape(-1, 3).astype(np.float64), axis=0).max()) or 1.0
    points = (positions - low) / size
    vertex = same_rows(positions.reshape(-1, 3)).reshape(-1, 3)
    a, b = (edge // 3 for edge in shared_edges(vertex))
    axis = _projection_axes(flat_normals(positions), a, b)
    flat = np.take_along_axis(points, _AXES[axis][:, None], axis=2)
    depth = np.take_along_axis(points.mean(axis=1), axis[:, None] // 2, axis=1)[:, 0] * np.where(axis % 2, -1, 1)

    layer = np.zeros(len(points), np.int64)
    for attempt in range(_PEELING_ROUNDS + 1):
        key = layer * 6 + axis
        together = key[a] == key[b]
        chart = components(len(points), a[together], b[together])
        uvs = _packed(flat, chart)
        hidden = _hidden(uvs, depth, chart)
        if not len(hidden):
            break
        # One layer further in; what is folded still after all rounds stands alone.
        alone = len(points) + np.arange(len(hidden))
        layer[hidden] = layer[hidden] + 1 if attempt < _PEELING_ROUNDS - 1 else alone
    return uvs


def _projection_axes(normals: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(F,) number of the axis of each triangle: the one it faces most, evened out among neighbours."""
    along = normals[:, 0]
    facing = np.stack([along, -along], axis=2).reshape(-1, 6)
    axis = facing.argmax(axis=1)
    for _ in range(_SMOOTHING_ROUNDS):
        score = np.where(facing > _STEEPEST, facing, -10)
        for one, other in ((a, b), (b, a)):
            score += 0.2 * np.bincount(one * 6 + axis[other], minlength=facing.size).reshape(-1, 6)
        axis = score.argmax(axis=1)
    return axis


def _hidden(uvs: np.ndarray, depth: np.ndarray, chart: np.ndarray) -> np.ndarray:
    """Numbers of the triangles that lie behind another one of their chart at some texel."""
    order = np.argsort(-depth, kind="stable")
    texel, triangle = coverage_texels(uvs[order], _GRID)
    first = np.full(_GRID * _GRID, len(uvs))
    np.minimum.at(first, texel, triangle)
    behind = order[triangle[first[texel] != triangle]]
    return np.unique(behind)


def _packed(flat: np.ndarray, chart: np.ndarray) -> np.ndarray:
    """(F,3,2) `flat` coordinates with each chart's box laid onto a shelf of the unit square."""
    number = np.unique(chart, return_inverse=True)[1]
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(int(number.max()) + 1))
    low = np.minimum.reduceat(flat.min(axis=1)[order], starts, axis=0)
    size = np.maximum.reduceat(flat.max(axis=1)[order], starts, axis=0) - low
    upright = size[:, 1] > size[:, 0]
    local = flat - low[number][:, None]
    # A quarter turn of what is taller than wide: (x, y) -> (height - y, x).
    turned = np.stack([size[number, 1][:, None] - local[..., 1], local[..., 0]], axis=2)
    local = np.where(upright[number][:, None, None], turned, local)
    size[upright] = size[upright][:, ::-1]

    padding = min(_PADDING, 0.2 / np.sqrt(len(size)))
    by_height = np.argsort(-size[:, 1], kind="stable")
    widths, heights = size[by_height].T
    # Boxes of no size fit: their padding takes at most a tenth of the square.
    fits, too_large, best = (
        0.0,
        1 / max(float(widths.max()), 1e-9),
        _shelves(widths * 0 + padding, widths * 0 + padding),
    )
    for _ in range(16):
        scale = (fits + too_large) / 2
        places = _shelves(widths * scale + padding, heights * scale + padding)
        if places is None:
            too_large = scale
        else:
            fits, best = scale, places
    place = np.empty((len(size), 2))
    place[by_height] = best
    return (local * fits + (place + padding / 2)[number][:, None]).clip(0, 1).astype(np.float32)


def _shelves(widths: np.ndarray, heights: np.ndarray) -> np.ndarray | None:
    """Lower left corners (N,2) of boxes sorted by falling height, row by row; None if they do not fit."""
    ends = np.concatenate([[0.0], np.cumsum(widths)])
    places = np.empty((len(widths), 2))
    start, y = 0, 0.0
    while start < len(widths):
        stop = int(np.searchsorted(ends, ends[start] + 1, side="right")) - 1
        if stop == start or y + heights[start] > 1:
            return None
        places[start:stop, 0], places[start:stop, 1] = ends[start:stop] - ends[start], y
        y += heights[start]
        start = stop
    return places
