# SPDX-License-Identifier: Apache-2.0
"""The part of a normal map that no surface has, taken out of it.

Texels are optimised one by one, and their slopes need not add up: going round a loop may end higher than it began. The
height that comes nearest (height.py) tells what is left over between texels, and each texel gives up its share of that.
What is left of the map is a relief's to first order, as sharp as before. Knows texels and meshes; no views.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import height, lookup, material
from .height import Links
from .maps import fill_uncovered
from .mesh import Mesh

HOLD = 0.01  # against changing a texel along an axis that its steps hardly tell of
NO_STEP = 1e-12  # square of a step, in object radii


def without_curl(mesh: Mesh, where: material.Texels, values: Tensor, finest: int) -> Tensor:
    """`values` (K, 7) as stored of the texels `where`, their normals those of a relief.

    Fitted at `finest` texels at most, where the maps hold no more; the excess found there is interpolated and
    subtracted from the finer map.
    """
    size = min(where.size, finest, height.SIZE)
    coarse = where if size == where.size else material.texels(mesh, size)
    normal, covered = material.split_maps(values, where)["normal"], material.coverage(where)
    links, heights = height.fit(mesh, coarse, height.slopes(normal.cpu(), covered.cpu(), size))
    excess = torch.from_numpy(_excess(mesh, coarse, links, heights)).to(values)
    if coarse is not where:
        image = torch.zeros(size * size, 2, device=values.device).index_copy(0, coarse.index.to(values.device), excess)
        image = fill_uncovered(image.view(size, size, 2).cpu(), material.coverage(coarse).cpu()).to(values)
        excess = lookup.read(image.flip(0).permute(2, 0, 1)[None].contiguous(), lookup.image_grid(where.uv))
    vectors = material.tangent_normal(values)
    lean = vectors[:, :2] / vectors[:, 2:] + excess  # a normal leans away from where the surface rises
    leaning = torch.nn.functional.normalize(torch.cat((lean, torch.ones_like(lean[:, :1])), dim=1), dim=1)
    return torch.cat((values[:, : material.NORMAL.start], leaning[:, :2] * 0.5 + 0.5), dim=1)


def curl_share(mesh: Mesh, where: material.Texels, normal: Tensor) -> float:
    """How much of the slopes of `normal` (S, S, 3) belongs to no height: root mean squares over steps from texel to
    texel, 0 (a relief's, or flat) to 1."""
    links, heights = height.fit(mesh, where, height.slopes(normal, material.coverage(where), where.size))
    inside = links.reach > 0
    rise = float((links.rise[inside] ** 2).mean())
    return (float((_left_over(links, heights)[inside] ** 2).mean()) / rise) ** 0.5 if rise else 0.0


def _left_over(links: Links, heights: np.ndarray) -> np.ndarray:
    """(L,) what the texels' slopes say of each step beyond what the heights do."""
    return links.rise - (heights[links.b] - heights[links.a])


def _excess(mesh: Mesh, where: material.Texels, links: Links, heights: np.ndarray) -> np.ndarray:
    """(K, 2) of each texel's slopes: the least squares fit to what is left over of the steps from and to it."""
    left, position = _left_over(links, heights), where.position.cpu().numpy().astype(np.float64)
    way = position[links.b] - position[links.a]
    tangent, bitangent = height.axes(mesh, where.triangle.cpu().numpy())
    count = len(position)
    xx, xy, yy, x, y = np.zeros((5, count))
    for end in (links.a, links.b):
        along, across = (way * tangent[end]).sum(1), (way * bitangent[end]).sum(1)
        terms = (xx, along * along), (xy, along * across), (yy, across * across), (x, along * left), (y, across * left)
        for total, term in terms:
            total += np.bincount(end, term, count)
    hold = HOLD * (xx + yy) + NO_STEP
    xx, yy = xx + hold, yy + hold
    determinant = xx * yy - xy * xy
    return np.stack(((yy * x - xy * y) / determinant, (xx * y - xy * x) / determinant), axis=1)

