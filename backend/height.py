# SPDX-License-Identifier: Apache-2.0
"""The height map: the relief that a normal map means, as the surface whose slopes come nearest to it.

Least squares over links between neighbouring texels of one UV island; where islands meet in space their heights are
linked as well, so that a cut is no step. Solved from coarse to fine: conjugate gradients alone would take thousands of
steps to level out a large island.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import cg
from torch import Tensor

from . import material
from .frames import components, same_rows
from .maps import fill_uncovered
from .mesh import Mesh
from .seams import Cuts

SIZE = 1024  # texels at most: the optimiser resolves no more
COARSEST = 500  # nodes that need no coarser graph
STEPS, STEPS_COARSEST = 60, 2000
NEAR = 3.0  # steps of a texel: what lies farther is no neighbour on the surface
STEEPEST = 4.0  # slope: what a normal map says beyond is noise


@dataclass(frozen=True)
class Links:
    """The node b (L,) lies `rise` (L,) higher than a (L,); `reach` (L,) texels apart, 0 across a cut."""

    a: np.ndarray
    b: np.ndarray
    rise: np.ndarray
    weight: np.ndarray
    reach: np.ndarray


def from_normals(mesh: Mesh, normal: Tensor, covered: Tensor) -> tuple[Tensor, float]:
    """(S, S, 1) heights in 0..1 with 0.5 in the middle, gutters filled, and the height from 0 to 1 in Blender units.

    `normal` (S, S, 3) as stored, `covered` (S, S) bool; row 0 at the top.
    """
    full = normal.shape[0]
    size = min(full, SIZE)
    where = material.texels(mesh, size)
    _, heights = fit(mesh, where, slopes(normal.cpu(), covered.cpu(), size))
    top = float(np.abs(heights).max()) or 1e-9
    values = torch.full((size * size, 1), 0.5)
    values[where.index] = torch.from_numpy(0.5 + 0.5 * heights / top).float()[:, None]
    values = fill_uncovered(values.view(size, size, 1), material.coverage(where))
    nchw = torch.nn.functional.interpolate(values.permute(2, 0, 1)[None], (full, full), mode="bilinear")
    return nchw[0].permute(1, 2, 0), 2 * top * mesh.radius


def slopes(normal: Tensor, covered: Tensor, size: int) -> np.ndarray:
    """(size * size, 2) rise along the tangent and along the bitangent, of `normal` (S, S, 3) as stored."""
    vectors = normal * 2 - 1
    rise = -vectors[..., :2] / vectors[..., 2:].clamp(min=1e-3)
    rise = torch.where(covered[..., None], rise.clamp(-STEEPEST, STEEPEST), 0.0)
    if normal.shape[0] > size:
        share = covered[None, None].float()
        pooled = torch.nn.functional.interpolate(rise.permute(2, 0, 1)[None], (size, size), mode="area")
        share = torch.nn.functional.interpolate(share, (size, size), mode="area")
        rise = (pooled / share.clamp(min=1e-6))[0].permute(1, 2, 0)
    return rise.reshape(-1, 2).double().numpy()


def fit(mesh: Mesh, where: material.Texels, rises: np.ndarray) -> tuple[Links, np.ndarray]:
    """What the `rises` (S * S, 2) of `slopes` say between texels, and the heights (K,) in object radii that come
    nearest to it, each connected part about its own mean."""
    size, index = where.size, where.index.cpu().numpy()
    triangle = where.triangle.cpu().numpy()
    position = where.position.cpu().numpy().astype(np.float64)
    tangent, bitangent = axes(mesh, triangle)
    uphill = rises[index, :1] * tangent + rises[index, 1:] * bitangent
    island = _islands(mesh)[triangle]
    node = np.full((size, size), -1, np.int64)
    node.reshape(-1)[index] = np.arange(len(index))
    pairs = [
        _beside(node[:, :-1], node[:, 1:], island),
        _beside(node[:-1], node[1:], island),
        _across(where.cuts, node),
    ]
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    within = np.arange(len(a)) < len(a) - len(pairs[2][0])
    # Where UVs overlap, neighbours in the image may lie on different parts of the mesh.
    step, way = _step(mesh, size)[triangle], position[b] - position[a]
    near = np.linalg.norm(way, axis=1) <= NEAR * np.maximum(step[a], step[b])
    a, b, way, within = a[near], b[near], way[near], within[near]
    rise = ((uphill[a] + uphill[b]) / 2 * way).sum(1)
    links = Links(a, b, rise, np.ones(len(a)), within.astype(np.float64))
    place = np.stack((island, index // size, index % size), axis=1)
    heights = _solved(links, place)
    part = components(len(index), links.a, links.b)
    return links, heights - (np.bincount(part, heights) / np.bincount(part))[part]


def axes(mesh: Mesh, triangle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit tangents and bitangents (K, 3) of triangles (K,)."""
    tangent, normal = mesh.tangents[..., :3].mean(1, dtype=np.float64), mesh.normals.mean(1, dtype=np.float64)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
    bitangent = np.cross(normal, tangent) * mesh.tangents[:, 0, 3:]
    bitangent /= np.maximum(np.linalg.norm(bitangent, axis=1, keepdims=True), 1e-12)
    return tangent[triangle], bitangent[triangle]


def _step(mesh: Mesh, size: int) -> np.ndarray:
    """(F,) how far one texel to the side leads on each triangle, the longer of both ways."""
    edges, ways = (np.diff(x.astype(np.float64), axis=1) for x in (mesh.positions, mesh.uvs))
    (u1, v1), (u2, v2) = ways[:, 0].T, ways[:, 1].T
    area = u1 * v2 - v1 * u2
    area = np.where(np.abs(area) < 1e-12, 1e-12, area)[:, None]
    along_u = (edges[:, 0] * v2[:, None] - edges[:, 1] * v1[:, None]) / area
    along_v = (edges[:, 1] * u1[:, None] - edges[:, 0] * u2[:, None]) / area
    return np.maximum(np.linalg.norm(along_u, axis=1), np.linalg.norm(along_v, axis=1)) / size


def _islands(mesh: Mesh) -> np.ndarray:
    """(F,) the UV island of each triangle."""
    corners = np.concatenate((mesh.positions, mesh.uvs), axis=2).reshape(-1, 5)
    vertex = same_rows(corners).reshape(-1, 3)
    return components(int(vertex.max()) + 1, vertex, np.roll(vertex, 1, axis=1))[vertex[:, 0]]


def _beside(first: np.ndarray, second: np.ndarray, island: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes side by side in the image that are of one island."""
    a, b = first.ravel(), second.ravel()
    both = (a >= 0) & (b >= 0)
    a, b = a[both], b[both]
    same = island[a] == island[b]
    return a[same], b[same]


def _across(cuts: Cuts, node: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes on both sides of cuts that lie at the same place in space, or nearly."""
    size = len(node)

    def at(uv: Tensor) -> np.ndarray:
        texel = np.floor(np.stack((1 - uv[:, 1].numpy(), uv[:, 0].numpy())) * size).astype(int).clip(0, size - 1)
        return node[tuple(texel)]

    a, b = at(cuts.uv_a), at(cuts.uv_b)
    both = (a >= 0) & (b >= 0) & (a != b)
    return a[both], b[both]


def _solved(links: Links, place: np.ndarray) -> np.ndarray:
    """(K,) heights of nodes at `place` (K, 3): island, row, column; each connected part up to a constant."""
    count = len(place)
    if count <= COARSEST or not len(links.a):
        return _levelled(links, np.zeros(count), STEPS_COARSEST)
    halved = place // [1, 2, 2]
    sides = tuple(halved.max(0) + 1)
    number, group = np.unique(np.ravel_multi_index(tuple(halved.T), sides), return_inverse=True)
    coarse = np.stack(np.unravel_index(number, sides), axis=1)
    if len(coarse) > 0.9 * count:  # islands of single texels
        return _levelled(links, np.zeros(count), STEPS_COARSEST)
    return _levelled(links, _solved(_joined(links, group, len(coarse)), coarse)[group], STEPS)


def _joined(links: Links, group: np.ndarray, count: int) -> Links:
    """The links between groups: what their members' links say on average, over twice the way."""
    a, b = group[links.a], group[links.b]
    between = a != b
    a, b = a[between], b[between]
    turned = np.where(a < b, 1.0, -1.0)
    pair, which = np.unique(np.minimum(a, b) * count + np.maximum(a, b), return_inverse=True)
    weight = np.bincount(which, links.weight[between])
    rise = np.bincount(which, links.weight[between] * links.rise[between] * turned) / weight
    reach = np.bincount(which, links.weight[between] * links.reach[between]) / weight
    return Links(pair // count, pair % count, rise * np.where(reach > 0, 2.0, 1.0), weight, reach)


def _levelled(links: Links, heights: np.ndarray, steps: int) -> np.ndarray:
    """`heights` (K,), nearer to what the links say by at most `steps` steps of conjugate gradients."""
    count, links_count = len(heights), len(links.a)
    row = np.arange(links_count)
    values = np.concatenate((-np.ones(links_count), np.ones(links_count)))
    columns = (np.concatenate((row, row)), np.concatenate((links.a, links.b)))
    differences = csr_array((values, columns), shape=(links_count, count))
    weighted = (differences.T * links.weight).tocsr()
    normal = weighted @ differences
    diagonal = normal.diagonal()
    easy = diags_array(1 / np.where(diagonal > 0, diagonal, 1.0))
    return cg(normal, weighted @ links.rise, x0=heights, rtol=1e-7, maxiter=steps, M=easy)[0]
