# SPDX-License-Identifier: Apache-2.0
"""What a run begins from and what it must leave as it is: start maps, masks, locked maps.

Outside the mask the maps are those of start/, texel by texel and byte by byte; the optimiser sees them there too, so
that what changes is made to fit. Knows maps and texels; no model and no light.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from scipy.spatial import cKDTree
from torch import Tensor

from addon.protocol import MAP_NAMES, JobFolder, ProtocolError, TextureRequest

from . import material
from .maps import CHANNELS, fill_uncovered, find_map, read_map
from .mesh import Mesh
from .rasterize import GBuffer, Triangles, texels_of

BORDER_SIZE = 512  # texels of the map in which the soft border is measured
_COARSEST = 16
# First of the seven stored channels of each map, and how many.
_PLACES = {"base_color": (0, 3), "metallic": (3, 1), "roughness": (4, 1), "normal": (5, 2)}


@dataclass(frozen=True)
class Held:
    """`levels`: (1, 14, S, S), fine to coarse, row 0 is v = 0: seven stored values, and how much each may change.

    start: name -> (T, T, C) stored values, row 0 at the top. change: (T, T) how much of the texels may change.
    """

    levels: tuple[Tensor, ...]
    start: dict[str, Tensor]
    change: Tensor
    locked: frozenset[str]

    def mix(self, values: Tensor, points: GBuffer) -> Tensor:
        """Stored values (N, 7) of a run with what is held put in its place."""
        held = self._at(points)
        return held[:, :7] + (values - held[:, :7]) * held[:, 7:]

    def share(self, points: GBuffer) -> Tensor:
        """(N, 7) the derivative of `mix` by the run's values."""
        return self._at(points)[:, 7:]

    def compose(self, images: dict[str, Tensor], covered: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A run's maps (S, S, C) with what is held in its place, and for each map (S, S) which texels are final."""
        size, covered = covered.shape[0], covered.cpu()
        change = _resized(self.change[..., None], size)
        # Gutters follow their island: where nothing near changes, they stay too.
        change = fill_uncovered(torch.where(covered[..., None], change, 0), covered)
        composed, final = {}, {}
        for name, made in images.items():
            start = _resized(self.start[name], size)
            share = torch.zeros_like(change) if name in self.locked else change
            composed[name] = torch.where(share > 0, start + (made.cpu() - start) * share, start)
            final[name] = share[..., 0] == 0
        return composed, final

    def _at(self, points: GBuffer) -> Tensor:
        """(N, 14) filtered to the points' footprints."""
        wanted = torch.log2((points.footprint * self.levels[0].shape[-1]).clamp(min=1e-6))
        wanted = wanted.clamp(0, len(self.levels) - 1)
        grid = (points.uv * 2 - 1).view(1, -1, 1, 2)
        total = points.uv.new_zeros(len(wanted), 14)
        for number, level in enumerate(self.levels):
            share = (1 - (wanted - number).abs()).clamp(min=0)
            sampled = F.grid_sample(level, grid, padding_mode="border", align_corners=False)
            total = total + share[:, None] * sampled[0, :, :, 0].T
        return total


def read_start(job: JobFolder) -> dict[str, Tensor]:
    """The four start maps (T, T, C), stored values in 0..1, row 0 at the top. Raises ProtocolError."""
    maps = {}
    for name in MAP_NAMES:
        try:
            values = read_map(find_map(job.start, name))
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise ProtocolError(f"The start map {name} in {job.start} cannot be read: {error}") from error
        channels = CHANNELS[name]
        values = values[..., None] if values.ndim == 2 else values[..., :3]
        values = values[..., :1] if channels == 1 else np.broadcast_to(values, (*values.shape[:2], 3))
        maps[name] = torch.from_numpy(np.array(values, np.float32))
    sizes = {tuple(values.shape[:2]) for values in maps.values()}
    if len(sizes) > 1 or any(width != height for width, height in sizes):
        raise ProtocolError(f"The start maps in {job.start} must be squares of one size.")
    return maps


def hold(
    request: TextureRequest, job: JobFolder, mesh: Mesh, start: dict[str, Tensor], finest: int, device: torch.device
) -> Held | None:
    """What the request wants kept; None when all may change. Raises ProtocolError."""
    size = request.texture_size
    change = _mask(job, mesh, size)
    if bool((change > 0).all()) and not request.locked_maps:
        return None
    if not bool((change > 0).any()):
        raise ProtocolError("The mask leaves nothing to change.")
    if request.mask_border > 0:
        change = change * _soft(change, mesh, request.mask_border)
    locked = frozenset(request.locked_maps)
    stored = stored_channels({name: _resized(values, size) for name, values in start.items()})
    open_maps = torch.ones(7)
    for name in locked:
        first, count = _PLACES[name]
        open_maps[first : first + count] = 0
    together = torch.cat((stored, change[..., None] * open_maps), dim=-1).flip(0).permute(2, 0, 1)[None]
    levels = [_fitted(together, min(finest, size))]
    while levels[-1].shape[-1] > _COARSEST:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return Held(tuple(level.to(device) for level in levels), start, change, locked)


def begin_from(state, start: dict[str, Tensor]) -> None:
    """Put the learnable maps of a fresh `state` at the start maps, as fine as they can show them."""
    raw = (stored_channels(start) - 0.5) / torch.tensor(material.SLOPE)
    raw[..., material.NORMAL] = raw[..., material.NORMAL].clamp(*_tilt_limits())
    image = raw.flip(0).permute(2, 0, 1)[None]
    sides = [level.shape[-1] for level in state.maps.pyramid]
    shown = [_fitted(image, side) for side in sides]
    mean = image.mean((2, 3))
    with torch.no_grad():
        for volume in state.maps.volumes:
            volume.zero_()
        state.maps.volumes[0].copy_(mean.view(1, -1, 1, 1, 1))
        below = mean.view(1, -1, 1, 1).expand_as(shown[0])
        for level, wanted in zip(state.maps.pyramid, shown, strict=True):
            coarse = F.interpolate(below, size=wanted.shape[-2:], mode="bilinear", align_corners=False)
            level.copy_(wanted - coarse)
            below = wanted
        for average, own in zip(state.average.parameters(), state.maps.parameters(), strict=True):
            average.copy_(own)


def stored_channels(maps: dict[str, Tensor]) -> Tensor:
    """Four maps (S, S, C) -> seven stored channels (S, S, 7), normals made unit length."""
    normal = F.normalize(maps["normal"] * 2 - 1, dim=-1)[..., :2] * 0.5 + 0.5
    return torch.cat((maps["base_color"], maps["metallic"], maps["roughness"], normal), dim=-1)


def _tilt_limits() -> tuple[float, float]:
    limit = material.TILT_MAX / 2 / material.SLOPE[-1]
    return -limit, limit


def _mask(job: JobFolder, mesh: Mesh, size: int) -> Tensor:
    """(S, S) in 0..1: how much each texel may change, by the mesh's face mask and the painted mask."""
    change = torch.ones(size * size)
    if not mesh.face_mask.all():
        triangles = Triangles.of(mesh)
        change.zero_()
        inside = torch.from_numpy(mesh.face_mask)
        change[texels_of(_some(triangles, inside), size)[0]] = 1.0
        # A texel that faces of both kinds show belongs to those that stay.
        change[texels_of(_some(triangles, ~inside), size)[0]] = 0.0
    change = change.view(size, size)
    if job.mask.is_file():
        try:
            with Image.open(job.mask) as image:
                painted = torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32) / 255)
        except (OSError, UnidentifiedImageError) as error:
            raise ProtocolError(f"The mask {job.mask} cannot be read: {error}") from error
        painted = _resized(painted[..., None], size)[..., 0]
        change = change * torch.where(painted < 1.5 / 255, 0.0, painted)
    return change


def _some(triangles: Triangles, which: Tensor) -> Triangles:
    parts = (triangles.positions, triangles.normals, triangles.tangents, triangles.uvs)
    return Triangles(*(part[which.to(part.device)] for part in parts))


def _soft(change: Tensor, mesh: Mesh, border: float) -> Tensor:
    """(S, S) a smooth rise from 0 at the mask's edge to 1 at `border` object radii from it, measured in 3D."""
    size = min(change.shape[0], BORDER_SIZE)
    index, position, _ = texels_of(Triangles.of(mesh), size)
    inside = F.adaptive_avg_pool2d(change[None, None], size).flatten()[index] > 0.5
    rise = torch.ones(size * size)
    if bool(inside.any()) and not bool(inside.all()):
        tree = cKDTree(position[~inside].numpy())
        distance, _ = tree.query(position[inside].numpy(), distance_upper_bound=border, workers=1)
        share = torch.from_numpy(np.minimum(distance / border, 1.0)).float()
        rise[index[inside]] = share * share * (3 - 2 * share)
    covered = torch.zeros(size * size, dtype=torch.bool)
    covered[index] = True
    filled = fill_uncovered(rise.view(size, size, 1), covered.view(size, size))
    return _resized(filled, change.shape[0])[..., 0].clamp(0, 1)


def _resized(values: Tensor, size: int) -> Tensor:
    """(T, T, C) -> (S, S, C); itself when it has that size already."""
    if values.shape[0] == size and values.shape[1] == size:
        return values
    return _fitted(values.permute(2, 0, 1)[None], size)[0].permute(1, 2, 0)


def _fitted(image: Tensor, size: int) -> Tensor:
    """(1, C, T, T) -> (1, C, S, S): averaged when smaller, interpolated when larger."""
    if image.shape[-1] == size and image.shape[-2] == size:
        return image
    if image.shape[-1] > size:
        return F.interpolate(image, size=(size, size), mode="area")
    return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
