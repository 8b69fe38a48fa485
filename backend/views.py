# SPDX-License-Identifier: Apache-2.0
"""The cameras of one run: a fixed pool of full views and close-ups, rasterised when first used."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import cameras, dreamfusion, surroundings
from .cameras import Cameras
from .diffusion.interface import Scene
from .lighting import Lights, sample
from .occlusion import Sky, opened
from .panoramas import Environment
from .rasterize import GBuffer, Triangles, Visibility, gather, look
from .rasterizers import Rasterizer, pick
from .reference import Reference

FULL_VIEWS, CLOSE_VIEWS = 48, 96
FEWEST_PIXELS = 40  # a picture with less of the object teaches nothing


@dataclass
class ViewPool:
    """`full` first, then close-ups. `seen` (F,) bool grows with every rasterised picture. `sky`: what the mesh hides
    from itself; None: that does not count."""

    triangles: Triangles
    cameras: Cameras
    full: int
    size: int
    seen: Tensor
    rasterizer: Rasterizer
    pictures: dict[int, Visibility] = field(default_factory=dict)
    memory: dict[Hashable, Tensor] = field(default_factory=dict)  # what a model keeps of each view
    reference: Reference | None = None
    sky: Sky | None = None
    environments: tuple[Environment, ...] = ()  # panoramas that light the pictures; none: lights drawn at random

    def lights(self, count: int, generator: torch.Generator) -> Lights:
        """Lights of `count` pictures, on the mesh's device."""
        if self.environments:
            return surroundings.draw(self.environments, count, generator).to(self.triangles.positions.device)
        return sample(count, generator).to(self.triangles.positions.device)

    def look(self, index: int) -> Visibility:
        if index not in self.pictures:
            picture = look(self.triangles, self.cameras, index, self.size, self.rasterizer)
            self.seen[picture.triangle] = True
            self.pictures[index] = picture
        return self.pictures[index]

    def draw(
        self, count: int, close: int, generator: torch.Generator, within_deg: tuple[float, float] | None = None
    ) -> list[int]:
        """`count` different pool indices, `close` of them close-ups, none of them almost empty; `within_deg`: azimuth,
        and how far from it they may stand."""
        full = torch.randperm(self.full, generator=generator)
        near = self.full + torch.randperm(len(self.cameras) - self.full, generator=generator)
        if within_deg is not None:
            full, near = (part[self._is_within(part, *within_deg)] for part in (full, near))
        drawn = full[: count - close].tolist() + near[:close].tolist()
        good = [index for index in drawn if self.look(index).points >= FEWEST_PIXELS]
        return good or [self._best()]

    def gbuffer(self, indices: list[int]) -> GBuffer:
        return gather(self.triangles, self.cameras[torch.tensor(indices)], [self.look(i) for i in indices])

    def scene(self, indices: list[int], lights: Lights, pattern_scale: float, pattern_offset: Tensor) -> Scene:
        where, gbuffer, openness = torch.tensor(indices), self.gbuffer(indices), None
        if self.sky is not None:
            lights, openness = opened(self.sky, gbuffer, lights)
        return Scene(
            gbuffer, lights, self.size, pattern_scale, pattern_offset, tuple(indices), self.memory,
            self.cameras.azimuth_deg[where], self.cameras.elevation_deg[where], self.cameras[where], openness=openness,
        )  # fmt: skip

    def extent(self, indices: list[int]) -> Tensor:
        """(B,) half the picture's width at the object, in object radii."""
        return self.cameras.extent[torch.tensor(indices)]

    def _is_within(self, indices: Tensor, azimuth_deg: float, range_deg: float) -> Tensor:
        away = (self.cameras.azimuth_deg[indices] - azimuth_deg + 180) % 360 - 180
        return away.abs() <= range_deg

    def _best(self) -> int:
        return max(range(self.full), key=lambda index: self.look(index).points)


def new_pool(
    triangles: Triangles,
    face_mask: Tensor,
    size: int,
    generator: torch.Generator,
    rasterizer: str = "auto",
    staging: str = "own",
    sky: Sky | None = None,
) -> ViewPool:
    """Cameras round the mesh, by distillation.Options' `staging`; close-ups aim at points spread evenly over the area
    that may change. `sky`: what the mesh hides from itself."""
    corners = triangles.positions
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1) * face_mask
    # multinomial takes at most 2^24 weights; bounds by cumulative area take any number.
    bounds = torch.cumsum(area.double(), 0)
    aim = torch.rand(512, generator=generator, dtype=torch.float64) * bounds[-1]
    face = torch.searchsorted(bounds, aim).clamp(max=len(area) - 1)
    draw_full = dreamfusion.draw_cameras if staging == "dreamfusion" else cameras.sample_full
    full = draw_full(FULL_VIEWS, generator)
    close = cameras.sample_close(CLOSE_VIEWS, corners[face].mean(1), triangles.normals[face].mean(1), generator)
    together = Cameras(*(torch.cat(p) for p in zip(full.__dict__.values(), close.__dict__.values(), strict=True)))
    chosen = pick(corners, rasterizer)
    return ViewPool(triangles, together, FULL_VIEWS, size, torch.zeros(len(area), dtype=torch.bool), chosen, sky=sky)
