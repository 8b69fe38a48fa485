# SPDX-License-Identifier: Apache-2.0
"""What the mesh hides from itself: depth maps from many directions, made once, and the light they let through.

A `Sky` holds one parallel depth map a direction. For the points of a G-buffer it says which directions are open;
that share of the world's light arrives (diffuse by the cosine, glossy by the lobe), and suns are open or not.
Light that comes by way of other surfaces is not counted. Knows geometry and directions; no textures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .lighting import Lights, radiance
from .rasterize import GBuffer, Triangles, rasterize_corners

SKY_DIRECTIONS = 128
SKY_SIZE = 256  # texels across a depth map
HALF_WIDTH = 1.02  # of a map, in object radii
OFFSET_TEXELS = 1.5  # a receiver is lifted off its own surface by this much
NARROWEST_ALPHA = 0.15  # narrower lobes fall between the directions


@dataclass(frozen=True)
class Sky:
    """direction (K, 3) unit, towards the light; frame (K, 3, 3) rows right, up, direction; depth (K, S, S) height
    along the direction of what is hit first, -inf where nothing is."""

    direction: Tensor
    frame: Tensor
    depth: Tensor

    def to(self, device: torch.device | str) -> Sky:
        return Sky(self.direction.to(device), self.frame.to(device), self.depth.to(device))


@dataclass(frozen=True)
class Openness:
    """For N points: sky (N, K) share 0..1 of each direction of `direction` (K, 3) that is open, and suns (N, S)
    the same for the suns of the point's picture. One of the two may be None: all open. `frozen`: the shares are
    constants to the maps; they change slowly with roughness and normal, and their derivatives cost gigabytes."""

    direction: Tensor
    sky: Tensor | None
    suns: Tensor | None
    frozen: bool = False


def even_directions(count: int = SKY_DIRECTIONS) -> Tensor:
    """(count, 3) unit vectors spread evenly over the sphere (Fibonacci)."""
    k = torch.arange(count) + 0.5
    z, around = 1 - 2 * k / count, k * torch.pi * (1 + 5**0.5)
    flat = torch.sqrt(1 - z**2)
    return torch.stack((flat * torch.cos(around), flat * torch.sin(around), z), dim=1)


def look_from(triangles: Triangles, direction: Tensor, size: int = SKY_SIZE) -> Sky:
    """Depth maps of the mesh, which fits the unit sphere, from each of `direction` (K, 3)."""
    direction = direction.to(triangles.positions)
    frame = _frames(direction)
    maps = []
    for axes in frame:
        local = triangles.positions @ axes.T
        xy = 0.5 + 0.5 * local[..., :2] / HALF_WIDTH
        # The rasteriser keeps the largest 1 / w, interpolated evenly: that is the height itself, made positive.
        w = 1 / (2 + local[..., 2])
        identity, bary = rasterize_corners(torch.cat((xy, w[..., None]), dim=-1), size)
        height = 1 / (bary * w[identity.clamp(min=0)]).sum(1) - 2
        maps.append(torch.where(identity >= 0, height, -torch.inf).view(size, size))
    return Sky(direction, frame, torch.stack(maps))


def open_share(sky: Sky, position: Tensor, surface: Tensor) -> Tensor:
    """(N, K) share 0..1 of the four texels around each point (N, 3) that nothing covers; `surface` (N, 3) unit
    normals of the triangles, towards the camera. Directions below the surface count as open: the shading knows."""
    size = sky.depth.shape[-1]
    texel = 2 * HALF_WIDTH / size
    start = position + OFFSET_TEXELS * texel * surface
    shares = []
    for axes, depth in zip(sky.frame, sky.depth, strict=True):
        local = start @ axes.T
        at = (0.5 + 0.5 * local[:, :2] / HALF_WIDTH) * size - 0.5
        low = at.floor()
        part = at - low
        low = low.long()
        total = torch.zeros_like(local[:, 0])
        for dx in (0, 1):
            for dy in (0, 1):
                x, y = (low[:, 0] + dx).clamp(0, size - 1), (low[:, 1] + dy).clamp(0, size - 1)
                weight = (part[:, 0] if dx else 1 - part[:, 0]) * (part[:, 1] if dy else 1 - part[:, 1])
                total = total + weight * (depth[y, x] <= local[:, 2] + 0.5 * texel)
        shares.append(total)
    return torch.stack(shares, dim=1)


def nearest_directions(direction: Tensor, suns: Tensor) -> Tensor:
    """(B, S) index of the direction (K, 3) nearest to each of suns (B, S, 3)."""
    return torch.einsum("bsi,ki->bsk", suns, direction).argmax(-1)


def snapped(lights: Lights, sky: Sky) -> tuple[Lights, Tensor]:
    """The lights with every sun moved to the nearest direction of the sky, and those directions' indices (B, S)."""
    index = nearest_directions(sky.direction, lights.sun_direction)
    return replace(lights, sun_direction=sky.direction[index]), index


def opened(sky: Sky, gbuffer: GBuffer, lights: Lights) -> tuple[Lights, Openness]:
    """The lights with every sun moved to the nearest direction of the sky, and what of them reaches the points."""
    lights, index = snapped(lights, sky)
    share = open_share(sky, gbuffer.position, gbuffer.geometric_normal)
    return lights, Openness(sky.direction, share, share.gather(1, index[gbuffer.view]), frozen=True)


def diffuse_share(openness: Openness, gbuffer: GBuffer, normal: Tensor, lights: Lights) -> Tensor:
    """(N, 3 rgb) share of the world's irradiance on `normal` (N, 3) that arrives."""
    return _share(openness, gbuffer, lights, lambda part: (normal[part] @ openness.direction.T).clamp(min=0))


def glossy_share(openness: Openness, gbuffer: GBuffer, normal: Tensor, roughness: Tensor, lights: Lights) -> Tensor:
    """(N, 3 rgb) share of the world's light in the lobe of `roughness` (N,) about `normal` (N, 3) that arrives."""
    alpha2 = (roughness**2).clamp(min=NARROWEST_ALPHA)[:, None] ** 2

    def lobe(part: slice) -> Tensor:
        to_camera, n = gbuffer.to_camera[part], normal[part]
        # |V + L|^2 = 2 + 2 V.L, so that no vector (N, K, 3) is needed.
        v_l = to_camera @ openness.direction.T
        n_l = n @ openness.direction.T
        n_h2 = ((n * to_camera).sum(1, keepdim=True) + n_l) ** 2 / (2 + 2 * v_l).clamp(min=1e-6)
        wide = alpha2[part]
        peak = wide / (1 - n_h2.clamp(max=1) + wide * n_h2.clamp(max=1)) ** 2
        cosine = n_l.clamp(min=0)
        smith = 2 * cosine / (cosine + torch.sqrt(wide + (1 - wide) * cosine**2)).clamp(min=1e-6)
        return peak * smith

    return _share(openness, gbuffer, lights, lobe)


def _share(openness: Openness, gbuffer: GBuffer, lights: Lights, weights) -> Tensor:
    if openness.sky is None:
        return torch.ones_like(gbuffer.position)
    count = len(openness.direction)
    shares = []
    with torch.set_grad_enabled(torch.is_grad_enabled() and not openness.frozen):
        for picture, part in _pictures(gbuffer.view):
            index = torch.full((count,), picture, device=gbuffer.view.device)
            light = radiance(lights, index, openness.direction).clamp(min=0)
            weight = weights(part)
            whole = weight @ light
            shares.append((weight * openness.sky[part].to(weight.dtype)) @ light / whole.clamp(min=1e-9))
    return torch.cat(shares) if shares else torch.ones_like(gbuffer.position)


def _pictures(view: Tensor) -> list[tuple[int, slice]]:
    """The pictures of a G-buffer and the run of points that each has."""
    numbers, counts = torch.unique_consecutive(view, return_counts=True)
    ends = torch.cumsum(counts, 0).tolist()
    return [(n, slice(e - c, e)) for n, c, e in zip(numbers.tolist(), counts.tolist(), ends, strict=True)]


def _frames(direction: Tensor) -> Tensor:
    """(K, 3, 3) rotations whose third row is the direction."""
    steep = direction[:, 2:].abs() > 0.9
    up = torch.where(steep, direction.new_tensor([1.0, 0, 0]), direction.new_tensor([0.0, 0, 1.0]))
    right = torch.nn.functional.normalize(torch.linalg.cross(up, direction), dim=1)
    return torch.stack((right, torch.linalg.cross(direction, right), direction), dim=1)
