# SPDX-License-Identifier: Apache-2.0
"""The ambient occlusion map: for each texel the share of the sky it sees, by the cosine. From the geometry alone."""

from __future__ import annotations

import torch
from torch import Tensor

from . import occlusion
from .maps import fill_uncovered
from .rasterize import Triangles, rasterize_corners

SIZE = 512  # texels at most: finer than what the depth maps of the sky tell
_AT_ONCE = 1 << 16


def of_texels(triangles: Triangles, size: int) -> Tensor:
    """(size, size, 1) in 0..1, 1 where nothing hides the sky, row 0 at the top; gutters filled."""
    own = min(size, SIZE)
    u, v = triangles.uvs[..., 0], triangles.uvs[..., 1]
    identity, bary = rasterize_corners(torch.stack((u, 1 - v, torch.ones_like(u)), dim=-1), own)
    index = torch.nonzero(identity >= 0)[:, 0]
    sky = occlusion.look_from(triangles, occlusion.even_directions())
    seen = [_share(sky, triangles, identity[part], bary[part]) for part in index.split(_AT_ONCE)]
    values = torch.zeros(own * own, 1, device=index.device).index_copy(0, index, torch.cat(seen)[:, None])
    covered = (identity >= 0).view(own, own).cpu()
    values = fill_uncovered(values.view(own, own, 1).cpu(), covered)
    return _resized(values, size)


def _share(sky: occlusion.Sky, triangles: Triangles, triangle: Tensor, bary: Tensor) -> Tensor:
    """(N,) of points on triangles (N,), given by their weights (N, 3) of the corners."""
    corners = triangles.positions[triangle]
    normal = torch.nn.functional.normalize(torch.einsum("nk,nkc->nc", bary, triangles.normals[triangle]), dim=1)
    flat = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat = torch.nn.functional.normalize(flat, dim=1)
    flat = torch.where((flat * normal).sum(1, keepdim=True) < 0, -flat, flat)
    opened = occlusion.open_share(sky, torch.einsum("nk,nkc->nc", bary, corners), flat)
    # A smooth normal leans over its triangle; what comes from behind that reaches nothing.
    weight = (normal @ sky.direction.T).clamp(min=0) * (flat @ sky.direction.T > 0)
    return (weight * opened).sum(1) / weight.sum(1).clamp(min=1e-9)


def _resized(values: Tensor, size: int) -> Tensor:
    nchw = values.permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(nchw, (size, size), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
