# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: look, light, shade, ask the model, move the maps. Knows no files and no events."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import curvature, dreamfusion, lighting, material
from .descent import MeanDescent
from .diffusion.interface import Adaptable, Companion, Denoiser, KnowsMaterials, Scene
from .distillation import Aim, Options, take_aim
from .ggx_tables import GgxTables
from .guidance import TRAINED
from .material import LearnableMaps
from .object_start import is_mixed, place_metals, uniform_start
from .reference import WEIGHT, Reference
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
    curvature: Tensor | None = None  # of Newton steps: made when first needed, alike in every run
    companion: Companion | None = None  # what the guidance trains beside the maps, where it does


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


def go_on_from(state: State, before: State) -> None:
    """Let the fresh `state` begin with what `before` has painted; what it resolves beyond, begins flat."""
    with torch.no_grad():
        for maps in (state.maps, state.average):
            for parts, painted in ((maps.volumes, before.average.volumes), (maps.pyramid, before.average.pyramid)):
                for part, old in zip(parts, painted, strict=False):
                    part.copy_(old)


def add_companion(state: State, plan: Plan, model: Denoiser) -> None:
    """Give the fresh `state` what plan's guidance trains beside the maps. Raises ModelError where it cannot be had."""
    if plan.guidance in TRAINED and isinstance(model, Adaptable):
        state.companion = model.companion(plan.seed)


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
    shading = _shading(state, plan, model, scene)
    for group in state.optimiser.param_groups:
        group["lr"] = plan.learning_rate * group["share"] * _learning_rate_share(progress, plan)
    for _ in range(plan.options.reuse):
        raw, values, rendered = _render(state, plan, scene, tables, progress, shading)
        x0 = to_nchw(scene.gbuffer.picture(rendered.detach(), background))
        if aim is None:
            aim = _aim(x0, state, plan, model, scene, progress)
        wanted = aim.gradient(x0).permute(0, 2, 3, 1).reshape(-1, 3)[scene.gbuffer.pixel]
        slope = torch.autograd.grad(rendered, values, wanted)[0]
        if pool.reference is not None:
            slope *= 1 - pool.reference.covers(scene.gbuffer)[:, None]
        _move(state, plan, scene, tables, progress, raw, values.detach(), slope, wanted)
    if pool.reference is not None:
        _follow(pool.reference, state, plan, tables, progress)
    state.step += 1
    _average(state, plan, progress)


def _follow(reference: Reference, state: State, plan: Plan, tables: GgxTables, progress: float) -> None:
    """Move the base colour towards the reference picture."""
    gbuffer = reference.scene.gbuffer
    raw, values, rendered = _render(state, plan, reference.scene, tables, progress, None)
    picture, share = (
        part.permute(0, 2, 3, 1).reshape(-1, part.shape[1])[gbuffer.pixel]
        for part in (reference.picture, reference.share)
    )
    wanted = WEIGHT * share * (rendered.detach() - picture)
    slope = torch.autograd.grad(rendered, values, wanted)[0]
    _move(state, plan, reference.scene, tables, progress, raw, values.detach(), slope, wanted, base_color_only=True)


def _scene(state: State, plan: Plan, pool: ViewPool) -> tuple[list[int], Scene]:
    published = plan.options.staging == "dreamfusion"
    close = 0 if published else plan.views // 2 if state.step % 2 else plan.views // 4
    within = pool.reference.within_deg(state.step / plan.steps) if pool.reference is not None else None
    indices = pool.draw(plan.views, close, state.generator, within)
    if published:
        where = torch.tensor(indices)
        angles = pool.cameras.azimuth_deg[where], pool.cameras.elevation_deg[where]
        lights = dreamfusion.draw_lights(*angles, state.generator)
    else:
        lights = lighting.sample(len(indices), state.generator)
    lights = lights.to(pool.triangles.positions.device)
    return indices, pool.scene(indices, lights, plan.pattern_scale, pattern_offset(plan))


def _shading(state: State, plan: Plan, model: Denoiser, scene: Scene) -> Tensor | None:
    """(B,) how each picture is shaded; None: lit. Models that look at the light know no other pictures."""
    if plan.options.staging != "dreamfusion" or getattr(model, "sees_geometry", True):
        return None
    return dreamfusion.draw_shading(scene.gbuffer.coverage.shape[0], state.generator)


def _render(
    state: State, plan: Plan, scene: Scene, tables: GgxTables, progress: float, shading: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The maps at the scene's points: raw values (N, 7), which know the maps; stored ones, which are variables of
    their own and do not; and the display values (N, 3) in -1..1, which know the stored ones."""
    gbuffer = scene.gbuffer
    raw = material.raw_values(state.maps, gbuffer.position, gbuffer.uv, gbuffer.footprint, _detail(plan, progress))
    values = material.stored_values(raw.detach()).requires_grad_(True)
    rendered = dreamfusion.shaded(gbuffer, values, scene.lights, tables, shading) * 2 - 1
    return raw, values, rendered


def _move(
    state: State, plan: Plan, scene: Scene, tables: GgxTables, progress: float,
    raw: Tensor, values: Tensor, slope: Tensor, wanted: Tensor, base_color_only: bool = False,
) -> None:  # fmt: skip
    """Move the maps down the `slope` (N, 7) of the stored values that display gradients `wanted` (N, 3) make."""
    if progress > plan.binary_from:
        strength = plan.binary_metallic * (progress - plan.binary_from) / (1 - plan.binary_from)
        slope[:, material.METALLIC] += strength * (1 - 2 * values[:, material.METALLIC])
    if progress < plan.normal_from:
        slope[:, material.NORMAL] = 0.0
    if base_color_only:
        slope[:, material.METALLIC :] = 0.0
    state.optimiser.zero_grad(set_to_none=True)
    if plan.newton:
        if state.curvature is None:
            state.curvature = curvature.table(tables, values.device)
        moves = curvature.newton_step(state.curvature, values, slope, wanted)
        if base_color_only:
            moves[:, material.METALLIC :] = 0.0
        raw.backward(material.raw_moves(raw.detach(), moves))
        state.optimiser.step(material.reach(state.maps, scene.gbuffer, _detail(plan, progress)))
    else:
        raw.backward(material.raw_slope(raw.detach(), slope) / len(raw))
        state.optimiser.step()


def _detail(plan: Plan, progress: float) -> float:
    return min(1.0, progress / plan.all_detail_at) if plan.all_detail_at else 1.0


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
        model, x0, scene, mask, progress, plan.guidance, plan.guidance_scale, options, state.generator, state.companion
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
