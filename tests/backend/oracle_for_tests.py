# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that knows the answer, for the tests: it renders known maps. And what compares a result with them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backend import ggx_tables, lighting, material, optimisation, views
from backend.diffusion.interface import Prediction, Scene
from backend.distillation import Options
from backend.optimisation import Plan, State
from backend.rasterize import GBuffer, Triangles
from backend.shading import SurfaceMaps, linear_to_srgb, shade, srgb_to_linear

# Stored values (N, 7) in 0..1 of a material at points: base colour, metallic, roughness, normal x and y.
Known = Callable[[GBuffer], Tensor]


def image(paint: Callable[[Tensor, Tensor], Tensor], size: int) -> Tensor:
    """Stored values (7, S, S) of `paint(u, v) -> (..., 7)` at texel centres; row 0 is v = 0."""
    centre = (torch.arange(size) + 0.5) / size
    v, u = torch.meshgrid(centre, centre, indexing="ij")
    return paint(u, v).permute(2, 0, 1)


def from_image(stored: Tensor) -> Known:
    """Look stored values (7, S, S) up with mips: the ordinary trilinear lookup, written here a second time."""
    levels = [stored[None]]
    while levels[-1].shape[-1] > 1:
        levels.append(torch.nn.functional.avg_pool2d(levels[-1], 2))

    def look_up(gbuffer: GBuffer) -> Tensor:
        # Half a level sharper than one texel a pixel, as samplers with anisotropy are.
        wanted = torch.log2((gbuffer.footprint * stored.shape[-1]).clamp(min=1e-6)) - 0.5
        wanted = wanted.clamp(0, len(levels) - 1)
        grid = (gbuffer.uv * 2 - 1).view(1, -1, 1, 2)
        total = torch.zeros(len(wanted), 7)
        for number, level in enumerate(levels):
            share = (1 - (wanted - number).abs()).clamp(min=0)
            values = torch.nn.functional.grid_sample(level, grid, padding_mode="border", align_corners=False)
            total += share[:, None] * values[0, :, :, 0].T
        return total

    return look_up


def render(known: Known, gbuffer: GBuffer, lights: lighting.Lights) -> Tensor:
    """Display values (N, 3) in 0..1 of the known maps at the points."""
    stored = known(gbuffer)
    xy = stored[:, 5:] * 2 - 1
    normal = torch.cat((xy, (1 - (xy**2).sum(1, keepdim=True)).clamp(min=0).sqrt()), dim=1)
    maps = SurfaceMaps(srgb_to_linear(stored[:, :3]), stored[:, 3], stored[:, 4], normal)
    return linear_to_srgb(shade(gbuffer, maps, lights, ggx_tables.load()))


@dataclass
class Oracle:
    """A Denoiser whose clean picture is always the render of `known` from the same camera under the same lights.

    Without the prompt it says "black", so that a guidance scale other than 1 shows.
    """

    known: Known
    render_size: int = 64
    name: str = "oracle"
    guidance_scale: float = 1.0
    background: float | None = 0.5

    @property
    def alphas_cumprod(self) -> Tensor:
        return torch.cos(torch.linspace(0.02, 1.55, 1000)) ** 2

    def set_prompt(self, prompt: str, negative_prompt: str) -> tuple[str, ...]:
        return ()

    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene, guided: bool = True) -> Prediction:
        behind = torch.full((*scene.gbuffer.coverage.shape, 3), self.background * 2 - 1)
        rendered = render(self.known, scene.gbuffer, scene.lights) * 2 - 1
        x0_hat = scene.gbuffer.picture(rendered, behind).permute(0, 3, 1, 2)
        return Prediction(x0_hat, -torch.ones_like(x0_hat))


def plan_for(steps: int, render_size: int, finest: int, seed: int = 0, **changes) -> Plan:
    """A plan that trusts the model: no guidance beyond it, no prior of the maps of our own."""
    settings = {
        "views": 4, "guidance": "clamped", "guidance_scale": 1.0, "pattern_scale": 1.0, "rescale": 0.0,
        "detail_decay": 0.0, "binary_metallic": 0.0, "damping": 1e-3, "rate": 0.5, "rate_end": 0.1,
        "options": Options(weighting="uniform"),
        **changes,
    }  # fmt: skip
    return Plan(steps=steps, render_size=render_size, finest=finest, seed=seed, **settings)


def optimise(model, mesh, plan: Plan) -> State:
    """All steps of `plan`."""
    state = optimisation.new_state(plan, torch.device("cpu"))
    pool = new_pool(mesh, plan.render_size, plan.seed)
    tables = ggx_tables.load()
    while state.step < plan.steps:
        optimisation.step(state, plan, model, pool, tables)
    return state


def new_pool(mesh, size: int, seed: int) -> views.ViewPool:
    mask = torch.from_numpy(mesh.face_mask)
    return views.new_pool(Triangles.of(mesh), mask, size, torch.Generator().manual_seed(seed))


def psnr(one: Tensor, other: Tensor) -> float:
    return -10 * math.log10(float(((one.clamp(0, 1) - other.clamp(0, 1)) ** 2).mean()) + 1e-12)


def baked(state: State, mesh, size: int) -> tuple[Tensor, Tensor]:
    """What the run leaves behind: stored values (7, S, S), row 0 at v = 0, gutters filled, and coverage (S, S)."""
    from backend.maps import fill_uncovered

    where = material.texels(mesh, size)
    maps, covered = material.bake(state.average, where), material.coverage(where)
    stacked = torch.cat((maps["base_color"], maps["metallic"], maps["roughness"], maps["normal"][..., :2]), dim=2)
    return fill_uncovered(stacked, covered).flip(0).permute(2, 0, 1).contiguous(), covered.flip(0)


def unseen_views(mesh, size: int, count: int = 4, seed: int = 987) -> tuple[GBuffer, lighting.Lights]:
    """Full views and close-ups of a seed that no run uses, each under lights of its own."""
    pool = new_pool(mesh, size, seed)
    picks = list(range(count)) + list(range(pool.full, pool.full + 2))
    return pool.gbuffer(picks), lighting.sample(len(picks), torch.Generator().manual_seed(seed + 1))


def relit_psnr(known: Known, found: Known, mesh, size: int) -> tuple[float, float]:
    """(over all views, worst view) in dB over object pixels, in display values."""
    gbuffer, lights = unseen_views(mesh, size)
    wanted, got = render(known, gbuffer, lights), render(found, gbuffer, lights)
    each = [psnr(wanted[gbuffer.view == i], got[gbuffer.view == i]) for i in range(int(gbuffer.view.max()) + 1)]
    return psnr(wanted, got), min(each)


def result_of(work):
    """What a generator returns that yields only so that one may stop waiting."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
