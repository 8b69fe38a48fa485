# SPDX-License-Identifier: Apache-2.0
"""What each guidance and option is worth on the built-in prior: paired runs, each beside the default.

    python -m backend evaluate ablation --json FILE [--markdown FILE] [--minutes N] [--seeds N] [--steps N] [--views N]

One command that goes on where it was broken off: FILE holds every run as soon as it is made. All configurations run
for one prompt, shape and seed before the next, and all prompts and shapes before the next seed, so that the table is
whole over fewer seeds long before it is done; --minutes ends it early. The oracles (_oracles.py), a few minutes, come
first. A configuration that the model refuses is asked once, and its sentence stands in the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor

from addon import protocol
from addon.protocol import JobFolder, TextureRequest

from .. import ggx_tables, lighting, material, optimisation, picture, planning, seams, starts, views
from .. import run as run_room
from ..diffusion import built_in
from ..diffusion.interface import Denoiser, ModelError
from ..distillation import negative_prompt
from ..guidance import GUIDANCE
from ..mesh import Mesh, load_job_mesh, save_job_mesh
from ..models import ModelShelf
from ..prior import conditions, instances
from ..prior.vocabulary import read
from ..rasterize import GBuffer, Triangles
from . import _ablation_table, _oracles, prior
from . import _known as known
from .recovery import as_written, unseen_scene
from .seams import figures

PROMPTS = ("brushed copper", "teal plastic", "red brick", "rusty iron")  # metal, dielectric, pattern, mixture
SHAPES = ("vase", "knot")
SEEDS, STEPS, VIEWS = 2, 24, 2
AT_ONCE = 8  # views
SIZE = 256  # texels of the maps
RELIT_SIZE = 40  # pixels to a side of the unseen pictures
DRAWS = 6  # instances of the generator that a result may be


@dataclass(frozen=True)
class Configuration:
    """A request that differs from the default in one thing. `beside`: what it is compared with besides the default."""

    name: str
    group: str
    request: dict[str, object] = field(default_factory=dict)
    beside: str = ""


def _options(name: str, beside: str = "", scale: float | None = None, **options: str) -> Configuration:
    request = {"options": options, "guidance_scale": scale}
    return Configuration(name, "options" if scale is None else "options under exaggeration", request, beside)


STRONG, NEGATIVE = "w = 3", "w = 2"
CONFIGURATIONS = (
    Configuration("default", "guidance"),
    *(Configuration(name, "guidance", {"guidance": name}) for name in GUIDANCE if name != "clamped"),
    Configuration("k_step, each target used 4 times", "guidance", {"guidance": "k_step", "options": {"reuse": "4"}}),
    Configuration("csd, w = 7.5", "guidance", {"guidance": "csd", "guidance_scale": 7.5}),
    _options("weighting uniform", weighting="uniform"),
    _options("weighting min_snr", weighting="min_snr"),
    _options("timesteps drawn alone, not stratified", stratified="false"),
    _options("timesteps 0.02 to 0.98 throughout", highest="0.98,0.98", lowest="0.02,0.02"),
    _options("timesteps down to 0.02 to 0.3", highest="0.98,0.3", lowest="0.3,0.02"),
    _options("timesteps annealed linearly", anneal="linear"),
    # With a negative prompt the built-in model's own w is 2.
    Configuration("negative prompt", "options", {"negative_prompt": "black rubber"}, NEGATIVE),
    _options("perp_neg", perp_neg="true"),
    _options("joint 2x2 views", joint_views="true"),
    _options("deep image prior", deep_image_prior="true"),
    _options(NEGATIVE, scale=2.0),
    _options(STRONG, scale=3.0),
    _options("w = 3, no rescale", STRONG, 3.0, rescale="0"),
    _options("w = 3, full rescale", STRONG, 3.0, rescale="1"),
    _options("w = 3, dynamic thresholding", STRONG, 3.0, rescale="0", threshold_percentile="0.95"),
    _options("w from 3 to 1", STRONG, 3.0, guidance_scale_end="1"),
    Configuration("start: four views", "starts", {"start": "four_views"}),
    Configuration("start: latent paint", "starts", {"start": "latent_paint"}),
)


@dataclass(frozen=True)
class Run:
    """One row to be: JSON calls `configuration` by its name."""

    configuration: Configuration
    prompt: str
    shape: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.configuration.name, self.prompt, self.shape, self.seed


def runs(seeds: int) -> Iterator[Run]:
    """All of them, in the order in which they are worth most."""
    for seed in range(seeds):
        for prompt in PROMPTS:
            for shape in SHAPES:
                for configuration in CONFIGURATIONS:
                    yield Run(configuration, prompt, shape, seed)


@dataclass(frozen=True)
class Shape:
    """A held-out mesh, where its texels lie, and how it is drawn."""

    mesh: Mesh
    texels: material.Texels
    covered: Tensor
    still: picture.Still


@dataclass(frozen=True)
class Meant:
    """What the generator means by a prompt, seen by ten cameras under ten lights that no run has: display colours
    (N, 3) in Lab, and mean chroma of the base colour, of each of DRAWS draws."""

    gbuffer: GBuffer
    lights: lighting.Lights
    lab: list[np.ndarray]
    chroma: list[float]


@cache
def shape_of(kind: str) -> Shape:
    with tempfile.TemporaryDirectory() as folder:
        job = JobFolder(Path(folder))
        save_job_mesh(job.mesh, prior.held_out_mesh(kind, 0))
        mesh = load_job_mesh(job.mesh)
    where = material.texels(mesh, SIZE)
    return Shape(mesh, where, material.coverage(where), picture.still(Triangles.of(mesh)))


@cache
def facts_of(prompt: str, kind: str) -> dict[str, np.ndarray]:
    return prior.generator_facts(read(prompt).prompt, shape_of(kind).mesh)


@cache
def meant_by(prompt: str, kind: str, seed: int) -> Meant:
    return meant_on(shape_of(kind).mesh, prompt, seed)


def meant_on(mesh: Mesh, prompt: str, seed: int) -> Meant:
    """With the pattern where a run of `seed` has it."""
    tables, generator = ggx_tables.load(), torch.Generator().manual_seed(5)
    gbuffer, lights = unseen_scene(mesh, RELIT_SIZE)
    normal = torch.nn.functional.normalize(gbuffer.normal, dim=1)
    textures = instances.textures_round(gbuffer.position + optimisation.pattern_offset(seed), normal)
    lab, chroma = [], []
    for _ in range(DRAWS):
        surface = instances.surface_at(instances.draw(read(prompt).prompt, generator), normal, textures)
        lab.append(rgb2lab(conditions.render(gbuffer, surface, lights, tables).numpy()))
        chroma.append(mean_chroma(surface.base_color))
    return Meant(gbuffer, lights, lab, chroma)


def mean_chroma(base_color: Tensor) -> float:
    """Of display values (N, 3), in CIELAB."""
    return float(np.hypot(*rgb2lab(base_color.numpy())[:, 1:].T).mean())


def relit(found: Tensor, meant: Meant) -> tuple[float, float]:
    """(CIEDE2000 under the unseen lights, chroma above the generator's) of stored values (7, S, S).

    One draw of the generator must explain the maps from every side and under every light: the nearest one is chosen
    over all ten pictures together, and the difference is that of pixels with it, averaged picture by picture.
    """
    stored = known.look_up(found, meant.gbuffer)
    lab = rgb2lab(known.render(stored, meant.gbuffer, meant.lights, ggx_tables.load()).numpy())
    view = meant.gbuffer.view.numpy()
    per_view = np.bincount(view).clip(min=1)
    apart = [float((np.bincount(view, deltaE_ciede2000(lab, other)) / per_view).mean()) for other in meant.lab]
    nearest = int(np.argmin(apart))
    return apart[nearest], mean_chroma(stored[:, material.BASE_COLOR]) - meant.chroma[nearest]


def seam_jump(image: Tensor, where: material.Texels) -> float:
    """Mean difference of the base colour across the UV cuts of stored values (S, S, 7), row 0 at the top."""
    return figures(seams.jumps(where.cuts, image).abs())["base_color"]["mean"]


@lru_cache(maxsize=2)
def pool_of(model: Denoiser, prompt: str, kind: str, seed: int, staging: str, size: int) -> views.ViewPool:
    """The cameras of a run, looked through already, with what the model keeps of each view: it is the same for all
    configurations, and the first of them shall not pay for the others."""
    mesh = shape_of(kind).mesh
    mask, generator = torch.from_numpy(mesh.face_mask), torch.Generator().manual_seed(seed)
    pool = views.new_pool(Triangles.of(mesh), mask, size, generator, staging=staging)
    model.set_prompt(prompt, "")
    used = [i for i in range(len(pool.cameras) if staging == "own" else pool.full) if pool.look(i).points]
    for indices in (used[start : start + AT_ONCE] for start in range(0, len(used), AT_ONCE)):
        scene = pool.scene(indices, lighting.uniform(len(indices)), 1.0, optimisation.pattern_offset(seed))
        noise = torch.zeros(len(indices), 3, size, size)
        model.predict(noise, torch.full((len(indices),), 500), scene)
    return pool


def textured(request: TextureRequest, kind: str, model: Denoiser) -> tuple[Tensor, float]:
    """Stored values (7, SIZE, SIZE) as they would be written, row 0 at v = 0, and CPU seconds. As texturing.run,
    without its files: what a panel is shown by the clock would count as work. Raises ModelError."""
    shape = shape_of(kind)
    plan = replace(planning.make_plan(request, model), finest=SIZE)
    pool = pool_of(model, request.prompt, kind, plan.seed, plan.options.staging, plan.render_size)
    began = time.process_time()
    model.set_prompt(request.prompt, negative_prompt(request.guidance, request.negative_prompt, model))
    plan = replace(planning.make_plan(request, model), finest=SIZE)  # a negative prompt has a say in w
    state = optimisation.new_state(plan, torch.device("cpu"))
    optimisation.add_companion(state, plan, model)
    with tempfile.TemporaryDirectory() as folder:
        run = run_room.Run(
            request, JobFolder(Path(folder)), plan, state, pool, shape.mesh, model, [], shape.still, shape.texels,
            model.name,
        )  # fmt: skip
        deque(starts.begin(run, None, lambda: None), maxlen=0)
    tables = ggx_tables.load()
    while state.step < plan.steps:
        optimisation.step(state, plan, model, pool, tables)
    found = as_written(material.bake(state.average, shape.texels), shape.covered)
    return found, time.process_time() - began


def measure(run: Run, shelf: ModelShelf, steps: int, views: int) -> dict[str, float]:
    """One row's figures. Raises ModelError where the model refuses the configuration."""
    request = TextureRequest(
        run.prompt, texture_size=protocol.TEXTURE_SIZES[0], seed=run.seed, steps=steps, views=views, device="cpu",
        **run.configuration.request,
    )  # fmt: skip
    shape = shape_of(run.shape)
    found, seconds = textured(request, run.shape, shelf.get(request.model, torch.device("cpu")))
    image = found.permute(1, 2, 0).flip(0)
    texels = image[shape.covered].numpy()
    maps = {"base_color": texels[:, :3], "metallic": texels[:, 3], "roughness": texels[:, 4]}
    errors = prior.compare(maps, facts_of(run.prompt, run.shape))
    difference, chroma = relit(found, meant_by(run.prompt, run.shape, run.seed))
    return {
        **{key: float(errors[key]) for key in ("ciede2000", "metallic_error", "roughness_error")},
        "relit": difference,
        "saturation": chroma,
        "seam_jump": seam_jump(image, shape.texels),
        "cpu_seconds": seconds,
    }


@dataclass
class Results:
    """The file: rows, refusals and oracles by name."""

    path: Path
    told: dict[str, object]

    @staticmethod
    def of(path: Path, settings: dict[str, int | str]) -> Results:
        """Raises ValueError where the file was made with other settings."""
        told = {"settings": settings, "refused": {}, "rows": [], "view_words": {}, "baked_light": {}}
        if path.exists():
            told = json.loads(path.read_text("utf-8"))
            if told.get("settings") != settings:
                raise ValueError(f"{path} holds runs with {told.get('settings')}, not with {settings}. Name another.")
        return Results(path, told)

    def done(self) -> set[tuple]:
        return {(row["configuration"], row["prompt"], row["shape"], row["seed"]) for row in self.told["rows"]}

    def write(self) -> None:
        """One row a line."""
        others = [f"{json.dumps(key)}: {json.dumps(self.told[key])}" for key in self.told if key != "rows"]
        rows = ",\n".join(json.dumps(row) for row in self.told["rows"])
        text = "{\n" + ",\n".join([*others, f'"rows": [\n{rows}\n]']) + "\n}\n"
        protocol.write_beside(self.path, text.encode())


def tasks(results: Results, seeds: int, shelf: ModelShelf, steps: int, views: int) -> Iterator[tuple[str, object]]:
    """(what, a function that makes it and adds it to the results), of all that is missing yet."""
    yield from _oracle_tasks(results)
    done = results.done()
    for run in runs(seeds):
        if run.key not in done and run.configuration.name not in results.told["refused"]:
            yield " / ".join(map(str, run.key)), partial(_add_run, results, run, shelf, steps, views)


def _oracle_tasks(results: Results) -> Iterator[tuple[str, object]]:
    for method in GUIDANCE:
        if method not in results.told["view_words"]:
            yield f"view words / {method}", partial(_add_view_words, results, method)
        for family in _oracles.FAMILIES:
            if family not in results.told["baked_light"].get(method, {}):
                yield f"baked light / {method} / {family}", partial(_add_baked_light, results, method, family)


def _add_run(results: Results, run: Run, shelf: ModelShelf, steps: int, views: int) -> None:
    try:
        figures = measure(run, shelf, steps, views)
    except ModelError as error:
        results.told["refused"][run.configuration.name] = str(error)
        return
    where = dict(zip(("configuration", "prompt", "shape", "seed"), run.key, strict=True))
    results.told["rows"].append(where | {key: round(value, 5) for key, value in figures.items()})


def _add_view_words(results: Results, method: str) -> None:
    results.told["view_words"][method] = _oracles.view_words(method)


def _add_baked_light(results: Results, method: str, family: str) -> None:
    light = {"wanted": _oracles.baked_light(method, family), "not": _oracles.baked_light(method, family, wanted=False)}
    light = {key: round(share, 4) for key, share in light.items()}
    results.told["baked_light"].setdefault(method, {})[family] = light


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("evaluate ablation", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after this time")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--views", type=int, default=VIEWS)
    options = parser.parse_args(arguments)
    if min(options.seeds, options.steps, options.views) < 1:
        parser.error("--seeds, --steps and --views must be at least 1.")
    try:
        settings = {"steps": options.steps, "views": options.views, "prior": built_in.checksum()}
        results = Results.of(options.json, settings)
    except ValueError as error:
        parser.error(str(error))
    began, shelf = time.monotonic(), ModelShelf()
    for what, make in tasks(results, options.seeds, shelf, options.steps, options.views):
        if time.monotonic() - began > 60 * options.minutes:
            print("The time is up; the same command goes on from here.")
            break
        make()
        results.write()
        print(f"{(time.monotonic() - began) / 60:6.1f} min  {what}", flush=True)
    results.write()
    if options.markdown:
        text = _ablation_table.document(results.told, CONFIGURATIONS, len(PROMPTS) * len(SHAPES) * options.seeds)
        protocol.write_beside(options.markdown, text.encode())
    return 0
