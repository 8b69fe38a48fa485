# SPDX-License-Identifier: Apache-2.0
"""The one file that knows the order of the stages: a request becomes maps, told as a stream of events."""

from __future__ import annotations

import json
import platform
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from addon import protocol
from addon.protocol import Event, JobFolder, TextureRequest

from . import checkpoint, four_views, ggx_tables, latent_paint, material, optimisation, reference, views
from .diffusion.interface import Denoiser, Resting
from .distillation import Options, published
from .guidance import GUIDANCE, TRAINED
from .maps import write_maps
from .mesh import Mesh, load_job_mesh
from .models import ModelShelf, pick_device, second_stage, set_control
from .optimisation import Plan, State
from .rasterize import Triangles
from .unseen import nearest_seen

PREVIEW_SECONDS = 2.5  # the panel is promised one at least every 5
CHECKPOINT_SECONDS = 20.0
PREVIEW_SIZE = 256
# The optimiser resolves no more than its close-ups show; larger outputs are interpolated from it.
EFFECTIVE_SIZE = 512
GRADIENT_OF_LATENTS = "sds"  # where the run's own guidance paints no latents
NO_GUIDANCE = "none"  # a run that ends with what it begins with
LATEST_WARM, EARLIEST_WARM = 0.5, 0.05  # shares of the timesteps, at most, after a warm start
REFINED_SIZE = 1024  # with a second stage
STEPS = {"draft": 260, "standard": 900, "high": 2400}
VIEWS = {"draft": 4, "standard": 4, "high": 6}

StopAsked = Callable[[], str | None]


@dataclass
class _Run:
    """What the stages share."""

    request: TextureRequest
    job: JobFolder
    plan: Plan
    state: State
    pool: views.ViewPool
    mesh: Mesh
    model: Denoiser
    warnings: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    preview_number: int = 0
    earlier: int = 0  # steps of the stage before
    later: int = 0  # and of the one behind
    painter: str = ""  # the name of the model that begins

    @property
    def step(self) -> int:
        """Of all stages."""
        return self.earlier + self.state.step

    @property
    def steps(self) -> int:
        return self.earlier + self.plan.steps + self.later


def run(request: TextureRequest, job: JobFolder, shelf: ModelShelf, stop_asked: StopAsked) -> Iterator[Event]:
    """Texture the job's mesh. Yields Started first and exactly one terminal event last.

    Resumes from job.checkpoint where one fits. `stop_asked` is polled every step and answers None,
    "cancel", "pause" or "host gone". Raises MeshError, PromptError, ModelError, ProtocolError, OSError.
    """
    began = time.monotonic()
    if request.guidance not in GUIDANCE and not (request.guidance == NO_GUIDANCE and request.start != "uniform"):
        raise protocol.ProtocolError(
            f"guidance must be one of {', '.join(GUIDANCE)}, or {NO_GUIDANCE} with the start four_views or "
            "latent_paint."
        )
    device = pick_device(request.device)
    model = shelf.get(request.model, device)
    set_control(model, request.control, request.control_kind, request.control_strength)
    warnings = list(model.set_prompt(request.prompt, request.negative_prompt))
    second = second_stage(request.second_stage, device) if request.second_stage else None
    if second is not None:
        warnings += second.set_prompt(request.prompt, request.negative_prompt)
    loaded = time.monotonic()
    mesh = load_job_mesh(job.mesh)
    plan = make_plan(request, model)
    state = optimisation.new_state(plan, device)
    optimisation.add_companion(state, plan, model)
    triangles = Triangles.of(mesh, device)
    mask = torch.from_numpy(mesh.face_mask)
    generator = torch.Generator().manual_seed(plan.seed)
    pool = views.new_pool(triangles, mask, plan.render_size, generator, plan.options.staging)
    if request.reference:
        picture = job.path / request.reference
        pool.reference = reference.new(picture, request.reference_view, triangles, plan.render_size)
        warnings.append(reference.NO_CLIP)
    run = _Run(request, job, plan, state, pool, mesh, model, warnings, painter=model.name)
    run.seconds = {"model": loaded - began, "mesh": time.monotonic() - loaded}
    refined = None if second is None else _second_run(run, second, mask, device)
    if refined is not None and checkpoint.read_into(job.checkpoint, refined.state, refined.plan):
        run, resumed = refined, True
    else:
        resumed = checkpoint.read_into(job.checkpoint, state, plan)
    yield protocol.Started(patina_version(), str(device), model.name, run.steps, run.step)
    for sentence in warnings:
        yield protocol.Warning(sentence)
    if not resumed:
        yield from _start(run)
    stopped = yield from _optimise(run, stop_asked)
    if stopped is None and refined is not None and run is not refined:
        optimisation.go_on_from(refined.state, state)
        if isinstance(model, Resting):
            model.rest()
        run, refined.preview_number = refined, run.preview_number
        stopped = yield from _optimise(run, stop_asked)
    if stopped in ("pause", "host gone"):
        checkpoint.write(job.checkpoint, run.state, run.plan)
        yield protocol.Checkpoint(run.step)
        yield protocol.Paused("host gone" if stopped == "host gone" else "asked", run.step)
        return
    if stopped == "cancel":
        yield protocol.Cancelled(run.step, _write(run, *_bake(run)) if run.step else {})
        return
    yield _progress(run, "Writing the maps", None)
    yield from _finish(run, began)


def make_plan(request: TextureRequest, model: Denoiser) -> Plan:
    warm = request.start != "uniform"
    return Plan(
        steps=0 if request.guidance == NO_GUIDANCE else request.steps or STEPS[request.quality],
        views=request.views or VIEWS[request.quality],
        render_size=request.render_size or model.render_size,
        finest=min(request.texture_size, EFFECTIVE_SIZE),
        guidance=request.guidance,
        guidance_scale=model.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        pattern_scale=request.pattern_scale,
        seed=request.seed,
        options=_options(request),
        all_detail_at=0.0 if warm else Plan.all_detail_at,
    )


def _options(request: TextureRequest) -> Options:
    try:
        options = published(request.guidance, request.options)
    except ValueError as error:
        raise protocol.ProtocolError(str(error)) from error
    if request.start != "uniform":
        # Late timesteps would paint over what is there already.
        options = replace(
            options,
            highest=tuple(min(share, LATEST_WARM) for share in options.highest),
            lowest=tuple(min(share, EARLIEST_WARM) for share in options.lowest),
        )
    return replace(options, negative_prompt=bool(request.negative_prompt.strip()))


def second_plan(plan: Plan, request: TextureRequest, model: Denoiser) -> Plan:
    """How the second stage of a cascade goes on: larger pictures, half as many steps, small changes of all detail."""
    return replace(
        plan,
        steps=max(1, plan.steps // 2),
        render_size=model.render_size,
        finest=min(request.texture_size, REFINED_SIZE),
        guidance_scale=model.guidance_scale,
        learning_rate=plan.learning_rate / 3,
        normal_from=0.0,
        all_detail_at=0.0,
        average_from=0.2,
        binary_from=0.0,
        options=replace(
            plan.options, highest=(0.6, 0.3), lowest=(0.1, 0.02), guidance_scale_end=None, joint_views=False
        ),
    )


def _second_run(first: _Run, model: Denoiser, mask: Tensor, device: torch.device) -> _Run:
    plan = second_plan(first.plan, first.request, model)
    state = optimisation.new_state(plan, device)
    optimisation.add_companion(state, plan, model)
    generator = torch.Generator().manual_seed(plan.seed)
    pool = views.new_pool(first.pool.triangles, mask, plan.render_size, generator, plan.options.staging)
    if first.request.reference:
        picture = first.job.path / first.request.reference
        pool.reference = reference.new(picture, first.request.reference_view, pool.triangles, plan.render_size)
    first.later = plan.steps
    return replace(first, plan=plan, state=state, pool=pool, model=model, earlier=first.plan.steps, later=0)


def _start(run: _Run) -> Iterator[Event]:
    """Put a fresh run at the uniform material it begins with, and show it."""
    start = time.monotonic()
    yield _progress(run, "Choosing the material", None)
    device = run.pool.triangles.positions.device
    optimisation.start(run.state, run.plan, run.model, run.pool, ggx_tables.load().to(device))
    if run.request.start == "four_views":
        yield _progress(run, "Painting four views", None)
        _paint_four_views(run)
    if run.request.start == "latent_paint":
        yield _progress(run, "Painting latents", None)
        yield from _paint_latents(run)
    run.seconds["start"] = time.monotonic() - start
    yield _preview(run, material.texels(run.mesh, PREVIEW_SIZE, device))


def _paint_four_views(run: _Run) -> None:
    """Give the maps the base colour that the model paints in four views."""
    device, plan = run.pool.triangles.positions.device, run.plan
    tables, maps = ggx_tables.load().to(device), run.state.maps
    surface = material.stored_values(maps.volumes[0].detach().flatten())
    painted = four_views.paint(
        run.model, run.pool.triangles, surface, tables, plan.guidance_scale, plan.options,
        (plan.pattern_scale, optimisation.pattern_offset(plan)), run.state.generator,
    )  # fmt: skip
    where = material.texels(run.mesh, maps.pyramid[-1].shape[-1], device)
    colors = four_views.base_color_of(painted, surface, tables)
    known = four_views.project(painted, colors, run.pool.triangles, where)
    for each in (maps, run.state.average):
        four_views.settle(each, *known, where)


def _paint_latents(run: _Run) -> Iterator[Event]:
    """Give the maps the base colour that Latent-Paint paints, showing it while it grows."""
    plan, pool, maps = run.plan, run.pool, run.state.maps
    device, told = pool.triangles.positions.device, time.monotonic()
    where = material.texels(run.mesh, maps.pyramid[-1].shape[-1], device)
    small = material.texels(run.mesh, PREVIEW_SIZE, device)
    method = GRADIENT_OF_LATENTS if plan.guidance in (NO_GUIDANCE, *TRAINED) else plan.guidance
    # It begins with noise, whatever the distillation behind it begins with.
    options = replace(plan.options, highest=Options.highest, lowest=Options.lowest)
    mask = torch.from_numpy(run.mesh.face_mask)
    steps = latent_paint.paint(
        run.model, pool.triangles, mask, method, plan.guidance_scale, plan.views, options.latent_steps, options,
        run.state.generator,
    )  # fmt: skip
    for texture in steps:
        image = latent_paint.preview(texture)
        if image is not None and time.monotonic() - told > PREVIEW_SECONDS:
            known = torch.ones(len(where.index), device=device)
            four_views.settle(run.state.average, latent_paint.colors(image, where), known, where)
            yield _preview(run, small)
            told = time.monotonic()
    image = latent_paint.decoded(run.model, texture)
    known = torch.ones(len(where.index), device=device)
    for each in (maps, run.state.average):
        four_views.settle(each, latent_paint.colors(image, where), known, where)


def _optimise(run: _Run, stop_asked: StopAsked) -> Iterator[Event]:
    """The loop. Returns why it was stopped, or None when all steps are done."""
    state, plan = run.state, run.plan
    tables = ggx_tables.load().to(run.pool.triangles.positions.device)
    preview_texels = material.texels(run.mesh, PREVIEW_SIZE, run.pool.triangles.positions.device)
    began, first_step = time.monotonic(), state.step
    told = previewed = began
    saved = began
    stage = "Refining" if run.earlier else "Painting"
    yield _progress(run, stage, None)
    while state.step < plan.steps:
        why = stop_asked()
        if why:
            return why
        optimisation.step(state, plan, run.model, run.pool, tables)
        now = time.monotonic()
        if now - told > 0.25 or state.step == plan.steps:
            per_step = (now - began) / (state.step - first_step)
            yield _progress(run, stage, per_step * (plan.steps - state.step))
            told = now
        if now - previewed > PREVIEW_SECONDS or (state.step - first_step == 8):
            yield _preview(run, preview_texels)
            previewed = time.monotonic()
        if now - saved > CHECKPOINT_SECONDS:
            checkpoint.write(run.job.checkpoint, state, plan)
            yield protocol.Checkpoint(run.step)
            saved = time.monotonic()
    run.seconds["refinement" if run.earlier else "optimisation"] = time.monotonic() - began
    return None


def _progress(run: _Run, stage: str, seconds_left: float | None) -> protocol.Progress:
    return protocol.Progress(stage, run.step, run.steps, 0.97 * run.step / max(1, run.steps), seconds_left)


def _preview(run: _Run, where: material.Texels) -> protocol.Preview:
    """Write the averaged maps small, under a new number (Windows cannot replace an open file)."""
    run.preview_number = max(run.preview_number, _last_preview(run.job)) + 1
    images = material.bake(run.state.average, where)
    covered = material.coverage(where)
    paths = write_maps(run.job.previews, images, covered, prefix=f"{run.preview_number:05d}_")
    for old in run.job.previews.glob("*.png"):
        if old.name[:5].isdigit() and int(old.name[:5]) < run.preview_number - 3:
            old.unlink(missing_ok=True)
    return protocol.Preview(run.preview_number, run.step, _relative(run.job, paths))


def _last_preview(job: JobFolder) -> int:
    numbers = [int(p.name[:5]) for p in job.previews.glob("*.png") if p.name[:5].isdigit()]
    return max(numbers, default=0)


def _bake(run: _Run) -> tuple[dict[str, Tensor], material.Texels]:
    """Full-size maps and where they lie."""
    where = material.texels(run.mesh, run.request.texture_size, run.pool.triangles.positions.device)
    if where.index.numel() == 0:
        raise ValueError("No texel of the maps is covered by the UVs.")
    return material.bake(run.state.average, where), where


def _fill_unseen(run: _Run, images: dict[str, Tensor], where: material.Texels) -> float:
    """Paint what no camera of the pool sees like the nearest surface that one does; returns its share.

    All cameras are looked through: which of them this attempt happened to draw must not matter, or a
    resumed run would take what was painted before the pause for unseen.
    """
    for index in range(len(run.pool.cameras)):
        run.pool.look(index)
    hidden = ~run.pool.seen.to(where.triangle.device)[where.triangle]
    share = float(hidden.float().mean())
    if 0 < share < 1:
        source = nearest_seen(where.position, hidden)
        # A triangle smaller than a pixel is often missed by every pixel centre and yet seen: its neighbours are.
        away = where.position[hidden] - where.position[~hidden][source]
        far = away.norm(dim=1) > 2 * float(run.pool.extent(list(range(run.pool.full))).mean()) / run.pool.size
        for image in images.values():
            flat = image.view(-1, image.shape[-1])
            flat[where.index[hidden][far]] = flat[where.index[~hidden][source[far]]]
        share = float(far.sum()) / len(hidden)
    return share


def _write(run: _Run, images: dict[str, Tensor], where: material.Texels) -> dict[str, str]:
    return _relative(run.job, write_maps(run.job.maps, images, material.coverage(where)))


def _finish(run: _Run, began: float) -> Iterator[Event]:
    start = time.monotonic()
    images, where = _bake(run)
    hidden = _fill_unseen(run, images, where)
    maps = _write(run, images, where)
    run.seconds["maps"] = time.monotonic() - start
    run.seconds["total"] = time.monotonic() - began
    report = {
        "prompt": run.request.prompt,
        "negative_prompt": run.request.negative_prompt,
        "seed": run.request.seed,
        "model": run.painter,
        "quality": run.request.quality,
        "second_stage": run.request.second_stage,
        "guidance": run.request.guidance,
        "options": run.request.options,
        "steps": run.steps,
        "texture_size": run.request.texture_size,
        "effective_resolution": run.plan.finest,
        "seconds": {name: round(value, 3) for name, value in run.seconds.items()},
        "peak_memory_mb": _peak_memory_mb(),
        "triangles": run.mesh.triangles,
        "covered_texels": int(where.index.numel()),
        "covered_share": round(where.index.numel() / where.size**2, 4),
        "unseen_share": round(hidden, 4),
        "warnings": run.warnings,
        "versions": {"patina": patina_version(), "python": platform.python_version(), "torch": torch.__version__},
    }
    if hidden > 0.02:
        sentence = f"No camera sees {hidden:.0%} of the surface; it was filled from the nearest part that is seen."
        report["warnings"].append(sentence)
        yield protocol.Warning(sentence)
    protocol.write_beside(run.job.report, json.dumps(report, indent=1).encode())
    run.job.checkpoint.unlink(missing_ok=True)
    yield protocol.Done(maps, run.job.report.name)


def _relative(job: JobFolder, paths: dict) -> dict[str, str]:
    return {name: path.relative_to(job.path).as_posix() for name, path in paths.items()}


def patina_version() -> str:
    """The one version number, from the manifest that travels with the package."""
    manifest = Path(protocol.__file__).resolve().parents[1] / "blender_manifest.toml"
    return tomllib.loads(manifest.read_text("utf-8"))["version"]


def _peak_memory_mb() -> int | None:
    """The most memory this process held; None on Windows, which has no getrusage."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024))
