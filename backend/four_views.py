# SPDX-License-Identifier: Apache-2.0
"""Four views painted together and projected back onto the object: a base colour in one go (Instant3D, Sber).

The views stand at azimuth 0, 90, 180 and 270, 20 degrees up, tiled 2 x 2 to one picture of the size that the model is
shown; a model that looks at the geometry paints each by itself. The pictures are taken for the object under an even
white world. Alone this is the fast method, else what a distillation begins with.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import lighting, material
from .cameras import FULL_VIEW_MARGIN, Cameras, look_at
from .diffusion.interface import Denoiser, Latent, Scene, decode, encode
from .distillation import Options, guidance_scale
from .ggx_tables import GgxTables
from .guidance import add_noise, classifier_free, noise_in
from .maps import fill_uncovered
from .material import LearnableMaps, Texels
from .projection import filled, show
from .rasterize import Triangles, gather, look
from .shading import SurfaceMaps, linear_to_srgb, shade, srgb_to_linear
from .tiling import tile, untile
from .unseen import nearest_seen

AZIMUTH_DEG, ELEVATION_DEG, HALF_FOV_DEG = (0.0, 90.0, 180.0, 270.0), 20.0, 15.0
EARLIEST = 0.02  # of the timesteps: where sampling ends
SHARPNESS = 4.0  # how much a view that looks straight at a texel counts before others
NOTHING_SEEN = (
    "None of the four views shows enough of the object to be projected back onto it; the base color stays that of one "
    "material. Begin with uniform instead."
)
BLOB = 0.3  # of a cell's width: how wide the grey blob is that a picture may begin with


@dataclass(frozen=True)
class Painted:
    """pictures (4, 3, S, S) in -1..1 of the scene's four views."""

    pictures: Tensor
    scene: Scene


def cameras_of() -> Cameras:
    half_fov = math.radians(HALF_FOV_DEG)
    count = len(AZIMUTH_DEG)
    return look_at(
        torch.tensor(AZIMUTH_DEG), torch.full((count,), ELEVATION_DEG),
        torch.full((count,), FULL_VIEW_MARGIN / math.sin(half_fov)), torch.full((count,), math.tan(half_fov)),
    )  # fmt: skip


@torch.no_grad()
def paint(
    model: Denoiser, triangles: Triangles, surface: Tensor, tables: GgxTables, scale: float, options: Options,
    pattern: tuple[float, Tensor], generator: torch.Generator, asked_size: int,
) -> Generator[None, None, Painted]:  # fmt: skip
    """The four views as `model` paints them in pictures of `asked_size` pixels with guidance `scale`, from renders of
    the stored values `surface` (7,) or from blobs (options.grid_start), by deterministic DDIM. Yields after each of the
    options.grid_steps."""
    together = not getattr(model, "sees_geometry", True)
    device = triangles.positions.device
    size = asked_size // 2 if together else asked_size
    cameras = cameras_of()
    gbuffer = gather(triangles, cameras, [look(triangles, cameras, index, size) for index in range(len(cameras))])
    scene = Scene(
        gbuffer, lighting.uniform(len(cameras)).to(device), size, *pattern, (), None, cameras.azimuth_deg,
        cameras.elevation_deg, cameras,
    )  # fmt: skip
    begin = _begin(model, scene, surface, tables, options.grid_start)
    asked = scene
    if together:
        begin = tile(begin)
        tiles = tuple(range(len(cameras)))
        asked = replace(scene, size=2 * size, azimuth_deg=None, elevation_deg=None, tiles=tiles)
    pictures = (yield from _denoise(model, asked, begin, scale, options, generator)).clamp(-1, 1)
    return Painted(untile(pictures) if together else pictures, scene)


def _begin(model: Denoiser, scene: Scene, surface: Tensor, tables: GgxTables, kind: str) -> Tensor:
    """(4, 3, S, S) in -1..1."""
    size, count = scene.size, len(scene.gbuffer.coverage)
    behind = 1.0 if model.background is None else model.background
    empty = torch.full((count, size, size, 3), behind, device=scene.gbuffer.position.device)
    if kind == "blob":
        across = (torch.arange(size, device=empty.device) + 0.5) / size - 0.5
        distance = across[:, None] ** 2 + across[None] ** 2
        pictures = empty - 0.5 * torch.exp(-distance / (2 * (BLOB / 2) ** 2))[None, :, :, None]
    else:
        values = surface.expand(len(scene.gbuffer.view), -1)
        shown = linear_to_srgb(shade(scene.gbuffer, material.surface_maps(values), scene.lights, tables))
        pictures = scene.gbuffer.picture(shown, empty)
    return pictures.permute(0, 3, 1, 2).contiguous() * 2 - 1


def _denoise(
    model: Denoiser, scene: Scene, begin: Tensor, scale: float, options: Options, generator: torch.Generator
) -> Generator[None, None, Tensor]:
    clean = encode(model, begin)
    alphas_cumprod = model.alphas_cumprod.to(clean)
    total = len(alphas_cumprod) - 1
    times = torch.linspace(options.grid_strength * total, EARLIEST * total, options.grid_steps).long()
    rows = clean.new_ones(len(clean), dtype=torch.long)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    noisy = add_noise(clean, noise, alphas_cumprod[rows * times[0]])
    for step, (now, after) in enumerate(zip(times.tolist(), [*times.tolist()[1:], None], strict=True)):
        w = guidance_scale(scale, options, step / options.grid_steps)
        x0_hat = classifier_free(model.predict(noisy, rows * now, scene, guided=w != 1), w)
        if not isinstance(model, Latent):
            x0_hat = x0_hat.clamp(-1, 1)
        if after is not None:
            noise = noise_in(noisy, x0_hat, alphas_cumprod[rows * now])
            noisy = add_noise(x0_hat, noise, alphas_cumprod[rows * after])
        yield
    return decode(model, x0_hat)


def base_color_of(painted: Painted, surface: Tensor, tables: GgxTables) -> Tensor:
    """(N, 3) display base colours at the G-buffer's points that show as the pictures do, with the metallic and
    roughness of `surface` (7,): what a surface sends back is a line in its base colour."""
    gbuffer = painted.scene.gbuffer
    shown = painted.pictures.permute(0, 2, 3, 1).reshape(-1, 3)[gbuffer.pixel] * 0.5 + 0.5
    metallic, roughness = (surface[c].expand(len(shown)) for c in (material.METALLIC, material.ROUGHNESS))
    black, white = (
        shade(gbuffer, SurfaceMaps(shown.new_full(shown.shape, c), metallic, roughness), painted.scene.lights, tables)
        for c in (0.0, 1.0)
    )
    return linear_to_srgb(((srgb_to_linear(shown) - black) / (white - black).clamp(min=1e-3)).clamp(0, 1))


def project(painted: Painted, colors: Tensor, triangles: Triangles, where: Texels) -> tuple[Tensor, Tensor]:
    """Colours (K, 3) of the texels and how much is known of each, (K,): 0 where no view sees it. `colors` (N, 3) are
    those of the scene's points."""
    gbuffer, cameras, size = painted.scene.gbuffer, painted.scene.cameras, painted.scene.size
    corners = triangles.positions[where.triangle]
    plane = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = torch.nn.functional.normalize(plane, dim=1)
    total, weight = torch.zeros(len(normal), 3).to(colors), torch.zeros(len(normal)).to(colors)
    for view in range(len(cameras)):
        shown, inside = show(gbuffer, cameras, view, where.position, normal), filled(gbuffer, view)
        known = colors.new_zeros(size * size, 4)  # with a 1 where the object fills the pixel
        known[gbuffer.pixel[inside] - view * size * size] = torch.cat(
            (colors[inside], colors.new_ones(int(inside.sum()), 1)), dim=1
        )
        read = shown.read(known.T.reshape(1, 4, size, size))
        share = torch.where(shown.seen & (read[:, 3] > 0.5), shown.facing**SHARPNESS, 0.0)
        total += share[:, None] * read[:, :3] / read[:, 3:].clamp(min=1e-6)
        weight += share
    return total / weight.clamp(min=1e-12)[:, None], weight


def settle(maps: LearnableMaps, colors: Tensor, weight: Tensor, where: Texels) -> None:
    """Make colours (K, 3) the base colour of the maps; texels without weight take the nearest one's that has some.
    Where none has, nothing is known and the maps stay as they are."""
    colors, hidden = colors.clone(), weight <= 0
    if hidden.all():
        return
    if hidden.any():
        colors[hidden] = colors[~hidden][nearest_seen(where.position, hidden)]
    image = colors.new_zeros(where.size**2, 3).index_copy(0, where.index, colors).view(where.size, where.size, 3)
    filled = fill_uncovered(image.cpu(), material.coverage(where).cpu()).to(colors)
    channels = material.BASE_COLOR
    with torch.no_grad():
        for volume in maps.volumes[1:]:
            volume[:, channels] = 0.0
        # Row 0 of the maps is v = 0. Each level takes what the coarser ones left.
        left = filled.flip(0).permute(2, 0, 1)[None] - 0.5 - maps.volumes[0][:, channels].view(1, 3, 1, 1)
        for level in maps.pyramid:
            side = level.shape[-1]
            part = torch.nn.functional.adaptive_avg_pool2d(left, side)
            level[:, channels] = part
            left = left - torch.nn.functional.interpolate(
                part, size=left.shape[2:], mode="bilinear", align_corners=False
            )
