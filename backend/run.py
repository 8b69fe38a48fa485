# SPDX-License-Identifier: Apache-2.0
"""One run of a request: what its stages share, and what it shows and leaves in the job folder.

Knows the job folder's files and the state; knows no order of stages and no model's inside.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from addon import protocol
from addon.protocol import Event, JobFolder, TextureRequest

from . import extra_maps, material, picture, planning, relief, views
from .diffusion.interface import Denoiser
from .maps import write_maps
from .mesh import Mesh
from .optimisation import Plan, State
from .unseen import nearest_seen

PREVIEW_SIZE = 256


@dataclass
class Run:
    request: TextureRequest
    job: JobFolder
    plan: Plan
    state: State
    pool: views.ViewPool
    mesh: Mesh
    model: Denoiser
    warnings: list[str]
    still: picture.Still
    small: material.Texels  # of the previews
    painter: str  # the name of the model that begins
    seconds: dict[str, float] = field(default_factory=dict)
    preview_number: int = 0
    earlier: int = 0  # steps of the stage before
    later: int = 0  # and of the one behind

    @property
    def device(self) -> torch.device:
        return self.pool.triangles.positions.device

    @property
    def step(self) -> int:
        """Of all stages."""
        return self.earlier + self.state.step

    @property
    def steps(self) -> int:
        return self.earlier + self.plan.steps + self.later


def progress(run: Run, stage: str, seconds_left: float | None) -> protocol.Progress:
    first = 0 if run.earlier else planning.first_step(run.request, run.plan)
    done = max(0, run.step - first) / max(1, run.steps - first)
    return protocol.Progress(stage, run.step, run.steps, 0.97 * done, seconds_left)


def preview(run: Run) -> protocol.Preview:
    """Write the averaged maps small, under a new number (Windows cannot replace an open file)."""
    run.preview_number = max(run.preview_number, _last_preview(run.job)) + 1
    images = material.bake(run.state.average, run.small)
    paths, images = _write(run, run.job.previews, images, run.small, prefix=f"{run.preview_number:05d}_")
    picture.write(run.job.preview_picture(run.preview_number), run.still, images)
    for old in run.job.previews.glob("*.png"):
        if old.name[:5].isdigit() and int(old.name[:5]) < run.preview_number - 3:
            old.unlink(missing_ok=True)
    return protocol.Preview(run.preview_number, run.step, paths)


def _last_preview(job: JobFolder) -> int:
    numbers = [int(p.name[:5]) for p in job.previews.glob("*.png") if p.name[:5].isdigit()]
    return max(numbers, default=0)


def write_partial(run: Run) -> dict[str, str]:
    """The maps of a run that ends early; none before its first step.

    As large as what was painted, not as what was asked for: who cancels does not wait for empty magnification. What a
    mask keeps is kept texel by texel, so that such maps are whole.
    """
    if not run.step:
        return {}
    whole = run.request.texture_size
    return _write_final(run, *_bake(run, whole if run.state.held is not None else min(whole, run.plan.finest)))[0]


def finish(run: Run, began: float) -> Iterator[Event]:
    """Write the maps and the report. `began`: time.monotonic() at the attempt's start."""
    start = time.monotonic()
    images, where = _bake(run, run.request.texture_size)
    hidden = _fill_unseen(run, images, where)
    maps, images = _write_final(run, images, where)
    run.seconds["maps"] = time.monotonic() - start
    told = {}
    if run.request.extra_maps:
        yield progress(run, "Making the extra maps", None)
        extras, told = extra_maps.write(
            run.job.maps, run.request, run.mesh, run.pool.triangles, images["normal"], material.coverage(where)
        )
        maps |= _relative(run, extras)
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
        "peak_memory_mb": peak_memory_mb(),
        "triangles": run.mesh.triangles,
        "covered_texels": int(where.index.numel()),
        "covered_share": round(where.index.numel() / where.size**2, 4),
        "unseen_share": round(hidden, 4),
        **told,
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


def _bake(run: Run, size: int) -> tuple[dict[str, Tensor], material.Texels]:
    """Maps of size x size texels and where they lie."""
    where = material.texels(run.mesh, size, run.device)
    if where.index.numel() == 0:
        raise ValueError("No texel of the maps is covered by the UVs.")
    finest = run.plan.finest
    return material.bake(
        run.state.average, where, lambda values: relief.without_curl(run.mesh, where, values, finest)
    ), where


def _fill_unseen(run: Run, images: dict[str, Tensor], where: material.Texels) -> float:
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


def _write_final(
    run: Run, images: dict[str, Tensor], where: material.Texels
) -> tuple[dict[str, str], dict[str, Tensor]]:
    files = {"file_format": run.request.file_format, "bits": run.request.bit_depth}
    paths, images = _write(run, run.job.maps, images, where, **files)
    picture.write(run.job.picture, run.still, images)
    return paths, images


def _write(
    run: Run, folder: Path, images: dict[str, Tensor], where: material.Texels, **files: str | int | None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The written files, relative to the job folder, and what they show; what is held is as it was."""
    covered, as_given = material.coverage(where), None
    if run.state.held is not None:
        images, as_given = run.state.held.compose(images, covered)
    paths = write_maps(folder, images, covered, as_given=as_given, **files)
    return _relative(run, paths), images


def _relative(run: Run, paths: dict[str, Path]) -> dict[str, str]:
    return {name: path.relative_to(run.job.path).as_posix() for name, path in paths.items()}


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
