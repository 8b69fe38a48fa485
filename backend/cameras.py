# SPDX-License-Identifier: Apache-2.0
"""Where the mesh is looked at from. The one axis convention of Patina, drawn:

            +Z up                     seen from above: azimuth grows counter-clockwise
             |                                  +Y  (180, back)
             |   +Y back                         |
             |  /                      (270) -X--+--+X (90, the object's left hand)
             | /                                 |
    ---------+-------- +X                       -Y  (0, front: Blender's Numpad 1)
            /
        -Y front

Camera space: x right, y up, the camera looks along -z. Pixel (0, 0) is the top left one; pixel
centres lie at half integers. The object fits the unit sphere round the origin, and every camera
stays outside of it, so that nothing ever crosses the near plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FULL_VIEW_MARGIN = 1.08  # the unit sphere and a little air


@dataclass(frozen=True)
class Cameras:
    """A batch of B pinhole cameras with square pictures.

    position (B, 3), rotation (B, 3, 3) with rows right, up, backward; tan_half_fov (B,);
    azimuth_deg, elevation_deg (B,) of the position in the object's frame.
    """

    position: Tensor
    rotation: Tensor
    tan_half_fov: Tensor
    azimuth_deg: Tensor
    elevation_deg: Tensor

    def __len__(self) -> int:
        return self.position.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Cameras:
        return Cameras(
            self.position[index],
            self.rotation[index],
            self.tan_half_fov[index],
            self.azimuth_deg[index],
            self.elevation_deg[index],
        )

    @property
    def extent(self) -> Tensor:
        """(B,) half the width seen at the distance of the origin, in object radii."""
        return self.tan_half_fov * self.position.norm(dim=1)


def direction(azimuth_deg: Tensor, elevation_deg: Tensor) -> Tensor:
    """Unit vectors (..., 3) from the origin towards the given angles."""
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    return torch.stack(
        (
            torch.cos(elevation) * torch.sin(azimuth),
            -torch.cos(elevation) * torch.cos(azimuth),
            torch.sin(elevation),
        ),
        dim=-1,
    )


def look_at(
    azimuth_deg: Tensor,
    elevation_deg: Tensor,
    distance: Tensor,
    tan_half_fov: Tensor,
    target: Tensor | None = None,
) -> Cameras:
    """Cameras at `distance` (> 1) from the origin that look at `target` (B, 3), by default the origin."""
    if bool((distance <= 1.0).any()):
        raise ValueError("A camera must stay outside the unit sphere: distance must be over 1.")
    position = direction(azimuth_deg, elevation_deg) * distance[:, None]
    target = torch.zeros_like(position) if target is None else target
    backward = torch.nn.functional.normalize(position - target, dim=1)
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(backward)
    # Straight above or below, "up" in the picture is the object's back or front.
    steep = backward[:, 2].abs() > 0.9999
    up = torch.where(steep[:, None], torch.tensor([0.0, 1.0, 0.0]), up)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, backward), dim=1)
    rotation = torch.stack((right, torch.linalg.cross(backward, right), backward), dim=1)
    return Cameras(position, rotation, tan_half_fov, azimuth_deg, elevation_deg)


def sample_full(count: int, generator: torch.Generator) -> Cameras:
    """Cameras that see the whole object: azimuth stratified, elevation half even over -50..75 degrees
    and half even over the sphere (threestudio's mixture), field of view 20..45 degrees."""
    azimuth_deg, elevation_deg = _angles(count, generator)
    half_fov = torch.deg2rad(10 + 12.5 * torch.rand(count, generator=generator))
    distance = FULL_VIEW_MARGIN * (1 + 0.15 * torch.rand(count, generator=generator)) / torch.sin(half_fov)
    return look_at(azimuth_deg, elevation_deg, distance, torch.tan(half_fov))


def sample_close(count: int, surface: Tensor, normals: Tensor, generator: torch.Generator) -> Cameras:
    """Close-ups on surface points drawn from `surface` (N, 3) with `normals` (N, 3).

    The lens is long and the camera outside the unit sphere, so perspective stays gentle; the
    picture spans 0.25..0.7 object radii to each side.
    """
    picks = torch.randint(surface.shape[0], (count,), generator=generator)
    target = surface[picks]
    lean = torch.randn(count, 3, generator=generator)
    towards = torch.nn.functional.normalize(normals[picks] + 0.35 * lean, dim=1)
    # A point deep in a hollow is looked at from outside along the leaning normal.
    distance = 2.2 + 0.6 * torch.rand(count, generator=generator)
    along = _leave_sphere(target, towards, distance)
    position = target + along[:, None] * towards
    elevation_deg = torch.rad2deg(torch.asin((position[:, 2] / distance).clamp(-1, 1)))
    azimuth_deg = torch.rad2deg(torch.atan2(position[:, 0], -position[:, 1]))
    half_width = 0.25 * (0.7 / 0.25) ** torch.rand(count, generator=generator)
    return look_at(azimuth_deg, elevation_deg, distance, half_width / along, target)


def _leave_sphere(start: Tensor, towards: Tensor, radius: Tensor) -> Tensor:
    """Distance (B,) along unit `towards` from `start` inside a sphere of `radius` to its surface."""
    along = (start * towards).sum(1)
    return -along + torch.sqrt(along**2 - (start * start).sum(1) + radius**2)


def _angles(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    offset = torch.rand(count, generator=generator)
    azimuth_deg = (torch.arange(count) + offset) / count * 360.0
    azimuth_deg = azimuth_deg[torch.randperm(count, generator=generator)]
    even = -50 + 125 * torch.rand(count, generator=generator)
    spherical = torch.rad2deg(torch.asin(2 * torch.rand(count, generator=generator) - 1))
    elevation_deg = torch.where(torch.rand(count, generator=generator) < 0.5, even, spherical)
    return azimuth_deg, elevation_deg.clamp(-math.degrees(1.5), math.degrees(1.5))
