# SPDX-License-Identifier: Apache-2.0
"""How a fresh run begins: at one material, at given maps, or at a base colour that another method paints first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from addon.protocol import Event

from . import four_views, ggx_tables, held, latent_paint, material, optimisation, planning
from .distillation import Options
from .guidance import TRAINED
from .run import Run, preview, progress

GRADIENT_OF_LATENTS = "sds"  # where the run's own guidance paints no latents
SHOWN_SECONDS = 2.5


def begin(run: Run, start_maps: dict[str, Tensor] | None, stop_asked: Callable[[], str | None]) -> Iterator[Event]:
    """Put a fresh run at what it begins with, and show it. `start_maps`: name -> (T, T, C) stored values.

    Returns why it was stopped, or None. Nothing of a start that was stopped can be kept: it is made again.
    """
    began = time.monotonic()
    yield progress(run, "Choosing the material", None)
    if start_maps is not None and planning.goes_on(run.request):
        held.begin_from(run.state, start_maps)
        run.state.step = planning.first_step(run.request, run.plan)
    else:
        optimisation.start(run.state, run.plan, run.model, run.pool, ggx_tables.load().to(run.device))
        if run.request.start == "four_views":
            yield progress(run, "Painting four views", None)
            _paint_four_views(run)
        if run.request.start == "latent_paint":
            yield progress(run, "Painting latents", None)
            why = yield from _paint_latents(run, stop_asked)
            if why:
                return why
    run.seconds["start"] = time.monotonic() - began
    yield preview(run)
    return None


def _paint_four_views(run: Run) -> None:
    """Give the maps the base colour that the model paints in four views."""
    plan, maps = run.plan, run.state.maps
    tables = ggx_tables.load().to(run.device)
    surface = material.stored_values(maps.volumes[0].detach().flatten())
    pattern = plan.pattern_scale, optimisation.pattern_offset(plan.seed)
    painted = four_views.paint(
        run.model, run.pool.triangles, surface, tables, plan.guidance_scale, plan.options, pattern, run.state.generator
    )
    where = material.texels(run.mesh, maps.pyramid[-1].shape[-1], run.device)
    colors = four_views.base_color_of(painted, surface, tables)
    known = four_views.project(painted, colors, run.pool.triangles, where)
    for each in (maps, run.state.average):
        four_views.settle(each, *known, where)


def _paint_latents(run: Run, stop_asked: Callable[[], str | None]) -> Iterator[Event]:
    """Give the maps the base colour that Latent-Paint paints, showing it while it grows. Returns why it was stopped."""
    plan, maps, told = run.plan, run.state.maps, time.monotonic()
    where = material.texels(run.mesh, maps.pyramid[-1].shape[-1], run.device)
    known = torch.ones(len(where.index), device=run.device)
    method = GRADIENT_OF_LATENTS if plan.guidance in (planning.NO_GUIDANCE, *TRAINED) else plan.guidance
    # It begins with noise, whatever the distillation behind it begins with.
    options = replace(plan.options, highest=Options.highest, lowest=Options.lowest)
    mask = torch.from_numpy(run.mesh.face_mask)
    steps = latent_paint.paint(
        run.model, run.pool.triangles, mask, method, plan.guidance_scale, plan.views, options.latent_steps, options,
        run.state.generator,
    )  # fmt: skip
    for texture in steps:
        why = stop_asked()
        if why:
            return why
        image = latent_paint.preview(texture)
        if image is not None and time.monotonic() - told > SHOWN_SECONDS:
            four_views.settle(run.state.average, latent_paint.colors(image, where), known, where)
            yield preview(run)
            told = time.monotonic()
    image = latent_paint.decoded(run.model, texture)
    for each in (maps, run.state.average):
        four_views.settle(each, latent_paint.colors(image, where), known, where)
    return None
