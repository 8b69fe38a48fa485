# SPDX-License-Identifier: Apache-2.0
"""Two models that know what they want: one goes by view words, one wants its own light painted into the surface.

Every guidance is run against them; what comes out is a number. Families differ here as real ones do in their timesteps
and in what the noise lives in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import ggx_tables, lighting, material, optimisation, views
from ..diffusion import conversions, drawn
from ..diffusion.interface import Denoiser, Prediction, Scene
from ..diffusion.view_words import VIEWS, view_shares
from ..distillation import published
from ..ggx_tables import GgxTables
from ..mesh import Mesh
from ..rasterize import Triangles
from . import _known as known
from ._shapes import sphere
from .recovery import Recovered, as_written, plan_for
from .recovery import baked_light as share_of_light

SIZE, PICTURE, STEPS, PICTURES = 64, 32, 40, 6
SCALE, RESCALE = 7.5, 0.7  # w and x0-space rescaling where words are asked for, as text-to-image models have them
PLAIN_SCALE = 1.0  # w where light is: what guidance exaggerates no surface can show, and that is not the light's fault
PLAIN = (0.5, 0.5, 0.5, 0.0, 0.6, 0.5, 0.5)
WOOD = (0.72, 0.52, 0.34, 0.0, 0.6, 0.5, 0.5)  # no channel near 0, where shares of the mean mean nothing
COLOURS = dict(
    zip(VIEWS, ((0.8, 0.1, 0.1), (0.1, 0.7, 0.1), (0.1, 0.1, 0.8), (0.8, 0.75, 0.1)), strict=True)
)  # display values


# alpha_bar by timestep, and pixels to a side that one latent stands for.
FAMILIES: dict[str, tuple[Callable[[], Tensor], int]] = {
    "pixels (IF)": (lambda: drawn.cosine_schedule().alphas_cumprod, 1),
    "latents (SD)": (lambda: drawn.latent_schedule().alphas_cumprod, 8),
    "flow (SD3)": (lambda: conversions.flow_alpha_bar(conversions.shifted(1000, 3.0)), 8),
}


@dataclass
class GaussianCompanion:
    """What vsd trains, at its simplest: it takes the run's pictures to be N(mean, variance) in each channel."""

    alphas_cumprod: Tensor
    mean: Tensor | float = 0.0
    variance: Tensor | float = 0.25

    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene) -> Tensor:
        alpha_bar = self.alphas_cumprod.to(noisy)[timestep].view(-1, 1, 1, 1)
        share = alpha_bar * self.variance / (alpha_bar * self.variance + 1 - alpha_bar)
        return self.mean + share * (noisy / alpha_bar.sqrt() - self.mean)

    def learn(self, x0: Tensor, scene: Scene, generator: torch.Generator) -> None:
        self.mean = 0.9 * self.mean + 0.1 * x0.mean((0, 2, 3), keepdim=True)
        self.variance = 0.9 * self.variance + 0.1 * x0.var((0, 2, 3), keepdim=True)


class Painter:
    """A Denoiser (diffusion/interface.py) that reads words and answers with a render of what they mean to it.

    `meant(words, scene)` gives display values (N, 3) in 0..1 at the points; words: "prompt", one of VIEWS, or "" for
    what it paints without a prompt. Pixels are its own space; LatentPainter has latents.
    """

    name, sees_geometry, background, guidance_scale = "oracle", False, 0.5, PLAIN_SCALE

    def __init__(self, meant: Callable[[str, Scene], Tensor], family: str) -> None:
        self.meant, self.render_size = meant, PICTURE
        schedule, self.factor = FAMILIES[family]
        self.alphas_cumprod = schedule()

    def set_prompt(self, prompt: str, negative_prompt: str) -> tuple[str, ...]:
        return ()

    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene, guided: bool = True) -> Prediction:
        return Prediction(self._picture("prompt", scene), self._picture("", scene))

    def predict_words(self, noisy: Tensor, timestep: Tensor, scene: Scene, words: tuple[str, ...]) -> Tensor:
        told = {word: self._picture(word if word in VIEWS else "", scene) for word in dict.fromkeys(words)}
        return torch.stack([told[word][place] for place, word in enumerate(words)])

    def companion(self, seed: int) -> GaussianCompanion:
        return GaussianCompanion(self.alphas_cumprod)

    def _picture(self, words: str, scene: Scene) -> Tensor:
        behind = torch.full((*scene.gbuffer.coverage.shape, 3), self.background * 2 - 1)
        return scene.gbuffer.picture(self.meant(words, scene) * 2 - 1, behind).permute(0, 3, 1, 2)


class LatentPainter(Painter):
    """Its latents are means over blocks of pixels, at about a deviation of 1; decoding cannot bring the rest back."""

    def encode(self, picture: Tensor) -> Tensor:
        return 2 * torch.nn.functional.avg_pool2d(picture, self.factor)

    def decode(self, latent: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latent / 2, scale_factor=self.factor, mode="bilinear")

    def _picture(self, words: str, scene: Scene) -> Tensor:
        return self.encode(super()._picture(words, scene))


def painter(meant: Callable[[str, Scene], Tensor], family: str) -> Painter:
    return (LatentPainter if FAMILIES[family][1] > 1 else Painter)(meant, family)


def by_view_words(tables: GgxTables) -> Callable[[str, Scene], Tensor]:
    """A matt material in the colour of the view words, softly between two, lit by the scene's own lights."""

    def meant(words: str, scene: Scene) -> Tensor:
        count = scene.gbuffer.coverage.shape[0]
        if words == "prompt":
            angles = zip(scene.azimuth_deg.tolist(), scene.elevation_deg.tolist(), strict=True)
            shares = torch.tensor([view_shares(*angle) for angle in angles])
        else:
            shares = torch.tensor([[float(words == view) for view in VIEWS]]).expand(count, -1)
        colour = shares @ torch.tensor(list(COLOURS.values())) if words else torch.full((count, 3), 0.5)
        stored = torch.tensor(PLAIN).repeat(len(scene.gbuffer.view), 1)
        stored[:, material.BASE_COLOR] = colour[scene.gbuffer.view]
        return known.render(stored, scene.gbuffer, scene.lights, tables)

    return meant


def with_own_light(tables: GgxTables, wanted: bool = True) -> Callable[[str, Scene], Tensor]:
    """One brown surface, or a grey one without a prompt, under one light that stands still, whatever lights the scene
    has. Not `wanted`: under the scene's own, as a model paints that bakes nothing in."""

    def meant(words: str, scene: Scene) -> Tensor:
        count = scene.gbuffer.coverage.shape[0]
        fixed = lighting.with_suns(
            lighting.uniform(count, 0.35, suns=0),
            torch.nn.functional.normalize(torch.tensor([0.5, -0.4, 0.77]), dim=0).expand(count, 1, 3),
            torch.full((count, 1, 3), 0.65 * math.pi),
        )
        stored = torch.tensor(WOOD if words else PLAIN).expand(len(scene.gbuffer.view), -1)
        return known.render(stored, scene.gbuffer, fixed if wanted else scene.lights, tables)

    return meant


def plan(method: str, steps: int, scale: float, **options: object) -> optimisation.Plan:
    """How an oracle is distilled: the method as it was published, with w = `scale`."""
    chosen = replace(published(method), **options)
    return plan_for(
        SIZE, PICTURE, steps, guidance=method, guidance_scale=scale, options=chosen, views=PICTURES, normal_from=0.3
    )


def painted(
    model: Denoiser, chosen: optimisation.Plan, mesh: Mesh, tables: GgxTables
) -> tuple[Tensor, material.Texels]:
    """Stored values (7, S, S) as they would be written, row 0 at v = 0, after all steps."""
    state = optimisation.new_state(chosen, torch.device("cpu"))
    mask, generator = torch.from_numpy(mesh.face_mask), torch.Generator().manual_seed(chosen.seed)
    pool = views.new_pool(Triangles.of(mesh), mask, PICTURE, generator, staging=chosen.options.staging)
    optimisation.add_companion(state, chosen, model)
    while state.step < chosen.steps:
        optimisation.step(state, chosen, model, pool, tables)
    where = material.texels(mesh, SIZE)
    return as_written(material.bake(state.average, where), material.coverage(where)), where


# Of a sphere's map: the view words a place belongs to, and (left, right), (low, high) in u and v; u is the azimuth from
# the front (-Y), v the height. What is seen from below has no words of its own and shows those of every side: it is
# there to be told from the top.
PLACES = (
    ("front view", (-0.05, 0.05), (0.4, 0.6)),
    ("side view", (0.20, 0.30), (0.4, 0.6)),
    ("back view", (0.45, 0.55), (0.4, 0.6)),
    ("side view", (0.70, 0.80), (0.4, 0.6)),
    ("overhead view", (-0.25, 0.25), (0.9, 0.98)),
    ("overhead view", (0.25, 0.75), (0.9, 0.98)),
    ("", (0.0, 1.0), (0.02, 0.1)),
)


def view_words(method: str, steps: int = STEPS, **options: object) -> dict[str, float]:
    """Of six places of a sphere, how many are nearer to their own words' colour than any place of other words is, and
    by how much at least (below 0: not). The top is seen from the side as well, so its colour is never pure."""
    tables = ggx_tables.load()
    model = painter(by_view_words(tables), "pixels (IF)")
    found, _ = painted(model, plan(method, steps, SCALE, rescale=RESCALE, **options), sphere(48, 24), tables)
    colours = []
    for _, (left, right), (low, high) in PLACES:
        columns = torch.arange(round(left * SIZE), round(right * SIZE)) % SIZE
        colours.append(found[:3, round(low * SIZE) : round(high * SIZE)][:, :, columns].mean((1, 2)))
    margins = []
    for (words, _, _), colour in zip(PLACES, colours, strict=True):
        if words:
            own = torch.tensor(COLOURS[words])
            rivals = {*VIEWS, ""} - {words} if words == "overhead view" else {*VIEWS} - {words}
            others = [other for (also, _, _), other in zip(PLACES, colours, strict=True) if also in rivals]
            margins.append(float(min((other - own).norm() for other in others) - (colour - own).norm()))
    return {"right": sum(margin > 0 for margin in margins), "places": len(margins), "margin": round(min(margins), 3)}


def baked_light(method: str, family: str, steps: int = STEPS, wanted: bool = True) -> float:
    """The light that the method leaves in the base colour (recovery.baked_light) by a model that wants it there, or
    does not (`wanted`)."""
    tables, mesh = ggx_tables.load(), sphere(48, 24)
    model = painter(with_own_light(tables, wanted), family)
    found, where = painted(model, plan(method, steps, PLAIN_SCALE), mesh, tables)
    judged = material.coverage(where).flip(0)
    return share_of_light(Recovered(found, found, judged, where, 0.0), mesh)
