# SPDX-License-Identifier: Apache-2.0
"""Where a run starts: one uniform material for the whole object, fitted to what the model would paint.

Metallic is bistable under score distillation: the wrong side of a metal is a local minimum that texels
rarely leave. So it is decided first, at object level, where the object is of one kind: the model paints a few
views from noise in a few deterministic steps (DDIM), under known lights; a uniform dielectric, a uniform metal
and a free mixture are fitted to them, and compared. A model that thinks in materials is asked instead.

What takes long is a generator, which yields after each call of the model and returns its result.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from . import lighting, material
from .diffusion.interface import Denoiser, KnowsMaterials, Latent, Scene, decode, encode
from .ggx_tables import GgxTables
from .guidance import classifier_free
from .material import LearnableMaps
from .rasterize import GBuffer, select
from .shading import linear_to_srgb, shade
from .views import ViewPool

VIEWS, CLOSE = 8, 2
DENOISING_STEPS = 8
FIT_STEPS = 70
FIT_POINTS = 4000
DIELECTRIC, METAL, UNDECIDED = -0.47, 0.47, 0.0  # raw metallic: 0.03, 0.97 and 0.5
# Error of the metal by that of the dielectric: below the one it is metal, above the other it is not. In between the
# object is a mixture or dark and rough, and its texels decide, from a metallic value near the middle.
SURELY_METAL, SURELY_NOT = 0.8, 1.15
MIXED = (0.1, 0.9)  # mean metallic values that no single material has
PLACING_STEPS = 40
SMOOTHEST = -0.43  # raw roughness: 0.07; a mirror shows less and less of how smooth it is
LEANING = 0.23  # raw metallic, how far the free fit may lean: 0.27 to 0.73
GUIDANCE_SCALE = 1.5  # at most: enough to tell materials apart, too little to saturate


def uniform_start(
    model: Denoiser, pool: ViewPool, tables: GgxTables, pattern_scale: float, offset: Tensor, generator: torch.Generator
) -> Generator[None, None, Tensor]:
    """Raw channels (7,) of the uniform material that fits the model's pictures best."""
    indices = pool.draw(VIEWS, CLOSE, generator)
    device = pool.triangles.positions.device
    lights = pool.lights(len(indices), generator)
    scene = pool.scene(indices, lights, pattern_scale, offset)
    if isinstance(model, KnowsMaterials):
        return _raw_of(model.believed_material(scene).mean(0))
    target = yield from paint(model, scene, generator)
    drawn = torch.randperm(scene.gbuffer.pixel.numel(), generator=generator)[:FIT_POINTS]
    keep = torch.zeros(scene.gbuffer.pixel.numel(), dtype=torch.bool, device=device)
    keep[drawn.to(device)] = True
    wanted = target.permute(0, 2, 3, 1).reshape(-1, 3)[scene.gbuffer.pixel][keep]
    points = select(scene.gbuffer, keep)
    dielectric = _fit(points, lights, wanted, tables, DIELECTRIC, free_metallic=False)
    metal = _fit(points, lights, wanted, tables, METAL, free_metallic=False)
    mixture = _fit(points, lights, wanted, tables, UNDECIDED, free_metallic=True)
    ratio = metal[0] / max(dielectric[0], 1e-9)
    if ratio < SURELY_METAL:
        return metal[1]
    if ratio > SURELY_NOT:
        return dielectric[1]
    undecided = mixture[1].clone()
    undecided[material.METALLIC].clamp_(-LEANING, LEANING)
    return undecided


def place_metals(
    maps: LearnableMaps, model: KnowsMaterials, pool: ViewPool, pattern_scale: float, offset: Tensor,
    generator: torch.Generator,
) -> Generator[None, None, None]:  # fmt: skip
    """In a mixture begin with metal where the model means metal: light alone can leave rough rust on either side.

    Moves the metallic channel of the volumes, to which UV seams mean nothing, and nothing else.
    """
    volumes = list(maps.volumes[1:])
    optimiser = torch.optim.Adam(volumes, lr=0.15)
    for _ in range(PLACING_STEPS):
        indices = pool.draw(VIEWS, CLOSE, generator)
        scene = pool.scene(indices, lighting.uniform(len(indices)), pattern_scale, offset)
        points = scene.gbuffer
        believed = model.believed_material(scene)[:, material.METALLIC]
        raw = material.raw_values(maps, points.position, points.uv, points.footprint)[:, material.METALLIC]
        gradients = torch.autograd.grad(((raw + 0.5 - believed) ** 2).mean(), volumes)
        for volume, gradient in zip(volumes, gradients, strict=True):
            volume.grad = gradient
        optimiser.step()
        yield
    for volume in volumes:
        volume.grad = None


def _raw_of(values: Tensor) -> Tensor:
    """Raw channels (7,) of base colour, metallic and roughness (5,)."""
    raw = torch.zeros(material.CHANNELS, device=values.device)
    raw[: len(values)] = values - 0.5
    return raw


def is_mixed(raw: Tensor) -> bool:
    """Whether a start (7,) is neither metal nor dielectric."""
    return MIXED[0] < float(material.stored_values(raw)[material.METALLIC]) < MIXED[1]


def paint(model: Denoiser, scene: Scene, generator: torch.Generator) -> Generator[None, None, Tensor]:
    """Pictures (B, 3, H, W) in -1..1 of the scene, sampled by deterministic DDIM (Song et al. 2021)."""
    size, count = scene.size, scene.gbuffer.coverage.shape[0]
    device = scene.gbuffer.position.device
    alphas_cumprod = model.alphas_cumprod.to(device)
    total = len(alphas_cumprod)
    times = torch.linspace(0.98 * total, 0.02 * total, DENOISING_STEPS).long()
    # Noise lives where the model has it: in the picture, or in latents of it.
    blank = encode(model, torch.zeros(count, 3, size, size, device=device))
    noisy = torch.randn(blank.shape, generator=generator).to(device)
    scale = min(model.guidance_scale, GUIDANCE_SCALE)
    for index, time in enumerate(times):
        prediction = model.predict(noisy, time.expand(count).to(device), scene, guided=scale != 1)
        x0_hat = classifier_free(prediction, scale)
        if not isinstance(model, Latent):
            x0_hat = x0_hat.clamp(-1, 1)
        alpha_bar = alphas_cumprod[time]
        noise = (noisy - alpha_bar.sqrt() * x0_hat) / (1 - alpha_bar).sqrt()
        after = alphas_cumprod[times[index + 1]] if index + 1 < DENOISING_STEPS else torch.ones((), device=device)
        noisy = after.sqrt() * x0_hat + (1 - after).sqrt() * noise
        yield
    return decode(model, noisy).clamp(-1, 1)


def _fit(
    points: GBuffer, lights: lighting.Lights, wanted: Tensor, tables: GgxTables, metallic: float, free_metallic: bool
) -> tuple[float, Tensor]:
    """Mean squared error and raw channels (7,) of a uniform material fitted to display values (N, 3) -1..1.

    Starts at raw `metallic` and stays there unless `free_metallic`.
    """
    raw = torch.zeros(material.CHANNELS, device=wanted.device)
    raw[material.METALLIC] = metallic
    raw.requires_grad_(True)
    optimiser = torch.optim.Adam([raw], lr=0.06)
    moves = torch.ones_like(raw)
    moves[material.NORMAL] = 0.0
    moves[material.METALLIC] = float(free_metallic)
    begin = raw.detach().clone()
    for _ in range(FIT_STEPS):
        stored = material.stored_values((begin + moves * (raw - begin)).expand(len(wanted), -1))
        rendered = linear_to_srgb(shade(points, material.surface_maps(stored), lights, tables)) * 2 - 1
        error = ((rendered - wanted) ** 2).mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        with torch.no_grad():
            raw[material.ROUGHNESS].clamp_(min=SMOOTHEST)
    return float(error.detach()), (begin + moves * (raw - begin)).detach()
