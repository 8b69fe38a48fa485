# SPDX-License-Identifier: Apache-2.0
"""Where the UV map is cut: both sides of a cut must show the same, though they lie far apart in the image.

Renderers read a texture between four texels; at the border of an island some of these lie outside it. So the border
has texels of its own here, and the texels on both sides of a cut are fitted to each other. Knows triangles and
images; knows no materials beyond which two channels are a tangent-space normal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import coo_array, diags_array, hstack, vstack
from scipy.sparse.linalg import cg
from torch import Tensor

from .frames import same_rows, shared_edges
from .mesh import Mesh

SAMPLES_PER_TEXEL = 2.0
SAMPLES_AT_MOST = 4_000_000
SAME_NORMAL = 0.995  # cosine: beyond about 6 degrees an edge is hard, and its sides may differ in tilt
# How much may differ across a cut (stored values) and still be meant to be the same; fades out to twice of it.
MEANT_ALIKE = 0.08
HOLD_COVERED, HOLD_BORDER = 0.1, 0.01  # pull of a texel towards the value it has, beside 1 of a cut's sample
SOLVER_STEPS = 60


@dataclass(frozen=True)
class Cuts:
    """Points on the borders of UV islands.

    border_uv (M, 2), border_position (M, 3), border_triangle (M,) on every border; of the points where two borders
    meet in space: uv_a, uv_b (P, 2) of the two sides; turn (P, 2, 2), which makes of a tangent-space normal's x and y
    on side a those on side b; smooth (P,) bool, False on hard edges.
    """

    border_uv: Tensor
    border_position: Tensor
    border_triangle: Tensor
    uv_a: Tensor
    uv_b: Tensor
    turn: Tensor
    smooth: Tensor


def find(mesh: Mesh, size: int) -> Cuts:
    """The cuts of the mesh's UV map, sampled for an image of size x size texels."""
    vertex = same_rows(mesh.positions.reshape(-1, 3)).reshape(-1, 3)
    a, b = shared_edges(vertex)
    here, there = _ends(mesh.uvs, a), _ends(mesh.uvs, b)[:, ::-1]
    joined = (np.abs(here - there) < 1e-6).all((1, 2))
    inner = np.zeros(3 * mesh.triangles, bool)
    inner[a[joined]] = inner[b[joined]] = True
    edge, along, _ = _sampled(mesh.uvs, np.flatnonzero(~inner), size)
    uv, position = _between(_ends(mesh.uvs, edge), along), _between(_ends(mesh.positions, edge), along)
    cut_a, cut_b = a[~joined], b[~joined]
    cut_a, along, pick = _sampled(mesh.uvs, cut_a, size)
    cut_b = cut_b[pick]
    turn, smooth = _turn(mesh, cut_a, cut_b, along)
    return Cuts(
        *(torch.from_numpy(np.ascontiguousarray(x)) for x in (uv.astype(np.float32), position, edge // 3)),
        *(
            torch.from_numpy(np.ascontiguousarray(x))
            for x in (
                _between(_ends(mesh.uvs, cut_a), along).astype(np.float32),
                _between(_ends(mesh.uvs, cut_b)[:, ::-1], along).astype(np.float32),
                turn.astype(np.float32),
                smooth,
            )
        ),
    )


def without_pairs(cuts: Cuts) -> Cuts:
    """The same borders with no two sides that belong together: nothing to stitch."""
    empty = {name: getattr(cuts, name)[:0] for name in ("uv_a", "uv_b", "turn", "smooth")}
    return replace(cuts, **empty)


def border_texels(cuts: Cuts, covered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Texels outside of `covered` (S, S), row 0 at the top, that a bilinear lookup on a border reads: flat index (K,),
    position (K, 3) and triangle (K,) of a border point next to each."""
    size = covered.shape[0]
    index, _ = bilinear(cuts.border_uv, size)
    texel, first = _first_of(index.T.reshape(-1))
    point = first % max(1, len(index))
    free = ~covered.cpu().flatten()[texel]
    texel, point = texel[free], point[free]
    return texel, cuts.border_position[point], cuts.border_triangle[point]


def bilinear(uv: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The four texels (M, 4), flat with row 0 at the top, and weights (M, 4) of lookups at uv (M, 2)."""
    x, y = uv[:, 0] * size - 0.5, (1 - uv[:, 1]) * size - 0.5
    x0, y0 = x.floor(), y.floor()
    fx, fy = x - x0, y - y0
    columns = torch.stack((x0, x0 + 1, x0, x0 + 1), 1).clamp(0, size - 1).long()
    rows = torch.stack((y0, y0, y0 + 1, y0 + 1), 1).clamp(0, size - 1).long()
    weights = torch.stack(((1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy), 1)
    return rows * size + columns, weights


def jumps(cuts: Cuts, image: Tensor) -> Tensor:
    """(P, C) differences across the cuts in an image (S, S, C) as bilinear lookups see it. The last two channels are
    the normal's x and y (stored 0..1), compared in one frame and 0 on hard edges."""
    flat = image.reshape(-1, image.shape[-1])
    sides = []
    for uv in (cuts.uv_a, cuts.uv_b):
        index, weight = bilinear(uv, image.shape[0])
        sides.append((flat[index] * weight[..., None]).sum(1))
    plain = sides[0][:, :-2] - sides[1][:, :-2]
    turned = torch.einsum("pij,pj->pi", cuts.turn, sides[0][:, -2:] - 0.5) - (sides[1][:, -2:] - 0.5)
    return torch.cat((plain, turned * cuts.smooth[:, None]), dim=1)


def stitch(cuts: Cuts, index: Tensor, values: Tensor, border: Tensor, size: int) -> Tensor:
    """`values` (K, 7) of texels `index` (K,) with both sides of the cuts fitted to each other.

    `border` (K,) bool: texels outside of the islands, which are freer. Least squares: samples on a cut want equal
    lookups, texels want what they have; where the sides differ by more than noise, the cut is left as it is.
    """
    if not len(cuts.uv_a) or not len(index):
        return values
    image = values.new_zeros(size * size, values.shape[1])
    image[index] = values
    apart = jumps(cuts, image.view(size, size, -1))
    # All values of a point together: a step in colour is a step of the material.
    alike = (2 - apart[:, :-2].abs().amax(1) / MEANT_ALIKE).clamp(0, 1)
    place = torch.full((size * size,), -1, dtype=torch.int64)
    place[index] = torch.arange(len(index))
    at, weights = zip(*(bilinear(uv, size) for uv in (cuts.uv_a, cuts.uv_b)), strict=True)
    known = ((place[at[0]] >= 0) | (weights[0] == 0)).all(1) & ((place[at[1]] >= 0) | (weights[1] == 0)).all(1)
    use = known & (alike > 0)
    if not bool(use.any()):
        return values
    rows = [(place[a[use]].clamp(min=0), w[use]) for a, w in zip(at, weights, strict=True)]
    touched = torch.unique(torch.cat([r[0].flatten() for r in rows]))
    local = torch.zeros(len(index), dtype=torch.int64)
    local[touched] = torch.arange(len(touched))
    rows = [(local[r], w) for r, w in rows]
    strength = alike[use].sqrt()
    hold = torch.where(border[touched], HOLD_BORDER, HOLD_COVERED).double().numpy()
    result = values.clone()
    before = values[touched].double().numpy()
    result[touched] = torch.from_numpy(_fit(rows, strength, cuts, use, hold, before)).to(values.dtype)
    return result


def _fit(
    rows: list[tuple[Tensor, Tensor]], strength: Tensor, cuts: Cuts, use: Tensor, hold: np.ndarray, before: np.ndarray
) -> np.ndarray:
    """Values (T, 7) of the touched texels that make the sides alike."""
    (read_a, read_b), count = (_matrix(*r, strength, len(before)) for r in rows), len(before)
    holds = diags_array(hold)
    plain = vstack([read_a - read_b, holds]).tocsr()
    after = before.copy()
    samples = read_a.shape[0]
    normal_equations = (plain.T @ plain).tocsr()
    for channel in range(before.shape[1] - 2):
        wanted = np.concatenate([np.zeros(samples), hold * before[:, channel]])
        after[:, channel] = cg(normal_equations, plain.T @ wanted, x0=before[:, channel], maxiter=SOLVER_STEPS)[0]
    turn = (cuts.turn[use] * cuts.smooth[use, None, None]).double().numpy()
    still = cuts.smooth[use].double().numpy()
    blocks = [
        [diags_array(turn[:, i, j]) @ read_a - (diags_array(still) @ read_b if i == j else 0 * read_b) for j in (0, 1)]
        for i in (0, 1)
    ]
    both = vstack([hstack(row) for row in (*blocks, [holds, 0 * holds], [0 * holds, holds])])
    both = both.tocsr()
    xy = before[:, -2:].T.reshape(-1) - 0.5
    wanted = np.concatenate([np.zeros(2 * samples), np.concatenate([hold, hold]) * xy])
    xy = cg((both.T @ both).tocsr(), both.T @ wanted, x0=xy, maxiter=SOLVER_STEPS)[0]
    after[:, -2:] = xy.reshape(2, count).T + 0.5
    return np.clip(after, 0, 1)


def _matrix(at: Tensor, weights: Tensor, strength: Tensor, count: int) -> coo_array:
    rows = torch.arange(len(at)).repeat_interleave(4)
    data = (weights * strength[:, None]).double().flatten()
    return coo_array((data.numpy(), (rows.numpy(), at.flatten().numpy())), shape=(len(at), count)).tocsr()


def _ends(corner_values: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """(E, 2, C): values at the two ends of half-edges (E,) of (F, 3, C) corner values."""
    face, corner = edge // 3, edge % 3
    return np.stack((corner_values[face, corner], corner_values[face, (corner + 1) % 3]), axis=1)


def _sampled(uvs: np.ndarray, edge: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half-edges, each as often as its UV length needs; where along it (0..1); and which of `edge` it is."""
    ends = _ends(uvs, edge)
    length = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1) * size * SAMPLES_PER_TEXEL
    total = max(1.0, (length.sum() + len(edge)) / SAMPLES_AT_MOST)
    count = np.maximum(1, np.ceil(length / total)).astype(np.int64)
    pick = np.repeat(np.arange(len(edge)), count)
    within = np.arange(len(pick)) - np.repeat(np.cumsum(count) - count, count)
    return edge[pick], ((within + 0.5) / count[pick]).astype(np.float32), pick


def _between(ends: np.ndarray, along: np.ndarray) -> np.ndarray:
    return ends[:, 0] * (1 - along[:, None]) + ends[:, 1] * along[:, None]


def _turn(mesh: Mesh, a: np.ndarray, b: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2, 2) from side a's tangent frame to side b's, and (P,) whether both sides have the same normal."""
    frames = []
    for edge, backwards in ((a, False), (b, True)):
        flip = slice(None, None, -1) if backwards else slice(None)
        normal = _unit(_between(_ends(mesh.normals, edge)[:, flip], along))
        tangent = _unit(_between(_ends(mesh.tangents[..., :3], edge)[:, flip], along))
        sign = mesh.tangents[edge // 3, 0, 3][:, None]
        frames.append((normal, tangent, sign * np.cross(normal, tangent)))
    (normal_a, *axes_a), (normal_b, *axes_b) = frames
    turn = np.stack([np.stack([(p * q).sum(1) for p in axes_a], axis=1) for q in axes_b], axis=1)
    return turn, (normal_a * normal_b).sum(1) > SAME_NORMAL


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _first_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values, ascending, and the first place of each."""
    ordered, order = torch.sort(values, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new], order[new]
