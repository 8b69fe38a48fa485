# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps from one UV layout of a mesh into another: each texel asks its surface point for its place in the old layout.

Pure arrays; knows no object and no file. Normals are turned from the old layout's tangent space into the new one's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import images

_SAMPLES_AT_ONCE = 2_000_000
_FINEST_SAMPLED_TWICE = 2048  # larger maps are not smoothed by four samples a texel: that would take gigabytes
_RINGS = 3  # texels round an island that take the colour of its border and of no other's


def rebaked(
    maps: dict[str, np.ndarray], old: dict[str, np.ndarray], new: dict[str, np.ndarray], size: int
) -> tuple[dict[str, np.ndarray], float]:
    """`maps` (name -> (H, W, C), as stored, row 0 at the top) in the UV layout `new`, (size, size, C) each, gutters
    filled; and the share of the texture that several triangles want, of which the first gets it.

    `old` and `new`: arrays of protocol.MESH_ARRAYS of the same triangles, with the two UV layers. The new layout
    repeats itself beyond 0..1.
    """
    fine = size * (2 if size <= _FINEST_SAMPLED_TWICE else 1)
    owner = np.full(fine * fine, -1, np.int32)
    widths = {name: values.shape[-1] for name, values in maps.items()}
    sums = {name: np.zeros((size * size, width)) for name, width in widths.items()}
    counts, wanted = np.zeros(size * size), 0
    for texel, triangle, weights in _samples(new["uvs"].astype(np.float64), fine):
        wanted += len(texel)
        free = owner[texel] < 0
        owner[texel[free][::-1]] = triangle[free][::-1]
        mine = owner[texel] == triangle
        texel, triangle, weights = texel[mine], triangle[mine], weights[mine]
        uv = np.einsum("nk,nkc->nc", weights, old["uvs"][triangle])
        row, column = np.divmod(texel, fine)
        target = row * size // fine * size + column * size // fine
        counts += np.bincount(target, minlength=size * size)
        for name, values in maps.items():
            height, width, _ = values.shape
            found = images.bilinear(values, uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5)
            if name == "normal":
                found = _turned(found, old, new, triangle, weights)
            for channel in range(widths[name]):
                sums[name][:, channel] += np.bincount(target, found[:, channel], size * size)
    covered = (counts > 0).reshape(size, size)
    if not covered.any():
        return {name: np.zeros((size, size, width)) for name, width in widths.items()}, 1.0
    result = {}
    for name, total in sums.items():
        values = (total / np.maximum(counts, 1)[:, None]).reshape(size, size, -1)
        values = _filled(values, covered.copy())
        result[name] = _unit(values) if name == "normal" else values
    return result, 1 - int((owner >= 0).sum()) / wanted


def _samples(uvs: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Texels of a size x size image whose centre lies in UV triangles (F, 3, 2), in pieces: flat index with rows from
    the top (N,), triangle (N,), weights of its corners (N, 3). Triangles that share an edge share no texel."""
    order = np.argsort(uvs[:, :, 1], axis=1, kind="stable")
    corners = np.take_along_axis(uvs, order[:, :, None], axis=1) * size - 0.5
    first = np.ceil(corners[:, 0, 1]).astype(np.int64)
    rows = np.maximum(np.ceil(corners[:, 2, 1]).astype(np.int64) - first, 0)
    area = np.maximum((uvs.max(1) - uvs.min(1)).prod(1) * size * size, rows) + 1
    begin = 0
    while begin < len(rows):
        until = np.searchsorted(np.cumsum(area[begin : begin + 1_000_000]), _SAMPLES_AT_ONCE)
        part = slice(begin, begin + max(1, int(until)))
        yield _of_part(uvs, corners, first, rows, part, size)
        begin = part.stop


def _of_part(uvs, corners, first, rows, part: slice, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    which, row = _expanded(np.arange(len(rows))[part], first[part], rows[part])
    low, middle, high = (corners[which, k] for k in range(3))
    long_side = _crossing(low, high, row)
    short_side = np.where(row < middle[:, 1], _crossing(low, middle, row), _crossing(middle, high, row))
    start = np.ceil(np.minimum(long_side, short_side)).astype(np.int64)
    stop = np.ceil(np.maximum(long_side, short_side)).astype(np.int64)
    span, column = _expanded(np.arange(len(which)), start, np.maximum(stop - start, 0))
    triangle, row = which[span], row[span]
    point = (np.stack((column, row), axis=1) + 0.5) / size
    a, b, c = (uvs[triangle, k] for k in range(3))
    doubled = _cross(b - a, c - a)
    doubled = np.where(doubled == 0, 1.0, doubled)
    to_b, to_c = _cross(point - a, c - a) / doubled, _cross(b - a, point - a) / doubled
    weights = np.clip(np.stack((1 - to_b - to_c, to_b, to_c), axis=1), 0.0, 1.0)
    return (size - 1 - row % size) * size + column % size, triangle, weights / weights.sum(1, keepdims=True)


def _expanded(item: np.ndarray, first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each item `count` times, and beside it the numbers from `first` on."""
    repeated = np.repeat(item, count)
    steps = np.arange(len(repeated)) - np.repeat(np.cumsum(count) - count, count)
    return repeated, steps + np.repeat(first, count)


def _crossing(below: np.ndarray, above: np.ndarray, row: np.ndarray) -> np.ndarray:
    height = above[:, 1] - below[:, 1]
    share = (row - below[:, 1]) / np.where(height == 0, 1.0, height)
    return below[:, 0] + share * (above[:, 0] - below[:, 0])


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _turned(stored: np.ndarray, old: dict, new: dict, triangle: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Tangent-space normals (N, 3) as stored, from the old layout's tangents into the new one's."""
    vector = stored * 2 - 1
    tangent, bitangent, normal = _frame(old, triangle, weights)
    vector = vector[:, :1] * tangent + vector[:, 1:2] * bitangent + vector[:, 2:] * normal
    tangent, bitangent, normal = _frame(new, triangle, weights)
    share = np.cross(bitangent, normal), np.cross(normal, tangent), np.cross(tangent, bitangent)
    volume = (tangent * share[0]).sum(1)
    volume = np.where(np.abs(volume) < 1e-6, 1.0, volume)
    return _unit(np.stack([(vector * part).sum(1) / volume for part in share], axis=1) * 0.5 + 0.5)


def _frame(arrays: dict, triangle: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    normal = np.einsum("nk,nkc->nc", weights, arrays["normals"][triangle])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    tangent = np.einsum("nk,nkc->nc", weights, arrays["tangents"][triangle][..., :3])
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
    return tangent, arrays["tangents"][triangle, 0, 3:] * np.cross(normal, tangent), normal


def _unit(stored: np.ndarray) -> np.ndarray:
    vector = stored * 2 - 1
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    return np.where(length < 1e-6, [0.5, 0.5, 1.0], vector / np.maximum(length, 1e-6) * 0.5 + 0.5)


def _filled(values: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """`values` (H, W, C) with what is not `covered` (H, W) filled from what is near; both are used up."""
    for _ in range(_RINGS):
        _grow(values, covered)
    if covered.all() or min(covered.shape) < 2:
        return values
    height, width = covered.shape
    even = ((0, height % 2), (0, width % 2))
    share = np.pad(covered, even).astype(np.float64)
    total = np.pad(values * covered[..., None], (*even, (0, 0)))
    blocks = (share.shape[0] // 2, 2, share.shape[1] // 2, 2)
    share, total = share.reshape(blocks).sum((1, 3)), total.reshape(*blocks, -1).sum((1, 3))
    coarse = _filled(total / np.maximum(share, 1)[..., None], share > 0)
    spread = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(covered[..., None], values, spread)


def _grow(values: np.ndarray, covered: np.ndarray) -> None:
    """Give what touches `covered` the mean of its covered neighbours, in place."""
    height, width = covered.shape
    near = np.pad(covered, 1)
    near = near[:-2] | near[1:-1] | near[2:]
    near = near[:, :-2] | near[:, 1:-1] | near[:, 2:]
    y, x = np.nonzero(near & ~covered)
    total, weight = np.zeros((len(y), values.shape[-1])), np.zeros((len(y), 1))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            at = np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)
            share = covered[at][:, None] * (1.0 if dx * dy == 0 else 0.5)
            total += values[at] * share
            weight += share
    values[y, x] = total / np.maximum(weight, 1e-12)
    covered[y, x] = True
