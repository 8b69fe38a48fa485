# SPDX-License-Identifier: GPL-3.0-or-later
"""Meshes made in numpy for the tests of the backend: closed and open surfaces with known UVs, frames and sizes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from backend import frames
from backend.mesh import Mesh, save_job_mesh


def surface(point: Callable, across: int, up: int, flat: bool = False) -> dict[str, np.ndarray]:
    """Job arrays of the surface `point(u, v) -> (..., 3)` over the unit square in across x up quads.

    The UVs are u and v themselves. Normals are smooth ones by finite differences, or the triangles' own.
    """
    u, v = np.meshgrid(np.linspace(0, 1, across + 1), np.linspace(0, 1, up + 1), indexing="ij")
    uv = np.stack((u, v), axis=-1)
    a, b, c, d = uv[:-1, :-1], uv[1:, :-1], uv[1:, 1:], uv[:-1, 1:]
    corners = np.stack((np.stack((a, b, c), -2), np.stack((a, c, d), -2)), axis=2).reshape(-1, 3, 2)
    positions = point(corners[..., 0], corners[..., 1])
    area = np.linalg.norm(np.cross(positions[:, 1] - positions[:, 0], positions[:, 2] - positions[:, 0]), axis=1)
    corners, positions = corners[area > 1e-10], positions[area > 1e-10]
    if flat:
        normals = frames.flat_normals(positions)
    else:
        # Towards the middle of the triangle a little, so that poles have a normal too.
        u, v = np.moveaxis(corners + 1e-4 * (corners.mean(1, keepdims=True) - corners), -1, 0)
        step = 1e-5
        along_u = point(u + step, v) - point(u - step, v)
        along_v = point(u, v + step) - point(u, v - step)
        normals = np.cross(along_u, along_v)
    return job_arrays(positions, normals, corners)


def job_arrays(positions: np.ndarray, normals: np.ndarray, uvs: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of protocol.MESH_ARRAYS, with MikkTSpace tangents."""
    positions = np.ascontiguousarray(positions, np.float32)
    normals = np.ascontiguousarray(normals / np.linalg.norm(normals, axis=-1, keepdims=True), np.float32)
    uvs = np.ascontiguousarray(uvs, np.float32)
    return {
        "positions": positions,
        "normals": normals,
        "tangents": frames.mikktspace_tangents(positions, normals, uvs),
        "uvs": uvs,
        "material_slot": np.zeros(len(positions), np.int32),
        "face_mask": np.ones(len(positions), bool),
    }


def mesh_of(arrays: dict[str, np.ndarray]) -> Mesh:
    """The arrays as the mesh they are; they must lie in the unit sphere already."""
    assert np.linalg.norm(arrays["positions"], axis=-1).max() < 1
    return Mesh(**arrays, center=np.zeros(3, np.float32), radius=1.0)


def sphere(across: int = 48, up: int = 24) -> dict[str, np.ndarray]:
    """A UV sphere of radius 0.999; u = 0 is the front (-Y), growing counter-clockwise from above; v = 0 the south."""

    def point(u, v):
        around, rise = 2 * np.pi * u, np.pi * (v - 0.5)
        parts = np.cos(rise) * np.sin(around), -np.cos(rise) * np.cos(around), np.sin(rise)
        return 0.999 * np.stack(parts, axis=-1)

    return surface(point, across, up)


def torus(across: int = 48, up: int = 24, big: float = 0.66, small: float = 0.33) -> dict[str, np.ndarray]:
    """A torus round the Z axis, leaning a little so that nothing lines up with the axes."""
    lean = np.radians(25)
    turn = np.array([[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]])

    def point(u, v):
        around, tube = 2 * np.pi * u, 2 * np.pi * v
        out = big + small * np.cos(tube)
        return np.stack((out * np.sin(around), -out * np.cos(around), small * np.sin(tube)), axis=-1) @ turn.T

    return surface(point, across, up)


def grid(quads: int = 8, half: float = 0.7, wave: float = 0.0) -> dict[str, np.ndarray]:
    """A square in the XY plane facing +Z, x along u and y along v; `wave` bends it."""

    def point(u, v):
        height = wave * np.sin(2 * np.pi * u) * np.cos(2 * np.pi * v)
        return np.stack((half * (2 * u - 1), half * (2 * v - 1), height), axis=-1)

    return surface(point, quads, quads)


def fan(slivers: int = 400, radius: float = 0.9) -> dict[str, np.ndarray]:
    """A shallow cone of thin triangles round its tip, facing up and to the front."""
    around = np.linspace(0, 2 * np.pi, slivers + 1)
    ring = np.stack((radius * np.cos(around), radius * np.sin(around), np.full(slivers + 1, -0.2)), axis=-1)
    tip = np.broadcast_to([0.013, -0.021, 0.1], (slivers, 3))
    positions = np.stack((tip, ring[:-1], ring[1:]), axis=1)
    lean = np.radians(50)
    turn = np.array([[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]])
    uvs = 0.5 + 0.5 * positions[..., :2]
    positions = positions @ turn.T
    return job_arrays(positions, frames.flat_normals(positions), uvs)


def together(*parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Several sets of arrays as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def moved(arrays: dict[str, np.ndarray], scale: float, offset: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """Arrays made smaller and moved."""
    return {**arrays, "positions": np.float32(arrays["positions"] * scale + np.float32(offset))}


def write_job_mesh(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_job_mesh(path, arrays)
