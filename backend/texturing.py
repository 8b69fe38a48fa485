# SPDX-License-Identifier: Apache-2.0
"""The one file that knows the order of the stages: a request becomes maps, told as a stream of events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from addon import protocol
from addon.protocol import Event, JobFolder, TextureRequest

from . import (
    checkpoint,
    ggx_tables,
    held,
    material,
    models,
    occlusion,
    optimisation,
    picture,
    planning,
    reference,
    surroundings,
    views,
)
from .diffusion.interface import Denoiser, Resting
from .diffusion.likeness import Clip
from .distillation import negative_prompt
from .mesh import load_job_mesh
from .models import ModelShelf, pick_device, second_stage, set_control, set_memory
from .optimisation import Plan
from .rasterize import Triangles
from .run import PREVIEW_SIZE, Run, finish, patina_version, preview, progress, write_partial
from .starts import begin

PREVIEW_SECONDS = 2.5  # the panel is promised one at least every 5
CHECKPOINT_SECONDS = 20.0

StopAsked = Callable[[], str | None]


def run(request: TextureRequest, job: JobFolder, shelf: ModelShelf, stop_asked: StopAsked) -> Iterator[Event]:
    """Texture the job's mesh. Yields Started first and exactly one terminal event last.

    Resumes from job.checkpoint where one fits. `stop_asked` is polled every step and answers None,
    "cancel", "pause" or "host gone". Raises MeshError, PromptError, ModelError, ProtocolError, OSError.
    """
    began = time.monotonic()
    planning.check(request)
    device = pick_device(request.device)
    model = shelf.get(request.model, device)
    set_control(model, request.control, request.control_kind, request.control_strength)
    second = second_stage(request.second_stage, device) if request.second_stage else None
    stages = (model,) if second is None else (model, second)
    set_memory(stages, planning.memory_of(request))
    warnings = []
    for each in stages:
        warnings += each.set_prompt(request.prompt, negative_prompt(request.guidance, request.negative_prompt, each))
    likeness = planning.likeness_of(request)
    clip = models.clip(likeness.clip_model, device)
    if request.reference and clip is None:
        warnings.append(reference.NO_CLIP)
    loaded = time.monotonic()
    mesh = load_job_mesh(job.mesh)
    plan = planning.make_plan(request, model)
    warnings += planning.warnings_of(request, plan, model, second)
    state = optimisation.new_state(plan, device)
    optimisation.add_companion(state, plan, model)
    start_maps = held.read_start(job) if request.start_maps else None
    if start_maps is not None:
        state.held = held.hold(request, job, mesh, start_maps, plan.finest, device)
    triangles, mask = Triangles.of(mesh, device), torch.from_numpy(mesh.face_mask)
    pool = _new_pool(request, job, plan, triangles, mask, model, clip)
    if request.panoramas:
        pool.environments = surroundings.read(job.path / request.panoramas, plan.options.staging)
    still, small = picture.still(triangles), material.texels(mesh, PREVIEW_SIZE, device)
    now = Run(request, job, plan, state, pool, mesh, model, warnings, still, small, model.name)
    now.seconds = {"model": loaded - began, "mesh": time.monotonic() - loaded}
    refined = None if second is None else _second_run(now, second)
    if refined is not None and checkpoint.read_into(job.checkpoint, refined.state, refined.plan):
        now, resumed = refined, True
    else:
        resumed = checkpoint.read_into(job.checkpoint, state, plan)
    yield protocol.Started(patina_version(), str(device), model.name, now.steps, now.step)
    for sentence in warnings:
        yield protocol.Warning(sentence)
    stopped = None if resumed else (yield from begin(now, start_maps, stop_asked))
    begun = stopped is None
    if begun:
        stopped = yield from _optimise(now, stop_asked)
    if stopped is None and refined is not None and now is not refined:
        optimisation.go_on_from(refined.state, state)
        if isinstance(model, Resting):
            model.rest()
        now, refined.preview_number = refined, now.preview_number
        stopped = yield from _optimise(now, stop_asked)
    if stopped in ("pause", "host gone"):
        if begun:
            checkpoint.write(job.checkpoint, now.state, now.plan)
            yield protocol.Checkpoint(now.step)
        yield protocol.Paused("host gone" if stopped == "host gone" else "asked", now.step)
        return
    if stopped == "cancel":
        yield protocol.Cancelled(now.step, write_partial(now))
        return
    yield progress(now, "Writing the maps", None)
    yield from finish(now, began)


def _new_pool(
    request: TextureRequest, job: JobFolder, plan: Plan, triangles: Triangles, mask: torch.Tensor, model: Denoiser,
    clip: Clip | None, first: views.ViewPool | None = None,
) -> views.ViewPool:  # fmt: skip
    generator = torch.Generator().manual_seed(plan.seed)
    sky = _sky(plan, model, triangles, first.sky if first is not None else None)
    pool = views.new_pool(
        triangles, mask, plan.render_size, generator, request.rasterizer, plan.options.staging, sky
    )  # fmt: skip
    if request.reference:
        seen = job.path / request.reference
        strength = planning.likeness_of(request).clip_strength
        pool.reference = reference.new(seen, request.reference_view, triangles, plan.render_size, clip, strength)
    return pool


def _sky(plan: Plan, model: Denoiser, triangles: Triangles, known: occlusion.Sky | None) -> occlusion.Sky | None:
    """What the mesh hides from itself, where that counts: a model that paints without knowing the light paints shadows
    too, and what is not rendered of them would stay in the maps. `known`: it, where it is made already."""
    wish = plan.options.shadows
    if wish == "off" or (wish == "auto" and getattr(model, "sees_geometry", True)):
        return None
    return occlusion.look_from(triangles, occlusion.even_directions()) if known is None else known


def _second_run(first: Run, model: Denoiser) -> Run:
    """The second stage of a cascade, behind `first`."""
    plan = planning.second_plan(first.plan, first.request, model)
    state = optimisation.new_state(plan, first.device)
    optimisation.add_companion(state, plan, model)
    state.held = first.state.held
    mask = torch.from_numpy(first.mesh.face_mask)
    clip = first.pool.reference.clip if first.pool.reference is not None else None
    pool = _new_pool(first.request, first.job, plan, first.pool.triangles, mask, model, clip, first.pool)
    pool.environments = first.pool.environments
    first.later = plan.steps
    return replace(first, plan=plan, state=state, pool=pool, model=model, earlier=first.plan.steps, later=0)


def _optimise(now: Run, stop_asked: StopAsked) -> Iterator[Event]:
    """The loop. Returns why it was stopped, or None when all steps are done."""
    state, plan = now.state, now.plan
    tables = ggx_tables.load().to(now.device)
    began, first_step = time.monotonic(), state.step
    told = previewed = saved = began
    stage = "Refining" if now.earlier else "Painting"
    yield progress(now, stage, None)
    while state.step < plan.steps:
        why = stop_asked()
        if why:
            return why
        optimisation.step(state, plan, now.model, now.pool, tables)
        moment = time.monotonic()
        if moment - told > 0.25 or state.step == plan.steps:
            per_step = (moment - began) / (state.step - first_step)
            yield progress(now, stage, per_step * (plan.steps - state.step))
            told = moment
        if moment - previewed > PREVIEW_SECONDS or (state.step - first_step == 8):
            yield preview(now)
            previewed = time.monotonic()
        if moment - saved > CHECKPOINT_SECONDS:
            checkpoint.write(now.job.checkpoint, state, plan)
            yield protocol.Checkpoint(now.step)
            saved = time.monotonic()
    now.seconds["refinement" if now.earlier else "optimisation"] = time.monotonic() - began
    return None
