# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: look, light, shade, ask the model, move the maps. Knows no files and no events."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import lighting, material
from .diffusion.interface import Denoiser, KnowsMaterials, Scene
from .distillation import Aim, Options, take_aim
from .ggx_tables import GgxTables
from .material import LearnableMaps
from .object_start import is_mixed, place_metals, uniform_start
from .shading import linear_to_srgb, shade
from .views import ViewPool


@dataclass(frozen=True)
class Plan:
    """How a run is made, from the request's quality dial and what the model was made for."""

    steps: int
    views: int
    render_size: int
    finest: int  # texels of the finest learnable level
    guidance: str
    guidance_scale: float
    pattern_scale: float
    seed: int
    rescale: float = 0.7
    learning_rate: float = 0.03
    all_detail_at: float = 0.3  # share of the run after which every level is open
    average_from: float = 0.4
    average_decay: float = 0.98
    detail_decay: float = 0.05  # pull of the UV levels to 0: noise dies, what is asked for again stays
    binary_metallic: float = 0.15
    binary_from: float = 0.6
    options: Options = Options()


@dataclass
class State:
    """All that changes during a run; with the plan and the mesh it determines the rest bit for bit."""

    maps: LearnableMaps
    average: LearnableMaps
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0


def new_state(plan: Plan, device: torch.device) -> State:
    maps = material.new_maps(plan.finest, device)
    average = LearnableMaps(
        tuple(v.detach().clone() for v in maps.volumes), tuple(p.detach().clone() for p in maps.pyramid)
    )
    # The levels add up, so each may move only a part of the way.
    groups = [
        {"params": [volume], "weight_decay": 0.0, "share": 0.5 if index == 0 else 0.3}
        for index, volume in enumerate(maps.volumes)
    ]
    groups += [{"params": [image], "weight_decay": plan.detail_decay, "share": 0.2} for image in maps.pyramid]
    optimiser = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.99), eps=1e-12, fused=True)
    return State(maps, average, optimiser, torch.Generator().manual_seed(plan.seed))


def pattern_offset(plan: Plan) -> Tensor:
    """(3,) where the patterns begin: the part of a seed that all views share."""
    return 2 * torch.rand(3, generator=torch.Generator().manual_seed(plan.seed + 1))


def start(state: State, plan: Plan, model: Denoiser, pool: ViewPool, tables: GgxTables) -> None:
    """Put the fresh `state` at the material the model asks for (object_start.py)."""
    pattern = plan.pattern_scale, pattern_offset(plan)
    raw = uniform_start(model, pool, tables, *pattern, state.generator)
    with torch.no_grad():
        state.maps.volumes[0].copy_(raw.view(1, -1, 1, 1, 1))
    if is_mixed(raw) and isinstance(model, KnowsMaterials):
        place_metals(state.maps, model, pool, *pattern, state.generator)
    with torch.no_grad():
        for average, volume in zip(state.average.volumes, state.maps.volumes, strict=True):
            average.copy_(volume)


def step(state: State, plan: Plan, model: Denoiser, pool: ViewPool, tables: GgxTables) -> None:
    """Advance `state` by one step."""
    progress = state.step / plan.steps
    indices, scene = _scene(state, plan, pool)
    background, aim = _background(state, model, scene), None
    for group in state.optimiser.param_groups:
        group["lr"] = plan.learning_rate * group["share"] * _learning_rate_share(progress)
    for _ in range(plan.options.reuse):
        rendered, stored = _render(state, plan, scene, tables, progress)
        x0 = to_nchw(scene.gbuffer.picture(rendered.detach(), background))
        if aim is None:
            aim = _aim(x0, state, plan, model, scene, progress)
        wanted = aim.gradient(x0).permute(0, 2, 3, 1).reshape(-1, 3)[scene.gbuffer.pixel]
        loss = (wanted * rendered).sum() / scene.gbuffer.pixel.numel()
        if progress > plan.binary_from:
            metallic = stored[:, material.METALLIC]
            strength = plan.binary_metallic * (progress - plan.binary_from) / (1 - plan.binary_from)
            loss = loss + strength * (metallic * (1 - metallic)).mean()
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        state.optimiser.step()
    state.step += 1
    _average(state, plan, progress)


def _scene(state: State, plan: Plan, pool: ViewPool) -> tuple[list[int], Scene]:
    close = plan.views // 2 if state.step % 2 else plan.views // 4
    indices = pool.draw(plan.views, close, state.generator)
    lights = lighting.sample(len(indices), state.generator).to(pool.triangles.positions.device)
    return indices, pool.scene(indices, lights, plan.pattern_scale, pattern_offset(plan))


def _with_speed(raw: Tensor, progress: float) -> Tensor:
    """Scale the gradients per channel (Adam sees one tensor); the normal starts late."""
    speed = torch.tensor(material.SPEED, device=raw.device)
    if progress < 0.3:
        speed = speed.clone()
        speed[material.NORMAL] = 0.0
    return raw.detach() + speed * (raw - raw.detach())


def _render(state: State, plan: Plan, scene: Scene, tables: GgxTables, progress: float) -> tuple[Tensor, Tensor]:
    """Display values (N, 3) in -1..1 of the maps at the scene's points, and the stored values (N, 7)."""
    gbuffer = scene.gbuffer
    detail = min(1.0, progress / plan.all_detail_at)
    raw = material.raw_values(state.maps, gbuffer.position, gbuffer.uv, gbuffer.footprint, detail)
    stored = material.stored_values(_with_speed(raw, progress))
    return linear_to_srgb(shade(gbuffer, material.surface_maps(stored), scene.lights, tables)) * 2 - 1, stored


def _background(state: State, model: Denoiser, scene: Scene) -> Tensor:
    """(B, S, S, 3) in -1..1 behind the object."""
    count, device = scene.gbuffer.coverage.shape[0], scene.gbuffer.position.device
    behind = model.background
    if behind is None:
        behind = torch.rand(count, 1, 1, 3, generator=state.generator).to(device)
    return (torch.zeros(count, scene.size, scene.size, 3, device=device) + behind) * 2 - 1


def _aim(x0: Tensor, state: State, plan: Plan, model: Denoiser, scene: Scene, progress: float) -> Aim:
    """Where the model wants the pictures x0 (B, 3, H, W)."""
    options = plan.options if plan.options.rescale is not None else replace(plan.options, rescale=plan.rescale)
    mask = scene.gbuffer.coverage[:, None]
    return take_aim(model, x0, scene, mask, progress, plan.guidance, plan.guidance_scale, options, state.generator)


def to_nchw(picture: Tensor) -> Tensor:
    """Renderer pictures (B, H, W, C) -> what networks take (B, C, H, W)."""
    return picture.permute(0, 3, 1, 2).contiguous()


def _learning_rate_share(progress: float) -> float:
    warm = min(1.0, progress / 0.02 + 0.1)
    return warm * (0.08 + 0.92 * 0.5 * (1 + math.cos(math.pi * progress)))


def _average(state: State, plan: Plan, progress: float) -> None:
    decay = plan.average_decay if progress > plan.average_from else 0.0
    with torch.no_grad():
        torch._foreach_lerp_(state.average.parameters(), [p.detach() for p in state.maps.parameters()], 1 - decay)
