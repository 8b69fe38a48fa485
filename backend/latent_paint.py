# SPDX-License-Identifier: Apache-2.0
"""Latent-Paint (Metzer et al. 2023): a texture of latents, painted in small views without light and decoded once.

What comes of it is a base colour with the model's own light in it: a look in a minute, or what a distillation begins
with.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import lighting
from .diffusion.interface import Denoiser, Latent, RoughlyShown
from .distillation import WEIGHTINGS, Options, guidance_scale, timesteps
from .guidance import GUIDANCE, GuidanceError, Look
from .material import Texels
from .rasterize import Triangles
from .views import new_pool

SIDE = 64  # latents
LEARNING_RATE = 0.03


def paint(
    model: Denoiser, triangles: Triangles, face_mask: Tensor, method: str, scale: float, views: int, steps: int,
    options: Options, generator: torch.Generator, asked_size: int,
) -> Iterator[Tensor]:  # fmt: skip
    """The latent texture (1, C, SIDE, SIDE) after each of `steps` steps; row 0 is v = 0. `asked_size`: pixels
    of the pictures whose latents the views are. Raises GuidanceError."""
    if not isinstance(model, Latent):
        raise GuidanceError(f"“{model.name}” paints pixels and has no latents. Begin with uniform or four_views.")
    if getattr(model, "control", None) is not None:
        raise GuidanceError("Latent-Paint takes no control. Leave the control out, or begin with four_views instead.")
    device = triangles.positions.device
    # One flat picture says how many latents it has, and what an empty one is.
    empty = model.encode(torch.zeros(1, 3, asked_size, asked_size, device=device))
    size = empty.shape[-1]
    pool = new_pool(triangles, face_mask, size, generator)
    # Nearly grey: what no view ever sees is then no noise in the end.
    texture = 0.1 * torch.randn(1, empty.shape[1], SIDE, SIDE, generator=generator).to(device)
    texture += empty.mean((2, 3), keepdim=True)
    optimiser = torch.optim.Adam([texture], lr=LEARNING_RATE)
    for step in range(steps):
        progress = step / steps
        indices = pool.draw(views, 0, generator)
        scene = pool.scene(indices, lighting.uniform(len(indices)).to(device), 1.0, torch.zeros(3))
        texture.requires_grad_(True)
        shown = at(texture, scene.gbuffer.uv)
        behind = empty.permute(0, 2, 3, 1).expand(len(indices), -1, -1, -1)
        x0 = scene.gbuffer.picture(shown.detach(), behind).permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            t = timesteps(len(x0), progress, len(model.alphas_cumprod), generator, options).to(device)
            noise = torch.randn(x0.shape, generator=generator).to(device)
            w = guidance_scale(scale, options, progress)
            look = Look(model, scene, x0, noise, t, w, progress, options, generator)
            target = GUIDANCE[method](look)
            weight = target.factor * WEIGHTINGS[options.weighting or target.weighting](look.alpha_bar(t))
            wanted = (weight.view(-1, 1, 1, 1) * (x0 - target.x0)).permute(0, 2, 3, 1)
        texture.grad = torch.autograd.grad(shown, texture, wanted.reshape(-1, x0.shape[1])[scene.gbuffer.pixel])[0]
        optimiser.step()
        texture.requires_grad_(False)
        yield texture


def at(image: Tensor, uv: Tensor) -> Tensor:
    """(N, C) of an image (1, C, H, W) with row 0 at v = 0, at uv (N, 2)."""
    grid = (uv * 2 - 1).view(1, 1, -1, 2)
    return torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=False)[0, :, 0].T


def preview(model: Latent, texture: Tensor) -> Tensor | None:
    """(1, 3, SIDE, SIDE) display values in 0..1, roughly; None where nobody knows how the model's latents look."""
    colors = model.latent_colors if isinstance(model, RoughlyShown) else None
    if colors is None:
        return None
    *channels, empty = texture.new_tensor(colors)
    shown = torch.einsum("bchw,cr->brhw", texture, torch.stack(channels)) + empty.view(3, 1, 1)
    return (shown * 0.5 + 0.5).clamp(0, 1)


def decoded(model: Latent, texture: Tensor) -> Tensor:
    """(1, 3, H, W) display values in 0..1 of the texture as the autoencoder means it."""
    with torch.no_grad():
        return (model.decode(texture) * 0.5 + 0.5).clamp(0, 1)


def colors(image: Tensor, where: Texels) -> Tensor:
    """(K, 3) of an image (1, 3, H, W) with row 0 at v = 0, at the texels."""
    row, column = where.index // where.size, where.index % where.size
    return at(image, torch.stack(((column + 0.5) / where.size, 1 - (row + 0.5) / where.size), dim=1).to(image))
