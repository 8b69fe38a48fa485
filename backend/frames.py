# SPDX-License-Identifier: Apache-2.0
"""Corner frames: normals and MikkTSpace tangents of triangles, made or repaired.

Knows triangles as arrays of corners; knows no files and no textures.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_CHUNK = 1 << 18  # triangles worked on at a time, so that temporaries stay small


def flat_normals(positions: np.ndarray) -> np.ndarray:
    """(F,3,3) corner normals of (F,3,3) triangles, each that of its triangle (+Z where that has no area)."""
    normals = triangle_normals(positions)
    normals[_normalise(normals)] = (0, 0, 1)
    return np.repeat(normals[:, None], 3, axis=1)


def smooth_normals(positions: np.ndarray, sharp_deg: float = 60.0) -> np.ndarray:
    """(F,3,3) corner normals: angle-weighted averages over the fan between edges sharper than `sharp_deg`.

    Triangles are neighbours where they share an edge by position, wound alike.
    """
    flat = flat_normals(positions)
    corners = np.arange(3 * len(positions)).reshape(-1, 3)
    vertex = same_rows(positions.reshape(-1, 3))[corners]
    a, b = shared_edges(vertex)
    cosine = np.einsum("ij,ij->i", flat[a // 3, 0], flat[b // 3, 0])
    smooth = cosine > np.cos(np.radians(sharp_deg))
    a, b = a[smooth], b[smooth]
    fan = components(corners.size, np.stack([a, _next_corner(a)]), np.stack([_next_corner(b), b]))
    weighted = flat * corner_angles(positions)[..., None]
    sums = _sum_by(fan, weighted.reshape(-1, 3))
    bad = _normalise(sums)
    normals = sums[fan]
    lost = np.isin(fan, bad)
    normals[lost] = flat.reshape(-1, 3)[lost]
    return normals.reshape(flat.shape)


def shared_edges(vertex: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of half-edges at which two triangles, wound alike, of (F,3) vertex numbers meet.

    Half-edge 3 * f + i of triangle f runs from its corner i to the next one.
    """
    start, end = vertex, np.roll(vertex, -1, axis=1)
    key = (np.minimum(start, end) * (int(vertex.max()) + 1) + np.maximum(start, end)).ravel()
    order = np.argsort(key, kind="stable")
    a, b = order[:-1], order[1:]
    start = start.ravel()
    # Wound alike means that the two half-edges run against each other.
    together = (key[a] == key[b]) & (start[a] != start[b])
    return a[together], b[together]


def corner_angles(positions: np.ndarray) -> np.ndarray:
    """(F,3) angles in radians at the corners of (F,3,3) triangles; 0 where an edge has no length."""
    edges = np.roll(positions, -1, axis=1) - positions
    _normalise(edges.reshape(-1, 3))
    cosine = -np.einsum("fij,fij->fi", edges, np.roll(edges, 1, axis=1))
    return np.nan_to_num(np.arccos(np.clip(cosine, -1, 1)))


def mikktspace_tangents(positions: np.ndarray, normals: np.ndarray, uvs: np.ndarray) -> np.ndarray:
    """(F,3,4) tangents and bitangent signs of corners as MikkTSpace (mikktspace.c) makes them.

    A corner's tangent is the angle-weighted average, in the plane of its normal, over all corners
    with the same position, normal, uv and UV orientation. Corners of triangles without UV area
    follow the others at their place, or else get any vector at a right angle to the normal.
    """
    side_1, side_2 = positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0]
    uv_1, uv_2 = uvs[:, 1] - uvs[:, 0], uvs[:, 2] - uvs[:, 0]
    area = uv_1[:, 0] * uv_2[:, 1] - uv_1[:, 1] * uv_2[:, 0]
    mirrored = area <= 0
    along_u = side_1 * uv_2[:, 1:] - side_2 * uv_1[:, 1:]
    along_u[mirrored] *= -1
    missing = np.zeros(len(positions), bool)
    missing[_normalise(along_u)] = True
    missing |= area == 0

    n = normals.reshape(-1, 3)
    tangents = _onto_plane(np.repeat(along_u, 3, axis=0), n)
    tangents[_normalise(tangents)] = 0
    tangents *= _projected_angles(positions, normals).reshape(-1, 1)
    tangents[np.repeat(missing, 3)] = 0

    place = same_rows(np.concatenate([positions, normals, uvs], axis=2).reshape(-1, 8))
    side = np.repeat(mirrored, 3)
    # A triangle without UV area has no orientation of its own: it takes the one found at its corner.
    unmirrored_here = np.bincount(place, ~side & ~np.repeat(missing, 3)) > 0
    side = np.where(np.repeat(missing, 3), ~unmirrored_here[place], side)
    group = place * 2 + side
    sums = _sum_by(group, tangents)
    bad = _normalise(sums)
    result = sums[group]
    lost = np.isin(group, bad)
    result[lost] = perpendicular(n[lost])
    sign = np.where(side, -1, 1).astype(np.float32)
    return np.concatenate([result, sign[:, None]], axis=1).reshape(-1, 3, 4).astype(np.float32)


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


def repair_frames(positions: np.ndarray, normals: np.ndarray, tangents: np.ndarray | None = None) -> None:
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
        if tangents is None:
            continue
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


def _onto_plane(vectors: np.ndarray, normals: np.ndarray) -> np.ndarray:
    return vectors - normals * np.einsum("ij,ij->i", vectors, normals)[:, None]


def _projected_angles(positions: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """(F,3) angles at the corners, between the edges as seen along the corner's normal."""
    sides = []
    for step in (-1, 1):
        edge = np.roll(positions, -step, axis=1) - positions
        flat = _onto_plane(edge.reshape(-1, 3), normals.reshape(-1, 3))
        flat[_normalise(flat)] = 0
        sides.append(flat)
    cosine = np.einsum("ij,ij->i", *sides)
    return np.arccos(np.clip(cosine, -1, 1)).reshape(-1, 3)


def _next_corner(corner: np.ndarray) -> np.ndarray:
    return corner + np.where(corner % 3 == 2, -2, 1)


def _sum_by(group: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sums of the (N,3) `rows` with equal `group`."""
    return np.stack([np.bincount(group, rows[:, i]) for i in range(rows.shape[1])], axis=1)


def same_rows(rows: np.ndarray) -> np.ndarray:
    """One number for each (N,K) float32 row, equal where rows are exactly equal, from 0 without gaps."""
    bits = np.ascontiguousarray(rows + np.float32(0), dtype=np.float32).view(np.uint32)  # + 0: -0 becomes 0
    # By a 64-bit hash: sorting whole rows takes ten times as long. Two of a million rows fall
    # together with a chance of 1 to 40 million.
    mixed = np.full(len(bits), 0x9E3779B97F4A7C15, np.uint64)
    for column in bits.T:
        mixed = (mixed ^ column) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(32)
    return np.unique(mixed, return_inverse=True)[1]


def components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each of `count` items the number of the connected part it is in, by the pairs `a`, `b`."""
    links = coo_array((np.ones(a.size, np.int8), (a.ravel(), b.ravel())), shape=(count, count))
    return connected_components(links, directed=False)[1]
