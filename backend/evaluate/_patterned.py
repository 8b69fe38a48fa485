# SPDX-License-Identifier: Apache-2.0
"""Is the pattern recognisable? Retrieval of patterned materials among each other, without their colours.

Patches of base colour, 64 x 64 pixels seen along a surface normal, are projected on their main colour axis and
normalised to mean 0 and deviation 1. Features: nine quantiles of the values (their sign set by the skew), and log
energies of a bank of oriented band-pass filters (4 octaves x 4 directions, by FFT). A prompt's class is the mean and
the pooled covariance of the features of many patches of the generator on the same shape; a result's rank is the place
of the true class by Mahalanobis distance of its mean patch feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from addon.protocol import JobFolder

from .. import cameras
from ..maps import read_map
from ..mesh import Mesh, load_job_mesh
from ..prior import instances, materials, patterns, procedural
from ..prior.vocabulary import read
from ..rasterize import Triangles, gather, look

PATCH = 64
HALF_WIDTH = 0.55  # object radii a patch spans to each side
PATCHES = 24
DRAWS = 8  # instances a class is learnt from
JUDGED = 99  # seed of the views of what is judged; classes are learnt from 0 up
SMOOTH_PATTERNS = (patterns.plain, patterns.clouds, patterns.grains)


def is_patterned(prompt: materials.Prompt) -> bool:
    named = materials.MATERIALS.get(prompt.material)
    covering = ("painted", "chipped", "rusty", "oxidised", "mossy", "dirty", "brushed", "hammered")
    return named is not None and named.pattern not in SMOOTH_PATTERNS and prompt.finish not in covering


def features(patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(25,) features of a patch (64, 64, 3) where mask (64, 64) bool."""
    values = patch[mask]
    centred = values - values.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    line = np.zeros(mask.shape)
    line[mask] = centred @ axes[0]
    deviation = line[mask].std()
    if deviation < 0.012:  # flat: no pattern to speak of
        return np.zeros(25)
    line[mask] /= deviation
    if (line[mask] ** 3).mean() < 0:
        line = -line
    quantiles = np.quantile(line[mask], np.linspace(0.1, 0.9, 9))
    window = np.hanning(PATCH)[:, None] * np.hanning(PATCH)[None]
    power = np.abs(np.fft.fftshift(np.fft.fft2(line * window))) ** 2
    fy, fx = np.meshgrid(*(np.arange(PATCH) - PATCH // 2,) * 2, indexing="ij")
    radius, angle = np.hypot(fx, fy), np.arctan2(fy, fx)
    bands = []
    for octave in (1.5, 3, 6, 12):
        for direction in np.arange(4) * np.pi / 4:
            along = np.abs(np.cos(angle - direction)) > np.cos(np.pi / 8)
            bands.append(power[(radius >= octave) & (radius < 2 * octave) & along].sum())
    bands = np.array(bands) / max(sum(bands), 1e-9)
    return np.concatenate((quantiles, np.log(bands + 1e-3)))


def _patch_views(triangles: Triangles, seed: int) -> cameras.Cameras:
    """Cameras that look straight at points of the surface."""
    generator = torch.Generator().manual_seed(seed)
    corners = triangles.positions
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1)
    face = torch.multinomial(area, PATCHES, generator=generator, replacement=True)
    target = corners[face].mean(1)
    towards = torch.nn.functional.normalize(triangles.normals[face].mean(1), dim=1)
    position = target + 2.4 * towards
    distance = position.norm(dim=1)
    outside = distance > 1.05
    elevation = torch.rad2deg(torch.asin((position[:, 2] / distance).clamp(-1, 1)))
    azimuth = torch.rad2deg(torch.atan2(position[:, 0], -position[:, 1]))
    views = cameras.look_at(
        azimuth, elevation, distance.clamp(min=1.05), torch.full((PATCHES,), HALF_WIDTH / 2.4), target
    )
    return views[outside]


def patches(triangles: Triangles, colour_at, seed: int) -> list[np.ndarray]:
    """Features of patches; `colour_at(gbuffer)` gives display colours (N, 3)."""
    views = _patch_views(triangles, seed)
    found = []
    for index in range(len(views)):
        visible = look(triangles, views, index, PATCH)
        if visible.pixel.numel() < PATCH * PATCH // 2:
            continue
        points = gather(triangles, views[slice(index, index + 1)], [visible])
        picture = np.zeros((PATCH * PATCH, 3))
        picture[points.pixel.numpy()] = colour_at(points).numpy()
        mask = np.zeros(PATCH * PATCH, bool)
        mask[points.pixel.numpy()] = True
        found.append(features(picture.reshape(PATCH, PATCH, 3), mask.reshape(PATCH, PATCH)))
    return found


@dataclass(frozen=True)
class Retriever:
    prompts: tuple[str, ...]
    means: np.ndarray  # (P, 25)
    whiten: np.ndarray  # (25, 25) of the pooled covariance

    @staticmethod
    def of(prompts: list[str], mesh: Mesh) -> Retriever:
        """Learn the classes from the generator on `mesh`: on thin or stepped shapes any pattern looks unlike itself
        elsewhere, and a judge that learnt on others would judge the shape."""
        generator, triangles = torch.Generator().manual_seed(5), Triangles.of(mesh)
        means, spreads = [], []
        for prompt in prompts:
            rows = []
            for number in range(DRAWS):
                instance = instances.draw(read(prompt).prompt, generator)
                offset = 8 * torch.rand(3, generator=generator)

                def colour(points, instance=instance, offset=offset):
                    normal = torch.nn.functional.normalize(points.normal, dim=1)
                    return instances.components(instance, procedural.evaluate(points.position + offset, normal))[0]

                rows += patches(triangles, colour, number)
            rows = np.array(rows)
            means.append(rows.mean(0))
            spreads.append(np.cov(rows.T))
        pooled = np.mean(spreads, axis=0) + 0.02 * np.eye(25)
        return Retriever(tuple(prompts), np.array(means), np.linalg.cholesky(np.linalg.inv(pooled)))

    def rank(self, found: list[np.ndarray], prompt: str) -> int:
        """1 when the patches lie nearest to their own prompt's class."""
        distance = np.linalg.norm((self.means - np.mean(found, axis=0)) @ self.whiten, axis=1)
        return int((distance < distance[self.prompts.index(prompt)]).sum()) + 1


def patches_of_job(job: JobFolder) -> list[np.ndarray]:
    """Features of patches of a job's base colour, seen on its mesh."""
    image = torch.from_numpy(read_map(job.maps / "base_color.png")).float()
    texture = image.flip(0).permute(2, 0, 1)[None]

    def colour(points):
        grid = (points.uv * 2 - 1).view(1, -1, 1, 2)
        return torch.nn.functional.grid_sample(texture, grid, align_corners=False)[0, :, :, 0].T

    return patches(Triangles.of(load_job_mesh(job.mesh)), colour, JUDGED)
