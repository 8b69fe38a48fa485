# SPDX-License-Identifier: Apache-2.0
"""UVs: can a texture be painted through them, and if not, new ones (xatlas only here).

Knows UVs as (F,3,2) arrays of triangle corners, origin bottom left; knows no files. This file is
also the script of the child process that runs xatlas: it imports nothing of its own package at
the top, since the child is isolated.
"""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOLERANCE = 0.01  # how far outside the unit square a UV may lie
FARTHEST_TILE = 1000.0  # beyond it float32 has too few digits left within a tile
OVERLAP_LIMIT = 0.01  # share of the covered texels
COLLAPSED_LIMIT = 0.5  # share of the triangles without an area in UV space

# xatlas takes more than linear time: half a million triangles took over six minutes.
XATLAS_TRIANGLES = 200_000

_GRID = 1024
_SPANS = 1 << 22  # rows of triangles worked on at a time: bounds the memory
# Atlas of the new UVs: space between islands for four mip levels of a 1024 texture.
_XATLAS_RESOLUTION, _XATLAS_PADDING = 1024, 8


class UvError(ValueError):
    """No UVs could be made; a sentence for a person that says what to do."""


@dataclass(frozen=True)
class UvReport:
    usable: bool
    reason: str  # a sentence when not usable, else empty
    overlap: float  # share of the covered texels that two triangles of the same orientation claim


def usability(uvs: np.ndarray) -> UvReport:
    """Whether a texture can be painted through (F,3,2) `uvs`; they are not changed.

    Usable: finite, within [0,1] +- TOLERANCE after whole-tile shifts, non-mirrored overlap under
    OVERLAP_LIMIT. Mirrored overlap is allowed: an artist paints both halves of a face at once.
    """
    missing = int((~np.isfinite(uvs)).any(axis=(1, 2)).sum())
    if missing:
        return UvReport(False, f"{missing} of {len(uvs)} triangles have no valid UVs.", 0.0)
    uvs = np.array(uvs, dtype=np.float32)
    outside = shift_tiles(uvs)
    if outside:
        return UvReport(False, f"The UVs of {outside} of {len(uvs)} triangles cross the border of a UV tile.", 0.0)
    a, b = uvs[:, 1] - uvs[:, 0], uvs[:, 2] - uvs[:, 0]
    doubled = a[:, 0].astype(np.float64) * b[:, 1] - a[:, 1].astype(np.float64) * b[:, 0]
    collapsed = float((np.abs(doubled) < 1e-14).mean())
    if collapsed > COLLAPSED_LIMIT:
        return UvReport(False, f"{collapsed:.0%} of the triangles have no area in the UV map.", 0.0)
    covered, twice = np.zeros((_GRID, _GRID), bool), np.zeros((_GRID, _GRID), bool)
    for side in (doubled > 0, doubled < 0):
        area = float(np.abs(doubled[side]).sum()) / 2
        room = (1 + 2 * TOLERANCE) ** 2
        if area > 1.5 * room:
            # More area than there is room: no need to look where, which could take very long.
            return UvReport(False, "The UV islands overlap: they need more room than one tile has.", 1 - room / area)
        count = coverage_count(uvs[side])
        covered |= count > 0
        twice |= count > 1
    if not covered.any():
        return UvReport(False, "The UV map is too small to hold a texture.", 0.0)
    overlap = float(twice.sum() / covered.sum())
    if overlap >= OVERLAP_LIMIT:
        return UvReport(False, f"The UV islands overlap on {overlap:.0%} of their area.", overlap)
    return UvReport(True, "", overlap)


def shift_tiles(uvs: np.ndarray) -> int:
    """Move each triangle of `uvs` (F,3,2) by whole tiles into [0,1] +- TOLERANCE, in place.

    An image repeats in every tile, so this changes no pixel. Returns how many triangles do not fit.
    """
    low, high = uvs.min(axis=1), uvs.max(axis=1)
    odd = np.flatnonzero(((low < -TOLERANCE) | (high > 1 + TOLERANCE)).any(axis=1))
    if not len(odd):
        return 0
    tile = np.floor((low[odd] + high[odd]) / 2)
    tile[np.abs(tile) > FARTHEST_TILE] = 0
    uvs[odd] -= tile[:, None]
    moved = uvs[odd]
    return int(((moved < -TOLERANCE) | (moved > 1 + TOLERANCE)).any(axis=(1, 2)).sum())


def coverage_count(uvs: np.ndarray, grid: int = _GRID) -> np.ndarray:
    """How many of the (F,3,2) triangles cover each texel centre: (grid,grid) int32, row 0 at v = 0."""
    change = np.zeros(grid * (grid + 1), np.int32)
    for _, row, left, right in _spans(uvs, grid):
        for column, step in ((left, 1), (right, -1)):
            change += step * np.bincount(row * (grid + 1) + column, minlength=len(change)).astype(np.int32)
    return np.cumsum(change.reshape(grid, grid + 1)[:, :grid], axis=1, dtype=np.int32)


def coverage_texels(uvs: np.ndarray, grid: int = _GRID) -> tuple[np.ndarray, np.ndarray]:
    """(texel, triangle) numbers of all texel centres that the (F,3,2) triangles cover; texel = row * grid + column."""
    texels, triangles = [], []
    for triangle, row, left, right in _spans(uvs, grid):
        length = right - left
        within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        texels.append(np.repeat(row * grid + left, length) + within)
        triangles.append(np.repeat(triangle, length))
    return np.concatenate(texels), np.concatenate(triangles)


def _spans(uvs: np.ndarray, grid: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Triangle, row and columns [left, right) of every row that a triangle crosses, in pieces.

    Half-open spans between edges that are computed alike for both triangles at an edge: neighbours
    never both count. What lies outside of [0,1] counts at the nearest border texel.
    """
    points = uvs.astype(np.float64) * grid - 0.5  # texel centres at whole numbers
    order = np.lexsort((points[..., 0], points[..., 1]), axis=1)
    low, middle, high = np.moveaxis(np.take_along_axis(points, order[..., None], axis=1), 1, 0)
    first = np.clip(np.ceil(low[:, 1]), 0, grid).astype(np.int64)
    rows = np.clip(np.ceil(high[:, 1]), 0, grid).astype(np.int64) - first
    bounds = np.concatenate([[0], np.cumsum(rows)])
    start = 0
    while start < len(uvs):
        stop = max(start + 1, int(np.searchsorted(bounds, bounds[start] + _SPANS, side="right")) - 1)
        part = rows[start:stop]
        which = np.repeat(np.arange(start, stop), part)
        y = np.arange(len(which)) - np.repeat(bounds[start:stop] - bounds[start], part) + first[which]
        a, b, c = low[which], middle[which], high[which]
        long, short = _crossing(a, c, y), np.where(y < b[:, 1], _crossing(a, b, y), _crossing(b, c, y))
        left, right = (np.clip(np.ceil(f(long, short)), 0, grid).astype(np.int64) for f in (np.minimum, np.maximum))
        yield which, y, left, right
        start = stop


def _crossing(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x where the edge from `a` up to `b` crosses the row `y`."""
    height = b[:, 1] - a[:, 1]
    return a[:, 0] + (b[:, 0] - a[:, 0]) * ((y - a[:, 1]) / np.where(height > 0, height, 1))


# --- new UVs ------------------------------------------------------------------------------------


def unwrap(positions: np.ndarray) -> np.ndarray:
    """New UVs (F,3,2) float32 in [0,1] for triangles (F,3,3). Raises UvError.

    By xatlas in a child process, since it can hang and crash: the child has a bounded time and its
    answer is checked. Where it fails, and for meshes it would take too long for, by `box_unwrap`.
    """
    if not len(positions) or not np.isfinite(positions).all():
        raise UvError("The mesh cannot be unwrapped: it has no faces, or vertices that are not numbers. Repair it.")
    # Not at the top: the child, which runs this file, has no package.
    from .box_unwrap import box_unwrap
    from .frames import same_rows

    if len(positions) <= XATLAS_TRIANGLES:
        flat = positions.reshape(-1, 3).astype(np.float64)
        # Into the unit box: xatlas makes NaN of a mesh a millionth in size.
        flat = (flat - flat.min(axis=0)) / max(float(np.ptp(flat, axis=0).max()), 1e-30)
        number = same_rows(positions.reshape(-1, 3))
        points = np.zeros((int(number.max()) + 1, 3), np.float32)
        points[number] = flat
        try:
            return run_xatlas(points, number.reshape(-1, 3).astype(np.uint32))
        except UvError as error:
            print(f"{error} Simpler UVs are made instead.", file=sys.stderr, flush=True)
    uvs = box_unwrap(positions)
    report = usability(uvs)
    if not report.usable:
        raise UvError(f"No usable UVs could be made. {report.reason} Unwrap the mesh in Blender.")
    return uvs


def run_xatlas(points: np.ndarray, faces: np.ndarray, seconds: float | None = None) -> np.ndarray:
    """UVs (F,3,2) for welded `points` (V,3) and `faces` (F,3), or UvError in `seconds` at the latest."""
    seconds = 60 + len(faces) / 2000 if seconds is None else seconds
    with tempfile.TemporaryDirectory(prefix="patina-uv-") as folder:
        np.savez(Path(folder, "mesh.npz"), points=points, faces=faces)
        command = [sys.executable, "-I", "-X", "utf8", str(Path(__file__).resolve()), folder, str(seconds + 5)]
        try:
            child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise UvError(f"xatlas made no UVs in {seconds:.0f} s.") from None
        if child.returncode:
            last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [""]
            raise UvError(f"xatlas failed ({child.returncode}: {last[0][:200]}).")
        try:
            uvs = np.load(Path(folder, "uvs.npy"), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise UvError("xatlas gave no readable UVs.") from None
    if uvs.shape != (*faces.shape, 2) or not np.isfinite(uvs).all() or uvs.min() < 0 or uvs.max() > 1:
        raise UvError("xatlas gave UVs that do not fit the mesh.")
    return uvs.astype(np.float32)


def _child(folder: Path, seconds: float) -> None:
    """Runs xatlas on `folder`/mesh.npz, writes uvs.npy beside it."""
    # A thread of C that ends this process in time, also when its parent was killed.
    faulthandler.dump_traceback_later(seconds, exit=True)
    import xatlas

    with np.load(folder / "mesh.npz", allow_pickle=False) as arrays:
        points, faces = arrays["points"], arrays["faces"]
    atlas = xatlas.Atlas()
    atlas.add_mesh(points, faces)
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding, pack.create_image = _XATLAS_RESOLUTION, _XATLAS_PADDING, False
    atlas.generate(xatlas.ChartOptions(), pack)
    mapping, indices, uvs = atlas[0]
    if not np.array_equal(mapping[indices], faces):
        raise SystemExit("xatlas changed the faces")
    np.save(folder / "uvs.npy", uvs[indices])


if __name__ == "__main__":
    _child(Path(sys.argv[1]), float(sys.argv[2]))
