# SPDX-License-Identifier: Apache-2.0
"""From surface points back into a picture: where it shows them, how straight, and whether anything lies before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Cameras
from .rasterize import GBuffer

STEEPEST = 0.2  # cosine from the camera below which a picture says nothing of a point


@dataclass(frozen=True)
class Shown:
    """Points in one picture: place (N, 2) in -1..1, right and down; facing (N,) the cosine towards the camera, of
    whichever side is turned to it; seen (N,) bool."""

    place: Tensor
    facing: Tensor
    seen: Tensor

    def read(self, picture: Tensor) -> Tensor:
        """(N, C) of a picture (1, C, S, S), interpolated."""
        return torch.nn.functional.grid_sample(picture, self.place.view(1, 1, -1, 2), align_corners=False)[0, :, 0].T


def filled(gbuffer: GBuffer, view: int) -> Tensor:
    """(N,) bool: the points of `view` that fill their pixel."""
    return (gbuffer.view == view) & (gbuffer.coverage.flatten()[gbuffer.pixel] == 1)


def show(gbuffer: GBuffer, cameras: Cameras, view: int, position: Tensor, normal: Tensor) -> Shown:
    """Where picture `view` of the G-buffer shows points `position` (N, 3) with unit `normal` (N, 3), on the side that
    the mesh calls its front. A back is seen where the picture shows one: behind a thin solid's front it is none."""
    size = gbuffer.coverage.shape[1]
    rotation, eye = cameras.rotation[view].to(position), cameras.position[view].to(position)
    tangent = float(cameras.tan_half_fov[view])
    right, up, back = ((position - eye) @ rotation.T).unbind(1)
    place = torch.stack((right, -up), dim=1) / (-back * tangent)[:, None]
    towards = (normal * torch.nn.functional.normalize(eye - position, dim=1)).sum(1)
    facing, inside = towards.abs(), filled(gbuffer, view)
    pixels = torch.stack((position.new_full((size * size,), -torch.inf), position.new_zeros(size * size)))
    depth = -((gbuffer.position[inside] - eye) @ rotation.T)[:, 2]
    pixels[:, gbuffer.pixel[inside] - view * size * size] = torch.stack((depth, gbuffer.back[inside].to(depth)))
    nearest, back_there = torch.nn.functional.grid_sample(
        pixels.view(1, 2, size, size), place.view(1, 1, -1, 2), mode="nearest", align_corners=False
    )[0, :, 0]
    # A point lies at most a pixel and a half beside the one that its pixel shows.
    slack = 3 * tangent * -back / size / facing.clamp(min=STEEPEST)
    same_side = (towards > 0) | (back_there > 0)
    return Shown(place, facing, (facing > STEEPEST) & same_side & (-back < nearest + slack))
