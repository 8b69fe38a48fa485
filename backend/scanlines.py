# SPDX-License-Identifier: Apache-2.0
"""The portable rasteriser, in plain torch: triangles cut into pixel rows, rows into the span the three edges leave.

So a sliver costs what it covers and not what its bounding box does. Visibility goes by the largest 1/w. Corners are
held component by component, (3 corners, 3 components, F): a million triangles are then a few vector operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cameras import Cameras

PAIRS_AT_ONCE = 4_000_000  # (triangle, pixel) pairs held at a time: bounds memory
EDGE_TOLERANCE_PX = 1e-4  # both neighbours claim a pixel on their edge; depth decides


def rasterize(
    positions: Tensor, cameras: Cameras, index: int, sizes: tuple[int, ...]
) -> list[tuple[Tensor, Tensor]]:
    """For each of `sizes` what the camera sees in size x size pixels of triangles `positions` (3 corners, 3 xyz, F):
    triangle (size*size,), -1 where empty, and perspective-correct barycentrics (size*size, 3)."""
    rotation = cameras.rotation[index]
    local = rotation @ positions - (rotation @ cameras.position[index])[:, None]
    w = -local[:, 2]
    scale = 0.5 / (cameras.tan_half_fov[index] * w)
    # x and y in units of the picture's width 0..1.
    corners = torch.stack((0.5 + local[:, 0] * scale, 0.5 - local[:, 1] * scale, w), dim=1)
    return [_rasterize(corners, size) for size in sizes]


def rasterize_corners(corners: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Projected corners (F, 3, 3) of x, y in 0..1 and w > 0 -> triangle index (size*size,), -1 where empty, and
    barycentrics (size*size, 3)."""
    return _rasterize(corners.permute(1, 2, 0).contiguous(), size)


def edges(xy: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
    """Affine barycentrics of triangles (F, 3, 2) of signed double `area` (F,): slope (F, 3, 2), offset (F, 3)."""
    a, b = xy[:, [1, 2, 0]], xy[:, [2, 0, 1]]
    edge = b - a
    slope = torch.stack((-edge[..., 1], edge[..., 0]), dim=-1) / area[:, None, None]
    return slope, -(slope * a).sum(-1)


def _rasterize(corners: Tensor, size: int) -> tuple[Tensor, Tensor]:
    device, count = corners.device, corners.shape[2]
    x, y, w = corners[:, 0] * size, corners[:, 1] * size, corners[:, 2]
    identity = torch.full((size * size,), -1, dtype=torch.int64, device=device)
    bary = torch.zeros(size * size, 3, device=device)
    depth = torch.zeros(size * size, device=device)
    low, high = x.amin(0), x.amax(0)
    first_row = torch.ceil(y.amin(0) - 0.5).clamp(0, size)
    last_row = torch.floor(y.amax(0) - 0.5).clamp(-1, size - 1)
    first_column = torch.ceil(low - 0.5 - EDGE_TOLERANCE_PX).clamp(min=0)
    last_column = torch.floor(high - 0.5 + EDGE_TOLERANCE_PX).clamp(max=size - 1)
    area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])
    seen = (last_row >= first_row) & (last_column >= first_column) & (area.abs() > 1e-12) & (w.amin(0) > 1e-6)
    face = torch.nonzero(seen)[:, 0]
    if face.numel() == 0:
        return identity, bary
    # From here on by what is left: of a fine mesh only the triangles that hold a pixel centre's row and column.
    xy, inverse_w = torch.stack((x[:, face].T, y[:, face].T), dim=-1), 1 / w[:, face].T
    low, high = low[face], high[face]
    first_row = first_row[face].long()
    rows = last_row[face].long() - first_row + 1
    # Barycentric i is affine in the pixel: b_i = slope_i . (x, y) + offset_i.
    slope, offset = edges(xy, area[face])
    row_face = torch.repeat_interleave(torch.arange(face.numel(), device=device), rows)
    start = torch.cumsum(rows, 0) - rows
    row = first_row[row_face] + torch.arange(row_face.numel(), device=device) - start[row_face]
    lowest, highest = _span(slope[row_face], offset[row_face], row + 0.5)
    lowest = torch.maximum(lowest, low[row_face])
    highest = torch.minimum(highest, high[row_face])
    x0 = torch.ceil(lowest - 0.5 - EDGE_TOLERANCE_PX).clamp(0, size).long()
    x1 = torch.floor(highest - 0.5 + EDGE_TOLERANCE_PX).clamp(-1, size - 1).long()
    width = (x1 - x0 + 1).clamp(min=0)
    for chunk in _chunks(width):
        pair = torch.repeat_interleave(chunk, width[chunk])
        begin = torch.cumsum(width[chunk], 0) - width[chunk]
        column = x0[pair] + torch.arange(pair.numel(), device=device) - torch.repeat_interleave(begin, width[chunk])
        local = row_face[pair]
        centre = torch.stack((column + 0.5, row[pair] + 0.5), dim=1)
        b = ((slope[local] * centre[:, None]).sum(-1) + offset[local]).clamp(min=0)
        over_w = b * inverse_w[local]
        near = over_w.sum(1)
        flat = row[pair] * size + column
        nearest = depth.scatter_reduce(0, flat, near, "amax")
        wins = near == nearest[flat]
        flat, winner = flat[wins], face[local[wins]]
        # Of several equally near ones the lowest index: the same picture every time.
        best = torch.full_like(identity, count).scatter_reduce(0, flat, winner, "amin")
        lowest_index = winner == best[flat]
        flat, winner = flat[lowest_index], winner[lowest_index]
        closer = nearest[flat] > depth[flat]
        flat, winner = flat[closer], winner[closer]
        identity[flat] = winner
        bary[flat] = (over_w[wins] / near[wins, None])[lowest_index][closer]
        depth = nearest
    return identity, bary


def _span(slope: Tensor, offset: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where on the row y all three barycentrics are >= 0: lowest and highest x (R,)."""
    at_zero = slope[..., 1] * y[:, None] + offset
    crossing = -at_zero / torch.where(slope[..., 0] == 0, 1.0, slope[..., 0])
    far = 1e9
    lowest = torch.where(slope[..., 0] > 0, crossing, -far).amax(1)
    highest = torch.where(slope[..., 0] < 0, crossing, far).amin(1)
    outside = ((slope[..., 0] == 0) & (at_zero < 0)).any(1)
    return torch.where(outside, far, lowest), highest


def _chunks(width: Tensor) -> list[Tensor]:
    """Indices of the non-empty rows, cut so that a chunk holds at most PAIRS_AT_ONCE pixels."""
    row = torch.nonzero(width)[:, 0]
    if row.numel() == 0:
        return []
    group = (torch.cumsum(width[row], 0) - 1) // PAIRS_AT_ONCE
    return list(torch.split(row, torch.unique_consecutive(group, return_counts=True)[1].tolist()))
