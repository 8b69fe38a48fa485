# SPDX-License-Identifier: Apache-2.0
"""What a step costs with models of full size: seconds, memory, and how much of it is Patina's own. Needs CUDA.

    python -m backend evaluate performance --json FILE [--markdown docs/performance.md] [--only NAME]... [--again]
        [--steps 8] [--rasterizer nvdiffrast] | --toy

The models are of the published architectures with drawn weights (diffusion/drawn.py), so nothing is downloaded; time
and memory do not depend on what weights say. Each row is written as soon as it is measured, and left out when FILE has
it already. The last row is the renderer alone, forward and backward of four pictures of 512 with maps of 2048, as
`evaluate speed --device cuda` measures it. --toy runs all of it with tiny models on any machine: it shows that the
program works and says nothing of speed.

A step's time is the median of --steps steps in the middle of a run, without clocks inside; the shares are of steps
with clocks, before and after which the device is waited for. A camera is rasterised when a run first looks at it: that
is told by itself, and counted into the share outside as often as a run of standard quality does it.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from addon import protocol

from .. import ggx_tables, optimisation, planning, views
from ..diffusion.memory import Memory
from ..mesh import Mesh
from ..rasterize import Triangles
from ..run import peak_memory_mb
from ._shapes import torus
from .speed import renderer

PROMPT = "red plastic"
WARM_UP = 3
WANTED_SHARE, WANTED_GB = 0.05, 8.0
SPARING = Memory(rows=1, offload="parts", vae_tiling=True)


@dataclass(frozen=True)
class Row:
    """`limit_gb`: what the process may take of the card; None: all of it."""

    name: str
    model: str
    size: int
    memory: Memory = Memory(offload="never")
    limit_gb: float | None = None


ROWS = (
    Row("SD 1.5", "SD 1.5", 512),
    Row("SDXL + ControlNet, 512", "SDXL + ControlNet", 512),
    Row("SDXL + ControlNet, 768", "SDXL + ControlNet", 768),
    Row("SDXL + ControlNet, 768, within 8 GB", "SDXL + ControlNet", 768, SPARING, WANTED_GB),
    Row("IF I", "IF I", 64),
    Row("IF II", "IF II", 256),
    Row("FLUX.2 klein 4B", "FLUX.2 klein 4B", 512),
    Row("FLUX.2 klein 4B, within 8 GB", "FLUX.2 klein 4B", 512, replace(SPARING, offload="blocks"), WANTED_GB),
)
TOY_SIZE = {"IF II": 32}  # of pictures; 16 else
RENDERER, TOY = "renderer", "(toy models)"


class Clock:
    """Seconds between `begin` and `end`, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.total, self.depth, self.began = device, 0.0, 0, 0.0

    def begin(self, *_: object) -> None:
        if self.depth == 0:
            wait(self.device)
            self.began = time.monotonic()
        self.depth += 1

    def end(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            wait(self.device)
            self.total += time.monotonic() - self.began


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(row: Row, device: torch.device, mesh: Mesh, steps: int, rasterizer: str, toy: bool) -> dict[str, object]:
    """One row. Raises torch.OutOfMemoryError where the limit is too tight."""
    from ..diffusion import drawn

    _limit(device, row.limit_gb)
    model = drawn.model(row.model, device, toy)
    model.set_memory(row.memory)
    size = TOY_SIZE.get(row.model, 16) if toy else row.size
    request = protocol.TextureRequest(PROMPT, quality="standard", render_size=size)
    plan = planning.make_plan(request, model)
    if model.enlarges:
        plan = replace(planning.second_plan(plan, request, model), render_size=size)
    mask, generator = torch.from_numpy(mesh.face_mask), torch.Generator().manual_seed(0)
    pool = views.new_pool(Triangles.of(mesh, device), mask, size, generator, rasterizer)
    tables, state = ggx_tables.load().to(device), optimisation.new_state(plan, device)
    wait(device)
    began = time.monotonic()
    for index in range(len(pool.cameras)):
        pool.look(index)
    wait(device)
    new_view = (time.monotonic() - began) / len(pool.cameras)

    def step() -> float:
        began = time.monotonic()
        optimisation.step(state, plan, model, pool, tables)
        wait(device)
        return time.monotonic() - began

    state.step = plan.steps // 2  # all levels are open there
    for _ in range(WARM_UP):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = statistics.median([step() for _ in range(steps)])
    told = {
        "model": row.model, "size": size, "views": plan.views, "guidance_scale": plan.guidance_scale,
        "rows": row.memory.rows, "offload": row.memory.offload, "precision": str(model.dtype).removeprefix("torch."),
        "step_s": _rounded(seconds), **_peak(device), **_parts(model, device, step, steps),
        "new_view_s": _rounded(new_view), "new_views": len(pool.cameras), "steps_of_a_run": plan.steps,
    }  # fmt: skip
    told["outside_share"] = _rounded(_outside(told))
    return told


def _limit(device: torch.device, gigabytes: float | None) -> None:
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / whole) if gigabytes else 1.0)


def _peak(device: torch.device) -> dict[str, float]:
    """In GB: of the tensors, and with what torch holds for later ones; of the whole process where there is no card."""
    if device.type != "cuda":
        return {"peak_gb": _rounded(peak_memory_mb() / 1e3)}
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"peak_gb": _rounded(allocated / 1e9), "reserved_gb": _rounded(reserved / 1e9)}


def _parts(model: object, device: torch.device, step: Callable[[], float], steps: int) -> dict[str, float]:
    """Seconds a step in the network (a control's included), in the autoencoder, and in moving them; with clocks in it,
    a step takes `clocked_s`."""
    clocks = {name: Clock(device) for name in ("network", "autoencoder", "moving")}
    vae = getattr(model, "vae", None)
    watched = [(module, "network") for module in model.modules() if module is not vae]
    watched += [(part, "autoencoder") for part in (vae.encoder, vae.decoder)] if vae is not None else []
    hooks = []
    for module, name in watched:
        hooks.append(module.register_forward_pre_hook(clocks[name].begin))
        hooks.append(module.register_forward_hook(clocks[name].end))
    own = model.bring

    def bring(*modules: torch.nn.Module) -> None:
        clocks["moving"].begin()
        own(*modules)
        clocks["moving"].end()

    model.bring = bring
    try:
        total = sum(step() for _ in range(steps))
    finally:
        del model.bring
        for hook in hooks:
            hook.remove()
    each = {f"{name}_s": _rounded(clock.total / steps) for name, clock in clocks.items()}
    return {**each, "clocked_s": _rounded(total / steps)}


def _outside(told: dict) -> float:
    """The share of a step outside network and autoencoder, moving them included; new views shared out over a run."""
    inside = told["network_s"] + told["autoencoder_s"]
    looked = told["new_views"] * told["new_view_s"] / told["steps_of_a_run"]
    return (told["clocked_s"] - inside + looked) / (told["clocked_s"] + looked)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def markdown(results: dict) -> str:
    """The table of docs/performance.md. Names what was not measured, and a figure that misses what was wanted."""
    machine, toy = results["machine"], TOY in results["machine"]["device"]
    models = "Tiny models, whose figures mean nothing" if toy else "Published architectures with random weights"
    rows = [name for name in (*(row.name for row in ROWS), RENDERER) if name in results["rows"]]
    lines = [
        "# Speed and memory with models of full size", "",
        f"Made by `python -m backend evaluate performance` on {machine['device']}, torch {machine['torch']}. {models}; "
        "four views a step, with and without the prompt.", "",
        "| model | pictures | s a step | network | autoencoder | moving | outside | peak GB |", "|---" * 8 + "|",
    ]  # fmt: skip
    for name in rows:
        told = results["rows"][name]
        if "failed" in told:
            lines.append(f"| {name} | {told['failed']} |||||||")
        elif name != RENDERER:
            cells = [told[f"{part}_s"] for part in ("step", "network", "autoencoder", "moving")]
            missed = not toy and "SDXL" in name and "within" not in name and told["outside_share"] > WANTED_SHARE
            share = f"{100 * told['outside_share']:.1f} %" + (" (missed: 5 % wanted)" if missed else "")
            peak = told.get("reserved_gb", told["peak_gb"])
            lines.append(f"| {name} | {told['size']} | {' | '.join(map(str, cells))} | {share} | {peak} |")
    if RENDERER in rows:
        told = results["rows"][RENDERER]
        lines += ["", f"The renderer alone, forward and backward of {told['pictures']} pictures of {told['size']} with "
                  f"maps of {told['texture']}: {told['ms']} ms."]  # fmt: skip
    missing = [name for name in (*(row.name for row in ROWS), RENDERER) if name not in rows]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join((*lines, ""))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("evaluate performance", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path, help="write the table too")
    parser.add_argument("--only", action="append", choices=[*(row.name for row in ROWS), RENDERER], metavar="NAME",
                        help="one row; may be given again")
    parser.add_argument("--again", action="store_true", help="measure also what FILE has")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rasterizer", choices=protocol.RASTERIZERS, default="auto")
    parser.add_argument("--toy", action="store_true", help="tiny models, on the CPU where there is no CUDA")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.toy:
        parser.error("There is no CUDA device here, and models of full size need one. --toy shows on any machine that "
                     "the program works.")  # fmt: skip
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    machine = {"device": f"{named} {TOY}" if options.toy else named, "torch": torch.__version__}
    results = json.loads(options.json.read_text("utf-8")) if options.json.exists() and not options.again else {}
    if results.get("machine", machine) != machine:
        parser.error(f"{options.json} is from another machine: {results['machine']}. Choose another file, or --again.")
    results = {"machine": machine, "rows": results.get("rows", {})}
    mesh = torus(24, 12) if options.toy else torus(270, 135)
    work: dict[str, Callable[[], dict[str, object]]] = {
        row.name: lambda row=row: measure(row, device, mesh, options.steps, options.rasterizer, options.toy)
        for row in ROWS
    }
    sizes = (32, 64) if options.toy else (512, 2048)
    work[RENDERER] = lambda: renderer(device.type, *sizes, options.rasterizer, None)
    for name in options.only or work:
        if name in results["rows"] and "failed" not in results["rows"][name]:
            continue
        try:
            results["rows"][name] = work[name]()
        except (torch.OutOfMemoryError, MemoryError) as error:
            results["rows"][name] = {"failed": f"out of memory: {' '.join(str(error).split())[:200]}"}
        print(name, json.dumps(results["rows"][name]), flush=True)
        protocol.write_beside(options.json, json.dumps(results, indent=1).encode())
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    if options.markdown:
        protocol.write_beside(options.markdown, markdown(results).encode())
    return 0
