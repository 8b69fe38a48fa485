# SPDX-License-Identifier: Apache-2.0
"""Corner frames: normals and MikkTSpace tangents of triangles, made or repaired.

Knows triangles as arrays of corners; knows no files and no textures.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 18  # triangles worked on at a time, so that temporaries stay small


def triangle_normals(positions: np.ndarray) -> np.ndarray:
    """(F,3) float32 normals of (F,3,3) triangles with the length of twice their area."""
    a, b = positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0]
    return np.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        axis=1,
    )


def perpendicular(normals: np.ndarray) -> np.ndarray:
    """Some unit vector at a right angle to each of the (N,3) unit `normals`; continuous nearly everywhere."""
    x, y, z = normals.T
    sign = np.where(z < 0, -1, 1).astype(normals.dtype)
    # Duff et al. 2017, Building an Orthonormal Basis, Revisited
    a = -1 / (sign + z)
    return np.stack([1 + sign * x * x * a, sign * x * y * a, -sign * x], axis=1)


def repair_frames(positions: np.ndarray, normals: np.ndarray, tangents: np.ndarray) -> None:
    """Make every normal and tangent a unit vector and every sign +1 or -1, in place.

    A missing normal comes from the triangle (or is +Z where that has no area); a missing tangent,
    which is what Blender gives where UVs are degenerate, is any vector at a right angle to the normal.
    """
    for start in range(0, len(positions), _CHUNK):
        part = slice(start, start + _CHUNK)
        n = normals[part].reshape(-1, 3)
        bad = _normalise(n)
        if len(bad):
            flat = triangle_normals(positions[part])
            flat[_normalise(flat)] = (0, 0, 1)
            n[bad] = flat[bad // 3]
        t = tangents[part].reshape(-1, 4)
        xyz = np.ascontiguousarray(t[:, :3])
        bad = _normalise(xyz)
        xyz[bad] = perpendicular(n[bad])
        t[:, :3] = xyz
        t[:, 3] = np.where(t[:, 3] < 0, -1, 1)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    """Normalise the rows of `vectors` in place; returns the indices of those without a direction."""
    with np.errstate(all="ignore"):  # the rows that overflow or divide by zero are the ones reported
        # Scaled by the largest component first, so that a tiny triangle still has its direction.
        vectors /= np.abs(vectors).max(axis=1, keepdims=True)
        length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        vectors /= length[:, None]
    return np.flatnonzero(~np.isfinite(length))
