# SPDX-License-Identifier: Apache-2.0
"""How a fresh run begins: at one material, at given maps, or at a base colour that another method paints first."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from addon import protocol
from addon.protocol import Event

from . import four_views, ggx_tables, held, latent_paint, material, optimisation, planning
from .guidance import TRAINED
from .run import Run, preview, progress

GRADIENT_OF_LATENTS = "sds"  # where the run's own guidance paints no latents
SHOWN_SECONDS, TOLD_SECONDS = 2.5, 1.0

T = TypeVar("T")


def begin(run: Run, start_maps: dict[str, Tensor] | None, stop_asked: Callable[[], str | None]) -> Iterator[Event]:
    """Put a fresh run at what it begins with, and show it. `start_maps`: name -> (T, T, C) stored values.

    Returns why it was stopped, or None. Nothing of a start that was stopped can be kept: it is made again.
    """
    try:
        yield from _begin(run, start_maps, stop_asked)
    except _Stopped as stopped:
        return stopped.why
    return None


class _Stopped(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def _begin(run: Run, start_maps: dict[str, Tensor] | None, stop_asked: Callable[[], str | None]) -> Iterator[Event]:
    """As `begin`; raises _Stopped."""
    began = time.monotonic()
    if start_maps is not None and planning.goes_on(run.request):
        held.begin_from(run.state, start_maps)
        run.state.step = planning.first_step(run.request, run.plan)
    else:
        work = optimisation.start(run.state, run.plan, run.model, run.pool, ggx_tables.load().to(run.device))
        yield from _told(work, run, "Choosing the material", stop_asked)
        if run.request.start == "four_views":
            yield from _paint_four_views(run, stop_asked)
        if run.request.start == "latent_paint":
            yield progress(run, "Painting latents", None)
            yield from _paint_latents(run, stop_asked)
    run.seconds["start"] = time.monotonic() - began
    yield preview(run)


def _told(
    work: Generator[object, None, T], run: Run, stage: str, stop_asked: Callable[[], str | None]
) -> Generator[Event, None, T]:
    """Let `work` go on to its end, and say now and then that it does; its result. Raises _Stopped."""
    yield progress(run, stage, None)
    told = time.monotonic()
    while True:
        why = stop_asked()
        if why:
            raise _Stopped(why)
        try:
            next(work)
        except StopIteration as end:
            return end.value
        if time.monotonic() - told > TOLD_SECONDS:
            yield progress(run, stage, None)
            told = time.monotonic()


def _paint_four_views(run: Run, stop_asked: Callable[[], str | None]) -> Iterator[Event]:
    """Give the maps the base colour that the model paints in four views."""
    plan, maps = run.plan, run.state.maps
    tables = ggx_tables.load().to(run.device)
    surface = material.stored_values(maps.volumes[0].detach().flatten())
    pattern = plan.pattern_scale, optimisation.pattern_offset(plan.seed)
    work = four_views.paint(
        run.model, run.pool.triangles, surface, tables, plan.guidance_scale, plan.options, pattern, run.state.generator,
        planning.asked_size(run.request, run.model),
    )  # fmt: skip
    painted = yield from _told(work, run, "Painting four views", stop_asked)
    where = material.texels(run.mesh, maps.pyramid[-1].shape[-1], run.device)
    colors = four_views.base_color_of(painted, surface, tables)
    known = four_views.project(painted, colors, run.pool.triangles, where)
    if not bool((known[1] > 0).any()):
        run.warnings.append(four_views.NOTHING_SEEN)
        yield protocol.Warning(four_views.NOTHING_SEEN)
    for each in (maps, run.state.average):
        four_views.settle(each, *known, where)


def _paint_latents(run: Run, stop_asked: Callable[[], str | None]) -> Iterator[Event]:
    """Give the maps the base colour that Latent-Paint paints, showing it while it grows."""
    plan, maps, told = run.plan, run.state.maps, time.monotonic()
    where = material.texels(run.mesh, maps.pyramid[-1].shape[-1], run.device)
    known = torch.ones(len(where.index), device=run.device)
    method = GRADIENT_OF_LATENTS if plan.guidance in (planning.NO_GUIDANCE, *TRAINED) else plan.guidance
    # It begins with noise: only the distillation behind it is a warm start.
    options = planning.options_of(run.request)
    mask = torch.from_numpy(run.mesh.face_mask)
    steps = latent_paint.paint(
        run.model, run.pool.triangles, mask, method, plan.guidance_scale, plan.views, options.latent_steps, options,
        run.state.generator, planning.asked_size(run.request, run.model),
    )  # fmt: skip
    for texture in steps:
        why = stop_asked()
        if why:
            raise _Stopped(why)
        if time.monotonic() - told > SHOWN_SECONDS:
            image = latent_paint.preview(run.model, texture)
            if image is None:
                yield progress(run, "Painting latents", None)
            else:
                four_views.settle(run.state.average, latent_paint.colors(image, where), known, where)
                yield preview(run)
            told = time.monotonic()
    image = latent_paint.decoded(run.model, texture)
    for each in (maps, run.state.average):
        four_views.settle(each, latent_paint.colors(image, where), known, where)
