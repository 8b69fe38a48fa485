# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: look, light, shade, ask the model, move the maps. Knows no files and no events."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import curvature, dreamfusion, material
from .deep_image_prior import DeepImagePrior
from .descent import Sums, descend, no_sums
from .diffusion.interface import Adaptable, Companion, Denoiser, KnowsMaterials, ModelError, Scene
from .distillation import Aim, Options, take_aim
from .ggx_tables import GgxTables
from .guidance import TRAINED
from .held import Held
from .material import LearnableMaps
from .object_start import is_mixed, place_metals, uniform_start
from .rasterize import GBuffer
from .reference import Reference
from .views import ViewPool

# The levels of the maps add up, so each moves a part of the way: volumes, and UV levels from the finest down. What
# only the finest shows must come from it alone.
VOLUME_SHARE = 0.15
LEVEL_SHARES = (1.0, 0.8, 0.6, 0.4)


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
    rate: float = 1.0  # share of what pictures ask for that one step gives
    damping: float = 0.1  # of the steps: a model's small whims would drive values that hardly show
    rate_end: float = 0.3  # share of the rate that is left at the end
    normal_from: float = 0.3  # share of the run before which the normal stays flat
    all_detail_at: float = 0.3  # share of the run after which every level is open
    average_from: float = 0.4
    average_decay: float = 0.98
    detail_decay: float = 0.001  # of the UV levels a step: noise dies, what is asked for again stays
    binary_metallic: float = 0.15  # of a step, towards 0 or 1
    binary_from: float = 0.6
    options: Options = Options()


@dataclass
class State:
    """All that changes during a run; with the plan and the mesh it determines the rest bit for bit."""

    maps: LearnableMaps
    average: LearnableMaps
    sums: Sums
    told: Tensor  # what pictures have told of each map value (curvature.py)
    generator: torch.Generator
    step: int = 0
    held: Held | None = None  # what must stay as it is; the same in every attempt
    companion: Companion | None = None  # what the guidance trains beside the maps, where it does
    image_prior: DeepImagePrior | None = None  # what paints the UV levels, where they are not texels of their own


def new_state(plan: Plan, device: torch.device) -> State:
    maps = material.new_maps(plan.finest, device)
    average = LearnableMaps(
        tuple(v.detach().clone() for v in maps.volumes), tuple(p.detach().clone() for p in maps.pyramid)
    )
    told = curvature.nothing_told(plan.finest, device)
    state = State(maps, average, no_sums(maps.parameters()), told, torch.Generator().manual_seed(plan.seed))
    if plan.options.deep_image_prior:
        state.image_prior = DeepImagePrior(maps.pyramid, plan.seed)
    return state


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


def pattern_offset(seed: int) -> Tensor:
    """(3,) where the patterns begin: the part of a seed that all views share."""
    return 2 * torch.rand(3, generator=torch.Generator().manual_seed(seed + 1))


def start(state: State, plan: Plan, model: Denoiser, pool: ViewPool, tables: GgxTables) -> Iterator[None]:
    """Put the fresh `state` at the material the model asks for (object_start.py). Yields where one may stop waiting."""
    pattern = plan.pattern_scale, pattern_offset(plan.seed)
    raw = yield from uniform_start(model, pool, tables, *pattern, state.generator)
    with torch.no_grad():
        state.maps.volumes[0].copy_(raw.view(1, -1, 1, 1, 1))
    if is_mixed(raw) and isinstance(model, KnowsMaterials):
        yield from place_metals(state.maps, model, pool, *pattern, state.generator)
    with torch.no_grad():
        for average, volume in zip(state.average.volumes, state.maps.volumes, strict=True):
            average.copy_(volume)


def step(state: State, plan: Plan, model: Denoiser, pool: ViewPool, tables: GgxTables) -> None:
    """Advance `state` by one step. Raises ModelError when the model answers with values that are not numbers."""
    progress = state.step / plan.steps
    indices, scene = _scene(state, plan, pool)
    background, aim = _background(state, model, scene), None
    shading = _shading(state, plan, model, scene)
    for _ in range(plan.options.reuse):
        raw, values, rendered = _render(state, plan, scene, tables, progress, shading)
        x0 = to_nchw(scene.gbuffer.picture(rendered.detach(), background))
        if not bool(torch.isfinite(x0).all()):
            raise FloatingPointError(f"The render of step {state.step} holds values that are not numbers.")
        if aim is None:
            aim = _aim(x0, state, plan, model, scene, progress)
            if pool.reference is not None:
                aim = pool.reference.led(aim, scene.gbuffer.coverage[:, None])
        wanted = aim.gradient(x0).permute(0, 2, 3, 1).reshape(-1, 3)[scene.gbuffer.pixel]
        if not bool(torch.isfinite(wanted).all()):
            raise ModelError(
                f"The model {model.name} answered step {state.step} with values that are not numbers. Half precision "
                "can be too little for it; or the guidance scale is too high."
            )
        if curvature.is_due(state.step):
            signs = torch.randint(0, 2, rendered.shape, generator=state.generator).to(rendered) * 2 - 1
            signed = torch.autograd.grad(rendered, values, signs, retain_graph=True)[0]
            curvature.observe(state.told, scene.gbuffer.uv, signed)
        slope = torch.autograd.grad(rendered, values, wanted)[0]
        if pool.reference is not None:
            slope *= 1 - pool.reference.covers(scene.gbuffer)[:, None]
        moves = _newton(state, plan, scene, progress, values.detach(), slope, wanted)
        parts = [(scene.gbuffer, raw, moves)]
        if pool.reference is not None:
            parts.append(_to_the_reference(pool.reference, state, plan, tables, progress))
        _move(state, plan, progress, parts)
    state.step += 1
    _average(state, plan, progress)


def _to_the_reference(
    reference: Reference, state: State, plan: Plan, tables: GgxTables, progress: float
) -> tuple[GBuffer, Tensor, Tensor]:
    """The reference view's points, their raw values, and the moves of their base colour towards the picture."""
    gbuffer = reference.scene.gbuffer
    raw, values, rendered = _render(state, plan, reference.scene, tables, progress, None)
    picture, share = (
        part.permute(0, 2, 3, 1).reshape(-1, part.shape[1])[gbuffer.pixel]
        for part in (reference.picture, reference.share)
    )
    wanted = share * (rendered.detach() - picture)
    slope = torch.autograd.grad(rendered, values, wanted)[0]
    moves = _newton(state, plan, reference.scene, progress, values.detach(), slope, wanted, base_color_only=True)
    return gbuffer, raw, moves


def _scene(state: State, plan: Plan, pool: ViewPool) -> tuple[list[int], Scene]:
    published = plan.options.staging == "dreamfusion"
    close = 0 if published else plan.views // 2 if state.step % 2 else plan.views // 4
    within = pool.reference.within_deg(state.step / plan.steps) if pool.reference is not None else None
    indices = pool.draw(plan.views, close, state.generator, within)
    if published:
        where = torch.tensor(indices)
        angles = pool.cameras.azimuth_deg[where], pool.cameras.elevation_deg[where]
        lights = dreamfusion.draw_lights(*angles, state.generator).to(pool.triangles.positions.device)
    else:
        lights = pool.lights(len(indices), state.generator)
    return indices, pool.scene(indices, lights, plan.pattern_scale, pattern_offset(plan.seed))


def _shading(state: State, plan: Plan, model: Denoiser, scene: Scene) -> Tensor | None:
    """(B,) how each picture is shaded; None: lit. Models that look at the light know no other pictures."""
    if plan.options.staging != "dreamfusion" or getattr(model, "sees_geometry", True):
        return None
    return dreamfusion.draw_shading(scene.gbuffer.coverage.shape[0], state.generator)


def _render(
    state: State, plan: Plan, scene: Scene, tables: GgxTables, progress: float, shading: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The maps at the scene's points: raw values (N, 7); stored ones, which are variables of their own; and the
    display values (N, 3) in -1..1, which know the stored ones."""
    gbuffer = scene.gbuffer
    with torch.no_grad():
        raw = material.raw_values(state.maps, gbuffer.position, gbuffer.uv, gbuffer.footprint, _detail(plan, progress))
    values = material.stored_values(raw)
    if state.held is not None:
        values = state.held.mix(values, gbuffer)
    values = values.requires_grad_(True)
    rendered = dreamfusion.shaded(gbuffer, values, scene.lights, tables, shading, scene.openness) * 2 - 1
    return raw, values, rendered


def _newton(
    state: State, plan: Plan, scene: Scene, progress: float,
    values: Tensor, slope: Tensor, wanted: Tensor, base_color_only: bool = False,
) -> Tensor:  # fmt: skip
    """(N, 7) to subtract from the stored `values` of the points, whose display gradients are `wanted` (N, 3) and those
    of the values `slope` (N, 7)."""
    gbuffer = scene.gbuffer
    free = material.METALLIC if base_color_only else material.CHANNELS
    moves = torch.zeros_like(slope)
    moves[:, :free] = curvature.newton_step(state.told, gbuffer.uv, slope[:, :free], wanted, plan.damping)
    if progress > plan.binary_from and not base_color_only:
        # On top of what pictures ask for: as a part of their slope it would drag the other values along.
        strength = plan.binary_metallic * (progress - plan.binary_from) / (1 - plan.binary_from)
        moves[:, material.METALLIC] += strength * (1 - 2 * values[:, material.METALLIC])
    if progress < plan.normal_from:
        moves[:, material.NORMAL] = 0.0
    return moves if state.held is None else moves * state.held.share(gbuffer)


def _move(state: State, plan: Plan, progress: float, parts: list[tuple[GBuffer, Tensor, Tensor]]) -> None:
    """Move the maps, once, by what all points ask for: of each part its points, raw values and moves (N, 7)."""
    detail, rate = _detail(plan, progress), plan.rate * _rate_share(progress, plan)
    if state.image_prior is not None:
        for gbuffer, raw, moves in parts:
            _teach(state, gbuffer, detail, material.raw_moves(raw, moves), rate)
        return
    shares, summed = _shares(state.maps), None
    for gbuffer, raw, moves in parts:
        gain = material.gain(state.maps, gbuffer.footprint, shares, detail)
        more = material.scatter(state.maps, gbuffer, material.raw_moves(raw, moves) / gain[:, None], detail)
        summed = more if summed is None else [_added(a, b) for a, b in zip(summed, more, strict=True)]
    decay = [0.0] * len(state.maps.volumes) + [plan.detail_decay * rate] * len(state.maps.pyramid)
    descend(state.maps.parameters(), state.sums, summed, [rate * share for share in shares], decay)


def _added(a: tuple[Tensor, Tensor] | None, b: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if a is None else (a[0] + b[0], a[1] + b[1])  # a level is open to all points, or to none


def _teach(state: State, gbuffer: GBuffer, detail: float, wishes: Tensor, rate: float) -> None:
    """As `_move` ends where a network paints the maps: it learns what the points wish for, but for the material that
    all share, which moves by itself."""
    maps, whole = state.maps, Sums(state.sums.moves[:1], state.sums.reach[:1])
    summed = material.scatter(maps, gbuffer, wishes, detail)
    descend(maps.volumes[:1], whole, summed[:1], [rate * VOLUME_SHARE], [0.0])
    levels = [None if part is None else part[0] for part in summed[len(maps.volumes) :]]
    if any(part is not None for part in levels):
        state.image_prior.move(maps.pyramid, levels, len(wishes), rate)


def _shares(maps: LearnableMaps) -> list[float]:
    """The part of a wish that each of the maps' parameters gives."""
    finest = len(maps.pyramid) - 1
    levels = [LEVEL_SHARES[min(finest - level, len(LEVEL_SHARES) - 1)] for level in range(len(maps.pyramid))]
    return [VOLUME_SHARE] * len(maps.volumes) + levels


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
        model, x0, scene, mask, progress, plan.guidance, plan.guidance_scale, options, state.generator, state.companion
    )


def to_nchw(picture: Tensor) -> Tensor:
    """Renderer pictures (B, H, W, C) -> what networks take (B, C, H, W)."""
    return picture.permute(0, 3, 1, 2).contiguous()


def _rate_share(progress: float, plan: Plan) -> float:
    warm = min(1.0, progress / 0.02 + 0.1)
    return warm * (plan.rate_end + (1 - plan.rate_end) * 0.5 * (1 + math.cos(math.pi * progress)))


def _average(state: State, plan: Plan, progress: float) -> None:
    decay = plan.average_decay if progress > plan.average_from else 0.0
    with torch.no_grad():
        torch._foreach_lerp_(state.average.parameters(), [p.detach() for p in state.maps.parameters()], 1 - decay)
