# SPDX-License-Identifier: Apache-2.0
"""Which triangle is seen in which pixel, and what it looks like there: the G-buffer.

Geometry is fixed during a run, so nothing here carries a gradient. The rasteriser is plain torch:
each triangle is cut into pixel rows, each row into the span the three edges leave, so that a
sliver costs what it covers and not what its bounding box does. Visibility goes by the largest 1/w.
It knows meshes and cameras; it knows no textures, materials or lights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .cameras import Cameras
from .mesh import Mesh

PAIRS_AT_ONCE = 4_000_000  # (triangle, pixel) pairs held at a time: bounds memory
EDGE_TOLERANCE_PX = 1e-4  # both neighbours claim a pixel on their edge; depth decides


@dataclass(frozen=True)
class Triangles:
    """The mesh as tensors: (F, 3, C) corner values, in object space inside the unit sphere."""

    positions: Tensor
    normals: Tensor
    tangents: Tensor
    uvs: Tensor

    @staticmethod
    def of(mesh: Mesh, device: torch.device | str = "cpu") -> Triangles:
        return Triangles(
            *(torch.from_numpy(a).to(device) for a in (mesh.positions, mesh.normals, mesh.tangents, mesh.uvs))
        )


@dataclass(frozen=True)
class Visibility:
    """One picture: for its N object pixels the flat pixel index, triangle and perspective-correct
    barycentrics (N, 3); coverage (H, W) in 0..1 is the anti-aliased object mask."""

    pixel: Tensor
    triangle: Tensor
    barycentrics: Tensor
    coverage: Tensor


@dataclass(frozen=True)
class GBuffer:
    """The N object pixels of B pictures as points; everything a shader may ask of geometry.

    view (N,), pixel (N,) flat index into B*H*W; position (N, 3); geometric_normal (N, 3) unit, of
    the triangle's plane; normal (N, 3) interpolated and not normalised, as Cycles does; tangent
    (N, 4) with the bitangent sign last; uv (N, 2); footprint (N,) longer axis of the pixel's
    ellipse in uv units; to_camera (N, 3) unit; coverage (B, H, W). Normals face the camera.
    """

    view: Tensor
    pixel: Tensor
    position: Tensor
    geometric_normal: Tensor
    normal: Tensor
    tangent: Tensor
    uv: Tensor
    footprint: Tensor
    to_camera: Tensor
    coverage: Tensor

    def picture(self, values: Tensor, background: Tensor) -> Tensor:
        """Put point values (N, C) over `background` (B, H, W, C) by coverage -> (B, H, W, C)."""
        flat = torch.zeros(background.shape[:3].numel(), values.shape[1], dtype=values.dtype, device=values.device)
        flat = flat.index_copy(0, self.pixel, values).view(*background.shape[:3], -1)
        return background + self.coverage[..., None] * (flat - background)


def look(triangles: Triangles, cameras: Cameras, index: int, size: int) -> Visibility:
    """Rasterise one camera of the batch into size x size pixels.

    Pixel centres decide what is seen; a second pass at twice the size gives the coverage and
    claims the edge pixels whose centre lies just outside.
    """
    corners = _project(triangles.positions, cameras, index)
    centre_id, centre_bary = rasterize_corners(corners, size)
    fine_id, fine_bary = rasterize_corners(corners, 2 * size)
    quad_id = fine_id.view(size, 2, size, 2).permute(0, 2, 1, 3).reshape(size * size, 4)
    quad_bary = fine_bary.view(size, 2, size, 2, 3).permute(0, 2, 1, 3, 4).reshape(size * size, 4, 3)
    covered = quad_id >= 0
    coverage = covered.float().mean(1)
    first = covered.float().argmax(1, keepdim=True)
    missed = (centre_id < 0) & (coverage > 0)
    triangle = torch.where(missed, quad_id.gather(1, first)[:, 0], centre_id)
    barycentrics = torch.where(
        missed[:, None], quad_bary.gather(1, first[..., None].expand(-1, 1, 3))[:, 0], centre_bary
    )
    coverage = torch.where((triangle >= 0) & (coverage == 0), 0.25, coverage)
    pixel = torch.nonzero(triangle >= 0)[:, 0]
    return Visibility(pixel, triangle[pixel], barycentrics[pixel], coverage.view(size, size))


def gather(triangles: Triangles, cameras: Cameras, pictures: list[Visibility]) -> GBuffer:
    """Interpolate the corner values for a batch of pictures; cameras[i] belongs to pictures[i]."""
    size = pictures[0].coverage.shape[0]
    counts = torch.tensor([p.pixel.numel() for p in pictures], device=triangles.positions.device)
    view = torch.repeat_interleave(torch.arange(len(pictures), device=counts.device), counts)
    pixel = torch.cat([p.pixel for p in pictures])
    triangle = torch.cat([p.triangle for p in pictures])
    bary = torch.cat([p.barycentrics for p in pictures])

    def at(corner_values: Tensor) -> Tensor:
        return torch.einsum("nk,nkc->nc", bary, corner_values[triangle])

    corners = triangles.positions[triangle]
    position = torch.einsum("nk,nkc->nc", bary, corners)
    geometric_normal = torch.nn.functional.normalize(
        torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=1
    )
    to_camera = torch.nn.functional.normalize(cameras.position[view] - position, dim=1)
    normal, tangent = at(triangles.normals), at(triangles.tangents)
    # Blender shades back faces with the flipped normal.
    facing = (geometric_normal * to_camera).sum(1, keepdim=True)
    side = torch.where(facing < 0, -1.0, 1.0)
    return GBuffer(
        view=view,
        pixel=pixel + view * size * size,
        position=position,
        geometric_normal=geometric_normal * side,
        normal=normal * side,
        tangent=torch.cat((tangent[:, :3], torch.sign(triangles.tangents[triangle, 0, 3:4]) * side), dim=1),
        uv=at(triangles.uvs),
        footprint=_footprint(triangles, cameras, view, triangle, bary, pixel, size),
        to_camera=to_camera,
        coverage=torch.stack([p.coverage for p in pictures]),
    )


def select(gbuffer: GBuffer, keep: Tensor) -> GBuffer:
    """The G-buffer of the points `keep` (N,) bool only; coverage stays."""
    kept = {f.name: getattr(gbuffer, f.name)[keep] for f in fields(gbuffer) if f.name != "coverage"}
    return GBuffer(**kept, coverage=gbuffer.coverage)


def _project(positions: Tensor, cameras: Cameras, index: int) -> Tensor:
    """Corner positions (F, 3, 3) -> (F, 3, 3) of x, y in units of the picture width 0..1, and w > 0."""
    local = (positions - cameras.position[index]) @ cameras.rotation[index].T
    w = -local[..., 2]
    scale = 0.5 / (cameras.tan_half_fov[index] * w)
    return torch.stack((0.5 + local[..., 0] * scale, 0.5 - local[..., 1] * scale, w), dim=-1)


def rasterize_corners(corners: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Projected corners (F, 3, 3) -> triangle index (size*size,), -1 where empty, and barycentrics (size*size, 3)."""
    device = corners.device
    xy, w = corners[..., :2] * size, corners[..., 2]
    identity = torch.full((size * size,), -1, dtype=torch.int64, device=device)
    bary = torch.zeros(size * size, 3, device=device)
    depth = torch.zeros(size * size, device=device)
    low, high = xy.amin(1), xy.amax(1)
    area = _cross(xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0])
    first_row = torch.ceil(low[:, 1] - 0.5).clamp(0, size).long()
    last_row = torch.floor(high[:, 1] - 0.5).clamp(-1, size - 1).long()
    rows = (last_row - first_row + 1).clamp(min=0)
    seen = (rows > 0) & (area.abs() > 1e-12) & (w.amin(1) > 1e-6) & (high[:, 0] > 0.5) & (low[:, 0] < size - 0.5)
    face = torch.nonzero(seen)[:, 0]
    if face.numel() == 0:
        return identity, bary
    # Barycentric i is affine in the pixel: b_i = slope_i . (x, y) + offset_i.
    slope, offset = _edges(xy[face], area[face])
    row_face = torch.repeat_interleave(torch.arange(face.numel(), device=device), rows[face])
    start = torch.cumsum(rows[face], 0) - rows[face]
    y = first_row[face][row_face] + torch.arange(row_face.numel(), device=device) - start[row_face]
    lowest, highest = _span(slope[row_face], offset[row_face], y + 0.5)
    lowest = torch.maximum(lowest, low[face, 0][row_face])
    highest = torch.minimum(highest, high[face, 0][row_face])
    x0 = torch.ceil(lowest - 0.5 - EDGE_TOLERANCE_PX).clamp(0, size).long()
    x1 = torch.floor(highest - 0.5 + EDGE_TOLERANCE_PX).clamp(-1, size - 1).long()
    width = (x1 - x0 + 1).clamp(min=0)
    for chunk in _chunks(width):
        pair = torch.repeat_interleave(chunk, width[chunk])
        begin = torch.cumsum(width[chunk], 0) - width[chunk]
        along = torch.arange(pair.numel(), device=device) - torch.repeat_interleave(begin, width[chunk])
        x = x0[pair] + along
        local = row_face[pair]
        centre = torch.stack((x + 0.5, y[pair] + 0.5), dim=1)
        b = ((slope[local] * centre[:, None]).sum(-1) + offset[local]).clamp(min=0)
        over_w = b / w[face[local]]
        inverse_w = over_w.sum(1)
        flat = y[pair] * size + x
        nearest = depth.scatter_reduce(0, flat, inverse_w, "amax")
        wins = inverse_w == nearest[flat]
        flat, winner = flat[wins], face[local[wins]]
        # Of several equally near ones the lowest index: the same picture every time.
        best = torch.full_like(identity, corners.shape[0]).scatter_reduce(0, flat, winner, "amin")
        lowest_index = winner == best[flat]
        flat, winner = flat[lowest_index], winner[lowest_index]
        closer = nearest[flat] > depth[flat]
        flat, winner = flat[closer], winner[closer]
        identity[flat] = winner
        bary[flat] = (over_w[wins] / inverse_w[wins, None])[lowest_index][closer]
        depth = nearest
    return identity, bary


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _edges(xy: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
    """Affine barycentrics of triangles (F, 3, 2): slope (F, 3, 2), offset (F, 3)."""
    a, b = xy[:, [1, 2, 0]], xy[:, [2, 0, 1]]
    edge = b - a
    slope = torch.stack((-edge[..., 1], edge[..., 0]), dim=-1) / area[:, None, None]
    return slope, -(slope * a).sum(-1)


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


def _footprint(
    triangles: Triangles, cameras: Cameras, view: Tensor, triangle: Tensor, bary: Tensor, pixel: Tensor, size: int
) -> Tensor:
    """Longer axis (N,), in uv units, of the ellipse a pixel covers.

    With A_i = b_i / w_i affine in the pixel, S = sum A_i and uv = sum A_i uv_i / S:
    d uv / dx = (sum_i dA_i/dx uv_i - uv dS/dx) / S.
    """
    corners = triangles.positions[triangle]
    local = torch.einsum("nkc,nrc->nkr", corners - cameras.position[view][:, None], cameras.rotation[view])
    w = -local[..., 2]
    scale = 0.5 * size / (cameras.tan_half_fov[view][:, None] * w)
    xy = torch.stack((local[..., 0] * scale, -local[..., 1] * scale), dim=-1)
    area = _cross(xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0])
    area = torch.where(area.abs() < 1e-12, 1e-12, area)
    slope, _ = _edges(xy, area)
    d_over_w = slope / w[..., None]
    # bary_i = A_i / S and w interpolates as 1 / S, hence S = 1 / sum(bary_i w_i).
    s = 1.0 / (bary * w).sum(1)
    uv_corner = triangles.uvs[triangle]
    uv = torch.einsum("nk,nkc->nc", bary, uv_corner)
    d_uv = torch.einsum("nkx,nkc->nxc", d_over_w, uv_corner) - d_over_w.sum(1)[..., None] * uv[:, None]
    d_uv = d_uv / s[:, None, None]
    xx, yy = (d_uv[:, 0] ** 2).sum(1), (d_uv[:, 1] ** 2).sum(1)
    mixed = (d_uv[:, 0] * d_uv[:, 1]).sum(1)
    longer_squared = (xx + yy) / 2 + torch.sqrt(((xx - yy) / 2) ** 2 + mixed**2)
    return longer_squared.clamp(min=0).sqrt()


def texels_of(triangles: Triangles, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The texels whose centre a UV triangle covers: flat index (K,) with rows from the top, position
    (K, 3) in object space, triangle (K,). Where triangles overlap the lowest index wins."""
    u, v = triangles.uvs[..., 0], triangles.uvs[..., 1]
    corners = torch.stack((u, 1 - v, torch.ones_like(u)), dim=-1)
    identity, bary = rasterize_corners(corners, size)
    index = torch.nonzero(identity >= 0)[:, 0]
    triangle = identity[index]
    return index, torch.einsum("nk,nkc->nc", bary[index], triangles.positions[triangle]), triangle
