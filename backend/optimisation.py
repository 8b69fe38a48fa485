# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: look, light, shade, ask the model, move the maps. Knows no files and no events."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import curvature, lighting, material
from .descent import MeanDescent
from .diffusion.interface import Denoiser, KnowsMaterials, Scene
from .distillation import Aim, Options, take_aim
from .ggx_tables import GgxTables
from .held import Held
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
    newton: bool = False  # steps by what shows (curvature.py) instead of Adam's; learning_rate is then a share of them
    rate_end: float = 0.08  # share of the learning rate that is left at the end
    normal_from: float = 0.3  # share of the run before which the normal stays flat
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
    held: Held | None = None  # what must stay as it is; the same in every attempt
    curvature: Tensor | None = None  # of Newton steps: made when first needed, alike in every run


def new_state(plan: Plan, device: torch.device) -> State:
    maps = material.new_maps(plan.finest, device)
    average = LearnableMaps(
        tuple(v.detach().clone() for v in maps.volumes), tuple(p.detach().clone() for p in maps.pyramid)
    )
    # The levels add up, so each may move only a part of the way; what only the finest shows must come from it alone.
    finest = len(maps.pyramid) - 1
    groups = [
        {"params": [volume], "weight_decay": 0.0, "share": 0.15 if plan.newton else 0.3 if index else 0.5}
        for index, volume in enumerate(maps.volumes)
    ]
    groups += [
        {
            "params": [image],
            "weight_decay": plan.detail_decay,
            "share": max(0.4, 1.0 - 0.2 * (finest - level)) if plan.newton else 0.2,
        }
        for level, image in enumerate(maps.pyramid)
    ]
    optimiser: torch.optim.Optimizer
    if plan.newton:
        optimiser = MeanDescent(groups, lr=plan.learning_rate)
    else:
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
        group["lr"] = plan.learning_rate * group["share"] * _learning_rate_share(progress, plan)
    for _ in range(plan.options.reuse):
        raw, values, rendered = _render(state, plan, scene, tables, progress)
        x0 = to_nchw(scene.gbuffer.picture(rendered.detach(), background))
        if aim is None:
            aim = _aim(x0, state, plan, model, scene, progress)
        wanted = aim.gradient(x0).permute(0, 2, 3, 1).reshape(-1, 3)[scene.gbuffer.pixel]
        slope = torch.autograd.grad(rendered, values, wanted)[0]
        _move(state, plan, scene, tables, progress, raw, values.detach(), slope, wanted)
    state.step += 1
    _average(state, plan, progress)


def _scene(state: State, plan: Plan, pool: ViewPool) -> tuple[list[int], Scene]:
    close = plan.views // 2 if state.step % 2 else plan.views // 4
    indices = pool.draw(plan.views, close, state.generator)
    lights = lighting.sample(len(indices), state.generator).to(pool.triangles.positions.device)
    return indices, pool.scene(indices, lights, plan.pattern_scale, pattern_offset(plan))


def _render(
    state: State, plan: Plan, scene: Scene, tables: GgxTables, progress: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The maps at the scene's points: raw values (N, 7), which know the maps; stored ones, which are variables of
    their own and do not; and the display values (N, 3) in -1..1, which know the stored ones."""
    gbuffer = scene.gbuffer
    raw = material.raw_values(state.maps, gbuffer.position, gbuffer.uv, gbuffer.footprint, _detail(plan, progress))
    values = material.stored_values(raw.detach())
    if state.held is not None:
        values = state.held.mix(values, gbuffer)
    values = values.requires_grad_(True)
    rendered = linear_to_srgb(shade(gbuffer, material.surface_maps(values), scene.lights, tables)) * 2 - 1
    return raw, values, rendered


def _move(
    state: State, plan: Plan, scene: Scene, tables: GgxTables, progress: float,
    raw: Tensor, values: Tensor, slope: Tensor, wanted: Tensor,
) -> None:  # fmt: skip
    """Move the maps down the `slope` (N, 7) of the stored values that display gradients `wanted` (N, 3) make."""
    if progress > plan.binary_from:
        strength = plan.binary_metallic * (progress - plan.binary_from) / (1 - plan.binary_from)
        slope[:, material.METALLIC] += strength * (1 - 2 * values[:, material.METALLIC])
    if progress < plan.normal_from:
        slope[:, material.NORMAL] = 0.0
    if state.held is not None:
        slope = slope * state.held.share(scene.gbuffer)
    state.optimiser.zero_grad(set_to_none=True)
    if plan.newton:
        if state.curvature is None:
            state.curvature = curvature.table(tables, values.device)
        moves = curvature.newton_step(state.curvature, values, slope, wanted)
        raw.backward(material.raw_moves(raw.detach(), moves))
        state.optimiser.step(material.reach(state.maps, scene.gbuffer, _detail(plan, progress)))
    else:
        raw.backward(material.raw_slope(raw.detach(), slope) / len(raw))
        state.optimiser.step()


def _detail(plan: Plan, progress: float) -> float:
    return 1.0 if progress >= plan.all_detail_at else progress / plan.all_detail_at


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
    return take_aim(
        model, x0, scene, mask, progress, plan.guidance, plan.guidance_scale, options, state.generator
    )


def to_nchw(picture: Tensor) -> Tensor:
    """Renderer pictures (B, H, W, C) -> what networks take (B, C, H, W)."""
    return picture.permute(0, 3, 1, 2).contiguous()


def _learning_rate_share(progress: float, plan: Plan) -> float:
    warm = min(1.0, progress / 0.02 + 0.1)
    return warm * (plan.rate_end + (1 - plan.rate_end) * 0.5 * (1 + math.cos(math.pi * progress)))


def _average(state: State, plan: Plan, progress: float) -> None:
    decay = plan.average_decay if progress > plan.average_from else 0.0
    with torch.no_grad():
        torch._foreach_lerp_(state.average.parameters(), [p.detach() for p in state.maps.parameters()], 1 - decay)
