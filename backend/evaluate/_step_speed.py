# SPDX-License-Identifier: Apache-2.0
"""How long a step of the optimiser takes, and what of it is the model's: parts of `evaluate speed`."""

from __future__ import annotations

import subprocess
import sys
import time

import torch

from addon import protocol

from .. import ggx_tables, lighting, optimisation, planning, views
from ..mesh import Mesh
from ..models import ModelShelf
from ..rasterize import Triangles
from ._child import child
from ._known import MATERIALS, Oracle, image
from ._shapes import torus
from .recovery import plan_for

PROMPT = "red plastic"
STEPS, WARM_UP = 12, 4


def step(quality: str = "standard") -> dict[str, object]:
    """A step of the built-in prior: CPU time in its network, in its own renders around that, and in ours."""
    model = ModelShelf().get(protocol.BUILT_IN_MODEL, torch.device("cpu"))
    model.set_prompt(PROMPT, "")
    plan = planning.make_plan(protocol.TextureRequest(prompt=PROMPT, quality=quality), model)
    pool = new_pool(torus(), plan.render_size, "cpu")
    network, prior = Clock(), Clock()
    hooks = model.unet.register_forward_pre_hook(network.begin), model.unet.register_forward_hook(network.end)
    predict = model.predict

    def timed(*arguments: object) -> object:
        prior.begin()
        try:
            return predict(*arguments)
        finally:
            prior.end()

    model.predict = timed
    totals, (networks, priors) = run_steps(plan, model, pool, (network, prior))
    for hook in hooks:
        hook.remove()
    # The mean: not every step is alike, since what pictures tell is looked at in every third.
    total, inside, asked = (sum(times) / len(times) for times in (totals, networks, priors))
    return {
        "quality": quality, "views": plan.views, "render_size": plan.render_size, "finest": plan.finest,
        "step_cpu_ms": round(1e3 * total, 1), "network_cpu_ms": round(1e3 * inside, 1),
        "prior_cpu_ms": round(1e3 * asked, 1), "outside_network_cpu_ms": round(1e3 * (total - inside), 1),
        "outside_prior_cpu_ms": round(1e3 * (total - asked), 1),
        "outside_network_share": round((total - inside) / total, 3),
        "outside_prior_share": round((total - asked) / total, 3),
    }  # fmt: skip


class Clock:
    """CPU seconds between `begin` and `end`, added up; usable as hooks of a torch module."""

    def __init__(self) -> None:
        self.total = self.began = 0.0

    def begin(self, *_: object) -> None:
        self.began = time.process_time()

    def end(self, *_: object) -> None:
        self.total += time.process_time() - self.began


def run_steps(plan, model, pool, clocks: tuple[Clock, ...] = ()) -> tuple[list[float], list[list[float]]]:
    """CPU seconds of each of STEPS steps in the middle of a run, with all views at hand; and of each of `clocks`."""
    tables = ggx_tables.load()
    state = optimisation.new_state(plan, torch.device("cpu"))
    # What a model keeps of a view is made once in a run, and a run of 900 steps looks at each view 25 times.
    for first in range(0, len(pool.cameras), 4):
        indices = list(range(first, min(first + 4, len(pool.cameras))))
        lights = lighting.sample(len(indices), torch.Generator().manual_seed(first))
        scene = pool.scene(indices, lights, plan.pattern_scale, optimisation.pattern_offset(plan.seed))
        count = len(indices)
        noisy = torch.zeros(count, 3, pool.size, pool.size)
        model.predict(noisy, torch.full((count,), 500), scene, plan.guidance_scale != 1)
    totals: list[float] = []
    parts: list[list[float]] = [[] for _ in clocks]
    for number in range(WARM_UP + STEPS):
        state.step = plan.steps // 2 + number
        began, before = time.process_time(), [clock.total for clock in clocks]
        optimisation.step(state, plan, model, pool, tables)
        if number >= WARM_UP:
            totals.append(time.process_time() - began)
            for part, clock, start in zip(parts, clocks, before, strict=True):
                part.append(clock.total - start)
    return totals, parts


def size_ratio(sizes: tuple[int, int] = (1024, 4096)) -> dict[str, object]:
    """A step with the larger output beside one with the smaller, by turns."""
    model = Oracle(image(MATERIALS["smooth"], 256), 64, ggx_tables.load())
    pool = new_pool(torus(), 64, "cpu")
    least_of = {}
    for output in (*sizes, *sizes):
        request = protocol.TextureRequest(prompt=PROMPT, texture_size=output)
        totals, _ = run_steps(planning.make_plan(request, model), model, pool)
        least_of[output] = min(least_of.get(output, 1e9), *totals)
    small, large = (least_of[size] for size in sizes)
    return {
        **{f"cpu_ms_{size}": round(1e3 * least_of[size], 1) for size in sizes}, "ratio": round(large / small, 3),
    }  # fmt: skip


def busy(size: int = 64, texture: int = 256) -> dict[str, object]:
    """Steps under the launcher's settings, alone and beside a process that is busy all the time."""
    quiet = child(step_times, str(size), str(texture))
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        loud = child(step_times, str(size), str(texture))
    finally:
        spinner.kill()
        spinner.wait()
    return {"quiet": quiet, "busy": loud, "times_slower": round(loud["ms"] / quiet["ms"], 2)}


def step_times(size: str, texture: str) -> dict[str, float]:
    model = Oracle(image(MATERIALS["smooth"], int(texture)), int(size), ggx_tables.load())
    pool, plan = new_pool(torus(), int(size), "cpu"), plan_for(int(texture), int(size), 400)
    run_steps(plan, model, pool)
    state, tables, walls = optimisation.new_state(plan, torch.device("cpu")), ggx_tables.load(), []
    for number in range(WARM_UP + 2 * STEPS):
        began = time.monotonic()
        state.step = plan.steps // 2 + number
        optimisation.step(state, plan, model, pool, tables)
        walls.append(time.monotonic() - began)
    middle = sum(walls[WARM_UP:]) / len(walls[WARM_UP:])
    return {"ms": round(1e3 * middle, 1), "threads": torch.get_num_threads()}


def new_pool(mesh: Mesh, size: int, device: str, rasterizer: str = "auto") -> views.ViewPool:
    mask = torch.from_numpy(mesh.face_mask)
    generator = torch.Generator().manual_seed(0)
    return views.new_pool(Triangles.of(mesh, device), mask, size, generator, rasterizer)
