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

from . import checkpoint, ggx_tables, held, material, optimisation, picture, views
from .diffusion.interface import Denoiser
from .distillation import published
from .guidance import GUIDANCE
from .maps import write_maps
from .mesh import Mesh, load_job_mesh
from .models import ModelShelf, pick_device
from .optimisation import Plan, State
from .rasterize import Triangles
from .unseen import nearest_seen

PREVIEW_SECONDS = 2.5  # the panel is promised one at least every 5
CHECKPOINT_SECONDS = 20.0
PREVIEW_SIZE = 256
# The optimiser resolves no more than its close-ups show; larger outputs are interpolated from it.
EFFECTIVE_SIZE = 512
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
    still: picture.Still
    seconds: dict[str, float] = field(default_factory=dict)
    preview_number: int = 0


def run(request: TextureRequest, job: JobFolder, shelf: ModelShelf, stop_asked: StopAsked) -> Iterator[Event]:
    """Texture the job's mesh. Yields Started first and exactly one terminal event last.

    Resumes from job.checkpoint where one fits. `stop_asked` is polled every step and answers None,
    "cancel", "pause" or "host gone". Raises MeshError, PromptError, ModelError, ProtocolError, OSError.
    """
    began = time.monotonic()
    if request.guidance not in GUIDANCE:
        raise protocol.ProtocolError(f"guidance must be one of {', '.join(GUIDANCE)}.")
    device = pick_device(request.device)
    model = shelf.get(request.model, device)
    warnings = list(model.set_prompt(request.prompt, request.negative_prompt))
    loaded = time.monotonic()
    mesh = load_job_mesh(job.mesh)
    plan = make_plan(request, model)
    state = optimisation.new_state(plan, device)
    start_maps = held.read_start(job) if request.start_maps else None
    if start_maps is not None:
        state.held = held.hold(request, job, mesh, start_maps, plan.finest, device)
    resumed = checkpoint.read_into(job.checkpoint, state, plan)
    triangles = Triangles.of(mesh, device)
    mask = torch.from_numpy(mesh.face_mask)
    generator = torch.Generator().manual_seed(plan.seed)
    pool = views.new_pool(triangles, mask, plan.render_size, generator, request.rasterizer)
    run = _Run(request, job, plan, state, pool, mesh, model, warnings, picture.still(triangles))
    run.seconds = {"model": loaded - began, "mesh": time.monotonic() - loaded}
    yield protocol.Started(patina_version(), str(device), model.name, plan.steps, state.step)
    for sentence in warnings:
        yield protocol.Warning(sentence)
    if not resumed:
        yield from _start(run, start_maps)
    stopped = yield from _optimise(run, stop_asked)
    if stopped in ("pause", "host gone"):
        checkpoint.write(job.checkpoint, state, plan)
        yield protocol.Checkpoint(state.step)
        yield protocol.Paused("host gone" if stopped == "host gone" else "asked", state.step)
        return
    if stopped == "cancel":
        yield protocol.Cancelled(state.step, _write(run, *_bake(run)) if state.step else {})
        return
    yield _progress(run, "Writing the maps", None)
    yield from _finish(run, began)


def make_plan(request: TextureRequest, model: Denoiser) -> Plan:
    plan = Plan(
        steps=request.steps or STEPS[request.quality],
        views=request.views or VIEWS[request.quality],
        render_size=request.render_size or model.render_size,
        finest=min(request.texture_size, EFFECTIVE_SIZE),
        guidance=request.guidance,
        guidance_scale=model.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        pattern_scale=request.pattern_scale,
        seed=request.seed,
        options=replace(published(request.guidance), negative_prompt=bool(request.negative_prompt.strip())),
    )
    # A run that goes on from maps goes on with all they show.
    return replace(plan, all_detail_at=0.0, normal_from=0.0) if _goes_on(request) else plan


def _goes_on(request: TextureRequest) -> bool:
    return request.start_maps and request.strength < 1.0


def _start(run: _Run, start_maps: dict[str, Tensor] | None) -> Iterator[Event]:
    """Put a fresh run at the uniform material it begins with, or at the start maps, and show it."""
    start = time.monotonic()
    device = run.pool.triangles.positions.device
    if start_maps is not None and _goes_on(run.request):
        held.begin_from(run.state, start_maps)
        run.state.step = _first_step(run)
    yield _progress(run, "Choosing the material", None)
    if not _goes_on(run.request):
        optimisation.start(run.state, run.plan, run.model, run.pool, ggx_tables.load().to(device))
    run.seconds["start"] = time.monotonic() - start
    yield _preview(run, material.texels(run.mesh, PREVIEW_SIZE, device))


def _optimise(run: _Run, stop_asked: StopAsked) -> Iterator[Event]:
    """The loop. Returns why it was stopped, or None when all steps are done."""
    state, plan = run.state, run.plan
    tables = ggx_tables.load().to(run.pool.triangles.positions.device)
    preview_texels = material.texels(run.mesh, PREVIEW_SIZE, run.pool.triangles.positions.device)
    began, first_step = time.monotonic(), state.step
    told = previewed = began
    saved = began
    yield _progress(run, "Painting", None)
    while state.step < plan.steps:
        why = stop_asked()
        if why:
            return why
        optimisation.step(state, plan, run.model, run.pool, tables)
        now = time.monotonic()
        if now - told > 0.25 or state.step == plan.steps:
            per_step = (now - began) / (state.step - first_step)
            yield _progress(run, "Painting", per_step * (plan.steps - state.step))
            told = now
        if now - previewed > PREVIEW_SECONDS or (state.step - first_step == 8):
            yield _preview(run, preview_texels)
            previewed = time.monotonic()
        if now - saved > CHECKPOINT_SECONDS:
            checkpoint.write(run.job.checkpoint, state, plan)
            yield protocol.Checkpoint(state.step)
            saved = time.monotonic()
    run.seconds["optimisation"] = time.monotonic() - began
    return None


def _progress(run: _Run, stage: str, seconds_left: float | None) -> protocol.Progress:
    first = _first_step(run)
    done = max(0, run.state.step - first) / (run.plan.steps - first)
    return protocol.Progress(stage, run.state.step, run.plan.steps, 0.97 * done, seconds_left)


def _first_step(run: _Run) -> int:
    """Where a run begins: one that goes on from maps leaves out the steps that would paint them anew."""
    share = 1 - run.request.strength if _goes_on(run.request) else 0.0
    return min(round(run.plan.steps * share), run.plan.steps - 1)


def _preview(run: _Run, where: material.Texels) -> protocol.Preview:
    """Write the averaged maps small, under a new number (Windows cannot replace an open file)."""
    run.preview_number = max(run.preview_number, _last_preview(run.job)) + 1
    images = material.bake(run.state.average, where)
    paths, images = _compose_and_write(run, run.job.previews, images, where, f"{run.preview_number:05d}_")
    picture.write(run.job.preview_picture(run.preview_number), run.still, images)
    for old in run.job.previews.glob("*.png"):
        if old.name[:5].isdigit() and int(old.name[:5]) < run.preview_number - 3:
            old.unlink(missing_ok=True)
    return protocol.Preview(run.preview_number, run.state.step, _relative(run.job, paths))


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
    paths, images = _compose_and_write(
        run, run.job.maps, images, where, "", run.request.file_format, run.request.bit_depth
    )
    picture.write(run.job.picture, run.still, images)
    return _relative(run.job, paths)


def _compose_and_write(
    run: _Run, folder: Path, images: dict[str, Tensor], where: material.Texels, prefix: str = "",
    file_format: str = "png", bits: int | None = None,
) -> tuple[dict[str, Path], dict[str, Tensor]]:  # fmt: skip
    """The written files and what they show; what is held is as it was."""
    covered, as_given = material.coverage(where), None
    if run.state.held is not None:
        images, as_given = run.state.held.compose(images, covered)
    return write_maps(folder, images, covered, prefix, file_format, bits, as_given), images


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
        "model": run.model.name,
        "quality": run.request.quality,
        "steps": run.plan.steps,
        "texture_size": run.request.texture_size,
        "effective_resolution": run.plan.finest,
        "seconds": {name: round(value, 3) for name, value in run.seconds.items()},
        "peak_memory_mb": peak_memory_mb(),
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


def peak_memory_mb() -> int | None:
    """The most memory this process held; None on Windows, which has no getrusage."""
    if sys.platform == "win32":
        return None
    if sys.platform == "linux":  # where getrusage begins with the memory of the process that started this one
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024))
