# SPDX-License-Identifier: Apache-2.0
"""Random shapes to learn on: smooth, hard-edged, thin, with holes, put together from several parts.

Held-out kinds are never drawn for training; `evaluate prior` and the pictures use them.
"""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from trimesh import creation

from ...frames import repair_frames, smooth_normals
from ...mesh import Mesh
from ...rasterize import Triangles, rasterize_corners

TRAINING_KINDS = ("blob", "lathe", "boxes", "torus", "plate", "assembly", "capsules", "ring", "extrusion", "sphere")
HELD_OUT_KINDS = ("knot", "vase", "stairs", "bowl")


def make(kind: str, rng: np.random.Generator) -> Mesh:
    """A Mesh of `kind`, turned and centred, with smooth normals where faces meet under 40 degrees."""
    shape = globals()[f"_{kind}"](rng)
    corners = np.asarray(shape.vertices)[np.asarray(shape.faces)].astype(np.float32)
    low, high = corners.min((0, 1)), corners.max((0, 1))
    corners -= (low + high) / 2
    radius = float(np.linalg.norm(corners, axis=2).max()) * (1 + 1e-6)
    corners /= radius
    count = len(corners)
    normals, tangents = smooth_normals(corners, sharp_deg=40.0), np.zeros((count, 3, 4), np.float32)
    normals = normals.astype(np.float32)
    repair_frames(corners, normals, tangents)
    return Mesh(
        positions=corners,
        normals=normals,
        tangents=tangents,
        uvs=np.zeros((count, 3, 2), np.float32),
        material_slot=np.zeros(count, np.int32),
        face_mask=np.ones(count, bool),
        center=(low + high) / 2,
        radius=radius,
    )


def _turn(shape: trimesh.Trimesh, rng: np.random.Generator, upright: float = 0.5) -> trimesh.Trimesh:
    """Any rotation, or only round the upright axis."""
    if rng.random() < upright:
        matrix = trimesh.transformations.rotation_matrix(rng.uniform(0, 2 * np.pi), [0, 0, 1])
    else:
        matrix = trimesh.transformations.random_rotation_matrix(rng.random(3))
    shape.apply_transform(matrix)
    return shape


def _bumpy(vertices: np.ndarray, rng: np.random.Generator, strength: float, frequency: float) -> np.ndarray:
    waves = rng.normal(size=(6, 3)) * frequency
    phase = rng.uniform(0, 2 * np.pi, 6)
    return strength * np.sin(vertices @ waves.T + phase).mean(1)


def _sphere(rng: np.random.Generator) -> trimesh.Trimesh:
    shape = creation.icosphere(subdivisions=4)
    shape.apply_scale(rng.uniform(0.6, 1.0, 3))
    return _turn(shape, rng)


def _blob(rng: np.random.Generator) -> trimesh.Trimesh:
    shape = creation.icosphere(subdivisions=4)
    vertices = shape.vertices * (1 + _bumpy(shape.vertices, rng, rng.uniform(0.3, 1.0), rng.uniform(1.5, 3.5)))[:, None]
    return _turn(trimesh.Trimesh(vertices * rng.uniform(0.6, 1, 3), shape.faces, process=False), rng)


def _profile(rng: np.random.Generator, points: int) -> np.ndarray:
    z = np.linspace(-1, 1, points)
    radius = 0.5 + 0.35 * np.sin(z * rng.uniform(1, 4) + rng.uniform(0, 6)) * rng.uniform(0.2, 1)
    radius += 0.12 * np.sin(z * rng.uniform(4, 9) + rng.uniform(0, 6)) * rng.uniform(0, 1)
    return np.column_stack((radius.clip(0.12), z))


def _lathe(rng: np.random.Generator) -> trimesh.Trimesh:
    line = _profile(rng, int(rng.integers(6, 60)))
    line = np.vstack(([0, -1], line, [0, 1]))
    return _turn(creation.revolve(line, sections=int(rng.integers(6, 64))), rng, upright=0.8)


def _boxes(rng: np.random.Generator) -> trimesh.Trimesh:
    parts = []
    for _ in range(rng.integers(1, 4)):
        box = creation.box(extents=rng.uniform(0.4, 1.4, 3))
        box.apply_translation(rng.uniform(-0.4, 0.4, 3))
        parts.append(box)
    return _turn(trimesh.util.concatenate(parts), rng)


def _torus(rng: np.random.Generator) -> trimesh.Trimesh:
    shape = creation.torus(rng.uniform(0.5, 0.8), rng.uniform(0.12, 0.38), major_sections=64, minor_sections=32)
    return _turn(shape, rng)


def _plate(rng: np.random.Generator) -> trimesh.Trimesh:
    if rng.random() < 0.5:
        return _turn(creation.box(extents=[rng.uniform(1, 1.6), rng.uniform(0.05, 0.2), rng.uniform(1, 1.6)]), rng)
    return _turn(creation.cylinder(radius=1.0, height=rng.uniform(0.05, 0.3), sections=64), rng)


def _capsules(rng: np.random.Generator) -> trimesh.Trimesh:
    parts = []
    for _ in range(rng.integers(1, 5)):
        part = creation.capsule(height=rng.uniform(0.3, 1.2), radius=rng.uniform(0.15, 0.45), count=[24, 24])
        part.apply_transform(trimesh.transformations.random_rotation_matrix(rng.random(3)))
        part.apply_translation(rng.uniform(-0.3, 0.3, 3))
        parts.append(part)
    return trimesh.util.concatenate(parts)


def _ring(rng: np.random.Generator) -> trimesh.Trimesh:
    shape = creation.annulus(rng.uniform(0.4, 0.75), 1.0, rng.uniform(0.2, 0.9), sections=64)
    return _turn(shape, rng)


def _extrusion(rng: np.random.Generator) -> trimesh.Trimesh:
    corners = int(rng.integers(3, 9))
    shape = creation.cylinder(radius=rng.uniform(0.5, 0.9), height=rng.uniform(0.6, 1.6), sections=corners)
    return _turn(shape, rng)


def _assembly(rng: np.random.Generator) -> trimesh.Trimesh:
    parts = []
    for _ in range(rng.integers(2, 5)):
        part = globals()[f"_{rng.choice(['sphere', 'boxes', 'torus', 'lathe', 'blob', 'extrusion'])}"](rng)
        part.apply_scale(rng.uniform(0.35, 0.8))
        part.apply_translation(rng.uniform(-0.55, 0.55, 3))
        parts.append(part)
    return trimesh.util.concatenate(parts)


# --- held out ---------------------------------------------------------------------------------


def _knot(rng: np.random.Generator) -> trimesh.Trimesh:
    """A tube along a (2, 3) torus knot."""
    t = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    path = np.column_stack(((2 + np.cos(3 * t)) * np.cos(2 * t), (2 + np.cos(3 * t)) * np.sin(2 * t), np.sin(3 * t)))
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    side = np.cross(ahead, [0, 0, 1.0])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(side, ahead)
    a = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    tube = path[:, None] + 0.45 * (np.cos(a)[None, :, None] * side[:, None] + np.sin(a)[None, :, None] * up[:, None])
    return trimesh.Trimesh(tube.reshape(-1, 3), _grid_faces(160, 24, True), process=False)


def _vase(rng: np.random.Generator) -> trimesh.Trimesh:
    outside = [[0, -1], [0.4, -1], [0.62, -0.5], [0.66, -0.1], [0.45, 0.4], [0.28, 0.7], [0.42, 1.0]]
    inside = [[0.38, 1.0], [0.22, 0.7], [0.4, 0.4], [0.6, -0.1], [0.3, -0.9], [0, -0.9]]
    return creation.revolve(np.array(outside + inside), sections=64)


def _stairs(rng: np.random.Generator) -> trimesh.Trimesh:
    steps = []
    for i in range(4):
        part = creation.box(extents=[1.4, 0.4, 0.35 * (i + 1)])
        part.apply_translation([0, 0.4 * i - 0.6, 0.175 * (i + 1) - 0.7])
        steps.append(part)
    return trimesh.util.concatenate(steps)


def _bowl(rng: np.random.Generator) -> trimesh.Trimesh:
    a = np.linspace(0, np.pi / 2, 24)
    outside = np.column_stack((np.sin(a), -np.cos(a)))
    inside = 0.9 * outside[::-1] + [0, 0.0]
    return creation.revolve(np.vstack((outside, inside)), sections=64)


def _grid_faces(rows: int, columns: int, wrap: bool) -> np.ndarray:
    i, j = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    a, b = i * columns + j, ((i + 1) % rows) * columns + j
    c, d = ((i + 1) % rows) * columns + (j + 1) % columns, i * columns + (j + 1) % columns
    return np.concatenate((np.stack((a, b, c), -1).reshape(-1, 3), np.stack((a, c, d), -1).reshape(-1, 3)))


def ambient_occlusion(mesh: Mesh, directions: int = 48, size: int = 96) -> np.ndarray:
    """(F, 3) share of the cosine-weighted sky that each corner sees, by depth maps from many sides."""
    triangles = Triangles.of(mesh)
    points = triangles.positions.reshape(-1, 3)
    normals = torch.nn.functional.normalize(triangles.normals.reshape(-1, 3), dim=1)
    index = torch.arange(directions) + 0.5
    z = 1 - 2 * index / directions
    angle = torch.pi * (1 + 5**0.5) * index  # golden spiral
    ring = torch.sqrt(1 - z**2)
    sky = torch.stack((ring * torch.cos(angle), ring * torch.sin(angle), z), 1)
    seen, total = torch.zeros(len(points)), torch.zeros(len(points))
    for towards in sky:
        helper = torch.tensor([0.0, 0.0, 1.0]) if abs(float(towards[2])) < 0.9 else torch.tensor([1.0, 0.0, 0.0])
        right = torch.nn.functional.normalize(torch.linalg.cross(helper, towards), dim=0)
        frame = torch.stack((right, torch.linalg.cross(towards, right), towards))
        local = points @ frame.T
        # Orthographic: nearly constant w, kept growing away from the sky so that depth still decides.
        w = 1000.0 - local[:, 2]
        corners = torch.stack((0.5 + 0.48 * local[:, 0], 0.5 - 0.48 * local[:, 1], w), -1).view(-1, 3, 3)
        identity, bary = rasterize_corners(corners, size)
        depth = torch.full((size * size,), -9.0)
        hit = identity >= 0
        depth[hit] = (bary[hit] * local[:, 2].view(-1, 3)[identity[hit]]).sum(1)
        x = ((0.5 + 0.48 * local[:, 0]) * size).long().clamp(0, size - 1)
        y = ((0.5 - 0.48 * local[:, 1]) * size).long().clamp(0, size - 1)
        cosine = (normals @ towards).clamp(min=0)
        visible = depth[y * size + x] < local[:, 2] + 0.06 + 0.1 * (1 - cosine)
        seen += cosine * visible
        total += cosine
    return (seen / total.clamp(min=1e-6)).view(-1, 3).numpy()
