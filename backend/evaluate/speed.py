# SPDX-License-Identifier: Apache-2.0
"""How long Patina's own work takes: beside Mitsuba 3, beside the built-in network, with a fine mesh, with large maps.

    python -m backend evaluate speed --json FILE [--parts renderer,rasteriser,step,setup,size,busy]
        [--device cuda] [--rasteriser nvdiffrast] [--network-ms MS]

All figures of a part come from one run; the ratios are what counts. FILE keeps the results of parts measured before.
On CUDA only the renderer is measured, at 4 x 512 x 512; with --network-ms, the time of one step of a large network on
the same card, its share of the whole step is told too. Mitsuba is optional: pip install mitsuba, and libLLVM 16 or
newer (with several, DRJIT_LIBLLVM_PATH says which).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from addon import protocol

from .. import ggx_tables, lighting, material, rasterizers
from ..mesh import load_job_mesh, save_job_mesh
from ..rasterize import look
from ..shading import linear_to_srgb, shade
from ._child import child
from ._shapes import torus
from ._step_speed import busy, new_pool, size_ratio, step

VIEWS = [0, 1, 2, 3]


def renderer(device: str, size: int, texture: int, rasterizer: str, network_ms: float | None) -> dict[str, object]:
    """Forward and backward of four pictures with respect to maps of `texture` texels."""
    mesh = torus()
    pool = new_pool(mesh, size, device, rasterizer)
    pool.gbuffer(VIEWS)
    lights, tables, maps = one_light().to(device), ggx_tables.load().to(device), material.new_maps(texture, device)

    def picture() -> None:
        gbuffer = pool.gbuffer(VIEWS)
        stored = material.look_up(maps, gbuffer)
        linear_to_srgb(shade(gbuffer, material.surface_maps(stored), lights, tables)).mean().backward()
        for parameter in maps.parameters():
            parameter.grad = None

    told = {"pictures": len(VIEWS), "size": size, "texture": texture, "object_pixels": len(pool.gbuffer(VIEWS).pixel)}
    wall, cpu = least(picture, device)
    told |= {"ms": round(1e3 * wall, 1), "cpu_ms": round(1e3 * cpu, 1)}
    if device == "cuda":
        look_wall, _ = least(lambda: look(pool.triangles, pool.cameras, 0, size, pool.rasterizer), device)
        told |= {"gpu": torch.cuda.get_device_name(), "rasteriser": rasterizer}
        told["new_view_ms"] = round(1e3 * look_wall, 1)
    if network_ms is not None:
        told |= {"network_ms": network_ms, "share_of_step": round(1e3 * wall / (1e3 * wall + network_ms), 4)}
    return told


def beside_mitsuba(settings: tuple, timed: int) -> dict[str, object]:
    """`renderer` twice and Mitsuba with the same task in between; the slower of ours counts. Where Mitsuba needs more
    than `timed` samples a pixel, that many are timed, and it takes longer still."""
    ours = renderer(*settings)
    try:
        theirs = child(mitsuba_times, str(ours["size"]), str(ours["texture"]), str(timed))
    except RuntimeError as error:
        said = str(error).splitlines()
        return ours | {"mitsuba": next((line for line in said if "ERROR" in line), said[-1])}
    again = renderer(*settings)
    return ours | {
        "ms_again": again["ms"], "cpu_ms_again": again["cpu_ms"], "mitsuba": theirs,
        "times_faster": round(theirs["ms"] / max(ours["ms"], again["ms"]), 1),
        "times_faster_cpu": round(theirs["cpu_ms"] / max(ours["cpu_ms"], again["cpu_ms"]), 1),
    }  # fmt: skip


def mitsuba_times(size: str, texture: str, timed: str) -> dict[str, object]:
    """In a process of its own: an LLVM that is too old ends the process."""
    from . import _mitsuba

    mesh = torus()
    pool = new_pool(mesh, int(size), "cpu")
    bench = _mitsuba.Bench(mesh, pool.cameras[torch.tensor(VIEWS)], one_light(), int(size), int(texture))
    needed, differences = bench.samples_needed()
    samples = min(needed, int(timed))
    bench.pass_through(1)  # compiles
    wall, cpu = least(lambda: bench.pass_through(samples), "cpu", repeats=1, warm_up=0)
    return {
        "version": bench.mitsuba.__version__, "samples_needed": needed, "differences": differences,
        "samples_timed": samples, "ms": round(1e3 * wall), "cpu_ms": round(1e3 * cpu),
    }  # fmt: skip


def one_light() -> lighting.Lights:
    """The same world and suns for all pictures: Mitsuba has one scene."""
    return lighting.sample(1, torch.Generator().manual_seed(0))[torch.zeros(len(VIEWS), dtype=torch.long)]


def rasteriser(sizes: tuple[tuple[int, int], ...] = ((48, 24), (96, 48), (270, 135))) -> dict[str, object]:
    """A view of 64 x 64 by each rasteriser that is here, for meshes of several sizes; and how far they agree."""
    rows = []
    for across, up in sizes:
        mesh = torus(across, up)
        row: dict[str, object] = {"triangles": mesh.triangles}
        seen = {}
        for name in ("torch", "embree"):
            began = time.process_time()
            try:
                pool = new_pool(mesh, 64, "cpu", name)
            except rasterizers.RasterizerError as error:
                row[name] = str(error)
                continue
            made = time.process_time() - began
            _, cpu = least(lambda pool=pool: look(pool.triangles, pool.cameras, 0, 64, pool.rasterizer), "cpu")
            row[name] = {"pool_cpu_ms": round(1e3 * made, 1), "view_cpu_ms": round(1e3 * cpu, 2)}
            seen[name] = torch.stack([pool.rasterizer(pool.cameras, i, (64,))[0][0] for i in range(8)])
        if len(seen) == 2:
            both = (seen["torch"] >= 0) | (seen["embree"] >= 0)
            same = (seen["torch"] == seen["embree"])[both].float().mean()
            row["same_triangle"] = round(float(same), 5)  # on an edge either neighbour is right
        rows.append(row)
    return {"meshes": rows}


def setup(triangles: int = 1_000_000) -> dict[str, object]:
    """From a job's mesh file to the G-buffer of four pictures, in a process of its own for each rasteriser."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mesh.npz"
        side = max(2, int((triangles / 4) ** 0.5))
        mesh = torus(2 * side, side)
        names = protocol.MESH_ARRAYS
        save_job_mesh(path, {name: getattr(mesh, name) for name in names})
        told: dict[str, object] = {"triangles": mesh.triangles}
        del mesh
        for name in ("torch", "embree"):
            try:
                told[name] = child(setup_times, str(path), name)
            except RuntimeError as error:
                told[name] = str(error).strip().splitlines()[-1]
        return told


def setup_times(path: str, rasterizer: str) -> dict[str, object]:
    from ..run import peak_memory_mb

    before, began, cpu = peak_memory_mb(), time.monotonic(), time.process_time()
    mesh = load_job_mesh(Path(path))
    loaded = time.process_time()
    pool = new_pool(mesh, 64, "cpu", rasterizer)
    pool.gbuffer([0, 1, 50, 51])
    wall, done = time.monotonic() - began, time.process_time()
    pool.look(2)
    return {
        "seconds": round(wall, 2), "cpu_seconds": round(done - cpu, 2), "loading_cpu_seconds": round(loaded - cpu, 2),
        "one_more_view_cpu_ms": round(1e3 * (time.process_time() - done)),
        "peak_mb": peak_memory_mb(), "before_mb": before,
    }  # fmt: skip


def least(work: Callable[[], object], device: str, repeats: int = 5, warm_up: int = 1) -> tuple[float, float]:
    """The least wall and CPU time in seconds of `repeats` calls after `warm_up` ones."""
    walls, cpus = [], []
    for _ in range(warm_up + repeats):
        wall, cpu = time.monotonic(), time.process_time()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        walls.append(time.monotonic() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls[warm_up:]), min(cpus[warm_up:])


PARTS = ("renderer", "rasteriser", "step", "setup", "size", "busy")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("evaluate speed", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rasteriser", default="auto", choices=protocol.RASTERIZERS, help="on CUDA: nvdiffrast")
    parser.add_argument("--network-ms", type=float, help="of one step of a large network on this machine")
    parser.add_argument("--pixels", type=int, help="side of the renderer's pictures (256, on CUDA 512)")
    parser.add_argument("--texture", type=int, default=2048, help="side of the renderer's maps")
    parser.add_argument("--without-mitsuba", action="store_true")
    parser.add_argument("--mitsuba-samples", type=int, default=64, help="timed at most, however many it needs")
    options = parser.parse_args(arguments)
    parts = ["renderer"] if options.device == "cuda" else options.parts.split(",")
    for name in parts:
        if name not in PARTS:
            parser.error(f"There is no part {name!r}; there are {', '.join(PARTS)}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("There is no CUDA device here; --device cpu measures the same on the processor.")
    results = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {}
    results["machine"] = {"processor": _processor(), "cores": os.cpu_count(), "torch": torch.__version__}
    work = {
        "renderer": lambda: _renderer(options), "rasteriser": rasteriser, "step": step, "setup": setup,
        "size": size_ratio, "busy": busy,
    }  # fmt: skip
    for name in parts:
        key = name if options.device == "cpu" else f"{name}_cuda_{options.rasteriser}"
        load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
        results[key] = work[name]() | {"load_before": load, "threads": torch.get_num_threads()}
        print(name, json.dumps(results[key]), flush=True)
        protocol.write_beside(options.json, json.dumps(results, indent=1).encode())
    return 0


def _renderer(options: argparse.Namespace) -> dict[str, object]:
    pixels = options.pixels or (512 if options.device == "cuda" else 256)
    settings = options.device, pixels, options.texture, options.rasteriser, options.network_ms
    alone = options.device == "cuda" or options.without_mitsuba
    return renderer(*settings) if alone else beside_mitsuba(settings, options.mitsuba_samples)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
