# SPDX-License-Identifier: Apache-2.0
"""Which triangle is seen in which pixel, and what it looks like there: the G-buffer.

Geometry is fixed during a run, so nothing here carries a gradient. Who finds the triangles is said in
rasterizers.py; all answer alike. It knows meshes and cameras; it knows no textures, materials or lights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import rasterizers, scanlines
from .cameras import Cameras
from .mesh import Mesh
from .rasterizers import Rasterizer
from .scanlines import rasterize_corners

STEPS = 65535  # of a stored barycentric coordinate


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
    """One picture, 8 bytes a pixel: packed (H, W) int64, -1 where there is nothing, else from the highest bits down
    the triangle (30), quarters of the pixel that are covered less one (2), first and second barycentric (16 each).

    For its N object pixels: the flat pixel index (N,), triangle (N,) and perspective-correct barycentrics (N, 3);
    coverage (H, W) in 0, 0.25 .. 1 is the anti-aliased object mask.
    """

    packed: Tensor

    @property
    def points(self) -> int:
        return int((self.packed >= 0).sum())

    @property
    def pixel(self) -> Tensor:
        return torch.nonzero(self.packed.flatten() >= 0)[:, 0]

    @property
    def triangle(self) -> Tensor:
        return self.packed.flatten()[self.pixel] >> 34

    @property
    def barycentrics(self) -> Tensor:
        return _barycentrics(self.packed.flatten()[self.pixel])

    @property
    def coverage(self) -> Tensor:
        return _coverage(self.packed)


def pack(triangle: Tensor, barycentrics: Tensor, coverage: Tensor) -> Tensor:
    """What a Visibility holds, flat: of pixels (P,) with a triangle or -1, (P, 3) and coverage 0.25 .. 1 (P,)."""
    steps = (barycentrics[:, :2].clamp(0, 1) * STEPS).round().long()
    first = steps[:, 0]
    second = torch.minimum(steps[:, 1], STEPS - first)  # so that the third is never negative
    quarters = (coverage * 4).round().long() - 1
    return torch.where(triangle >= 0, (((triangle << 2 | quarters) << 16 | first) << 16) | second, -1)


def _barycentrics(packed: Tensor) -> Tensor:
    two = torch.stack((packed >> 16 & STEPS, packed & STEPS), dim=1).float() / STEPS
    return torch.cat((two, (1 - two.sum(1, keepdim=True)).clamp(min=0)), dim=1)


def _coverage(packed: Tensor) -> Tensor:
    return torch.where(packed >= 0, ((packed >> 32 & 3) + 1).float() / 4, 0.0)


@dataclass(frozen=True)
class GBuffer:
    """The N object pixels of B pictures as points; everything a shader may ask of geometry.

    view (N,), pixel (N,) flat index into B*H*W; position (N, 3); geometric_normal (N, 3) unit, of
    the triangle's plane; normal (N, 3) interpolated and not normalised, as Cycles does; tangent
    (N, 4) with the bitangent sign last; uv (N, 2); footprint (N,) longer axis of the pixel's
    ellipse in uv units; to_camera (N, 3) unit; back (N,) bool, where the triangle turns its back on the
    camera; coverage (B, H, W). Normals face the camera.
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
    back: Tensor
    coverage: Tensor

    def picture(self, values: Tensor, background: Tensor) -> Tensor:
        """Put point values (N, C) over `background` (B, H, W, C) by coverage -> (B, H, W, C)."""
        flat = torch.zeros(background.shape[:3].numel(), values.shape[1], dtype=values.dtype, device=values.device)
        flat = flat.index_copy(0, self.pixel, values).view(*background.shape[:3], -1)
        return background + self.coverage[..., None] * (flat - background)


def look(
    triangles: Triangles, cameras: Cameras, index: int, size: int, rasterizer: Rasterizer | None = None
) -> Visibility:
    """Rasterise one camera of the batch into size x size pixels, by `rasterizer`, else by the portable one.

    Pixel centres decide what is seen; a second pass at twice the size gives the coverage and
    claims the edge pixels whose centre lies just outside.
    """
    rasterizer = rasterizer or rasterizers.pick(triangles.positions, "torch")
    (centre_id, centre_bary), (fine_id, fine_bary) = rasterizer(cameras, index, (size, 2 * size))
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
    return Visibility(pack(triangle, barycentrics, coverage.clamp(min=0.25)).view(size, size))


def gather(triangles: Triangles, cameras: Cameras, pictures: list[Visibility]) -> GBuffer:
    """Interpolate the corner values for a batch of pictures; cameras[i] belongs to pictures[i]."""
    size = pictures[0].packed.shape[0]
    packed = torch.stack([p.packed for p in pictures])
    flat = packed.flatten()
    index = torch.nonzero(flat >= 0)[:, 0]
    view, pixel = index // size**2, index % size**2
    triangle, bary = flat[index] >> 34, _barycentrics(flat[index])

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
    back = (geometric_normal * to_camera).sum(1) < 0
    side = torch.where(back, -1.0, 1.0)[:, None]
    return GBuffer(
        view=view,
        pixel=index,
        position=position,
        geometric_normal=geometric_normal * side,
        normal=normal * side,
        tangent=torch.cat((tangent[:, :3], torch.sign(triangles.tangents[triangle, 0, 3:4]) * side), dim=1),
        uv=at(triangles.uvs),
        footprint=_footprint(triangles, cameras, view, triangle, bary, pixel, size),
        to_camera=to_camera,
        back=back,
        coverage=_coverage(packed),
    )


def select(gbuffer: GBuffer, keep: Tensor) -> GBuffer:
    """The G-buffer of the points `keep` (N,) bool only; coverage stays."""
    kept = {f.name: getattr(gbuffer, f.name)[keep] for f in fields(gbuffer) if f.name != "coverage"}
    return GBuffer(**kept, coverage=gbuffer.coverage)


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
    a, b = xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0]
    area = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    area = torch.where(area.abs() < 1e-12, 1e-12, area)
    slope, _ = scanlines.edges(xy, area)
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
