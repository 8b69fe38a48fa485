# SPDX-License-Identifier: Apache-2.0
"""Four meshes with known, deliberately awkward UVs for measuring what the optimiser gets back. Knows no materials."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import frames
from ..material import Texels
from ..mesh import Mesh

MARGIN = 4 / 256  # empty texels of a 256 map round every island
HALF = 0.54  # of the box's edge: its corners stay inside the unit sphere
PATTERN_ON_BOX = 0.15  # of a pattern's unit square to half an edge: about as dense as on the other shapes


def sphere(across: int = 96, up: int = 48) -> Mesh:
    """A UV sphere: poles, and a seam where the ends of u meet."""

    def point(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        around, rise = 2 * np.pi * u, np.pi * (v - 0.5)
        parts = np.cos(rise) * np.sin(around), -np.cos(rise) * np.cos(around), np.sin(rise)
        return 0.99 * np.stack(parts, axis=-1)

    return _mesh(*_surface(point, across, up))


def torus(across: int = 96, up: int = 48) -> Mesh:
    """A leaning torus: seams both ways, and a part that sees itself."""
    lean = np.radians(25)
    turn = np.array([[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]])

    def point(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        around, tube = 2 * np.pi * u, 2 * np.pi * v
        out = 0.66 + 0.32 * np.cos(tube)
        return np.stack((out * np.sin(around), -out * np.cos(around), 0.32 * np.sin(tube)), axis=-1) @ turn.T

    return _mesh(*_surface(point, across, up))


def mirrored(across: int = 96, up: int = 64) -> Mesh:
    """A vase whose left half shows the same texels as its right half, mirrored; open above, seen from inside too."""

    def point(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        around, radius = 2 * np.pi * u, 0.34 + 0.2 * np.sin(4.5 * v + 0.4) * (1 - 0.4 * v)
        return np.stack((radius * np.sin(around), -radius * np.cos(around), 1.5 * (v - 0.5)), axis=-1)

    positions, normals, uvs = _surface(point, across, up)
    right = uvs[:, :, 0].mean(1) < 0.5
    uvs[..., 0] = np.where(right[:, None], 2 * uvs[..., 0], 2 - 2 * uvs[..., 0])
    return _mesh(positions, normals, uvs)


def box(quads: int = 8) -> Mesh:
    """A cube with hard edges. Every face is cut in two islands, so a seam runs through the flat; half of the top
    is cut into squares that are islands of about one texel each (of a 256 map)."""
    cells, positions, normals, uvs = 0, [], [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            out = np.zeros(3)
            out[axis] = sign
            along = np.roll(np.array([1.0, 0, 0]), axis + 1)
            upward = np.cross(out, along)
            for half in (0, 1):
                corner = np.array([cells % 4 / 4, cells // 4 / 3])
                a = np.linspace(-1, 1, quads + 1)
                b = np.linspace(half - 1, half, quads // 2 + 1)
                grid_a, grid_b = np.meshgrid(a, b, indexing="ij")
                place = HALF * (out + grid_a[..., None] * along + grid_b[..., None] * upward)
                flat = np.stack(((grid_a + 1) / 2, grid_b + 1 - half), axis=-1)
                tiny = axis == 2 and sign > 0 and half == 1
                p, uv = _triangles(place), _triangles(flat)
                if tiny:
                    square = np.repeat(np.arange(quads * quads // 2), 2)
                    low = np.stack((square // (quads // 2), square % (quads // 2)), axis=-1)
                    inside = uv * np.array([quads, quads // 2]) - low[:, None]
                    uv = corner + (6 + 6 * low[:, None] + 0.37 + inside) / 256
                else:
                    size = np.array([1 / 4, 1 / 3]) - 2 * MARGIN
                    uv = corner + MARGIN + uv * size
                positions.append(p)
                uvs.append(uv)
                normals.append(np.broadcast_to(out, p.shape))
                cells += 1
    return _mesh(np.concatenate(positions), np.concatenate(normals), np.concatenate(uvs), margin=0)


def pattern_uv(shape: str, where: Texels) -> Tensor:
    """(K, 2) where texels lie in a pattern that the cuts do not interrupt: in the UV map itself, whose ends fit each
    other where a shape closes; on the box, whose cuts run through the flat, over each face as a whole."""
    if shape != "box":
        return where.uv
    out = where.position.abs().argmax(1)
    side = where.position.gather(1, out[:, None])[:, 0].sign()
    along = where.position.gather(1, ((out + 1) % 3)[:, None])[:, 0]
    upward = where.position.gather(1, ((out + 2) % 3)[:, None])[:, 0] * side
    return PATTERN_ON_BOX * torch.stack((along / HALF + 2 * out, upward / HALF + side), dim=1)


SHAPES: dict[str, Callable[[], Mesh]] = {"sphere": sphere, "torus": torus, "mirrored": mirrored, "box": box}


def _surface(point: Callable, across: int, up: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, normals and uvs, (F,3,C), of point(u, v) over the unit square without its zero-area triangles."""
    u, v = np.meshgrid(np.linspace(0, 1, across + 1), np.linspace(0, 1, up + 1), indexing="ij")
    uvs = _triangles(np.stack((u, v), axis=-1))
    positions = _triangles(point(u, v))
    keep = np.linalg.norm(frames.triangle_normals(positions), axis=1) > 1e-9
    uvs, positions = uvs[keep], positions[keep]
    # Derivatives a little inside the triangle: a pole has none.
    u, v = np.moveaxis(uvs + 1e-4 * (uvs.mean(1, keepdims=True) - uvs), -1, 0)
    step = 1e-5
    normals = np.cross(point(u + step, v) - point(u - step, v), point(u, v + step) - point(u, v - step))
    return positions, normals, uvs


def _triangles(grid: np.ndarray) -> np.ndarray:
    """Corner values (A+1, B+1, C) -> (2AB, 3, C), two triangles a quad."""
    a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
    return np.stack((np.stack((a, b, c), -2), np.stack((a, c, d), -2)), axis=2).reshape(-1, 3, grid.shape[-1])


def _mesh(positions: np.ndarray, normals: np.ndarray, uvs: np.ndarray, margin: float = MARGIN) -> Mesh:
    # Vertices that are one are equal bit for bit, as in a file.
    positions = np.ascontiguousarray(np.round(positions, 5), np.float32)
    normals = np.ascontiguousarray(normals / np.linalg.norm(normals, axis=-1, keepdims=True), np.float32)
    uvs = np.ascontiguousarray(margin + (1 - 2 * margin) * uvs, np.float32)
    tangents = frames.mikktspace_tangents(positions, normals, uvs)
    frames.repair_frames(positions, normals, tangents)
    return Mesh(
        positions, normals, tangents, uvs, np.zeros(len(uvs), np.int32), np.ones(len(uvs), bool),
        np.zeros(3, np.float32), 1.0,
    )  # fmt: skip
