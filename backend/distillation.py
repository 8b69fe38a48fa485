# SPDX-License-Identifier: Apache-2.0
"""What all guidance methods share: which timesteps, which weight, how far a target may go.

Knows no maps, lights or cameras: pictures in, where the model wants them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .diffusion.interface import Companion, Denoiser, KnowsMaterials, Scene, decode, encode
from .guidance import GUIDANCE, GuidanceError, Look
from .tiling import FOUR, tile, untile

MOST_CALLS = 1000  # of the model in one step: there are no more timesteps


@dataclass(frozen=True)
class Options:
    """What combines with every method. Raises ValueError with a sentence.

    guidance_scale_end: w at the end of each stage, linear from the plan's; None: it stays.
    rescale: 0..1, how far mean and contrast of the target are pulled to the conditional branch's (None: the plan's;
    the methods of the literature were published without).
    threshold_percentile: dynamic thresholding (Imagen): 0 is off, published are 0.95 to 0.995; threshold_bound is
    the most that counts as contrast (inf: unbounded, 1: a plain clamp).
    highest, lowest: timesteps as shares of all, (at the start, at the end); anneal: "sqrt" or "linear" in between;
    stratified: spread evenly over a batch's pictures, or drawn for each alone.
    weighting: one of WEIGHTINGS; None: the method's own. negative_prompt: whether there is one.
    k_steps, reuse: model calls of a multi-step target, and optimiser steps that use it.
    grid_start, grid_strength, grid_steps: of four views (four_views.py): whether they begin as a "render" or a "blob",
    the share of the timesteps they begin at, and the model calls.
    latent_steps: of Latent-Paint.
    shadows: whether the mesh hides light from itself, "on", "off" or "auto": with models that paint shadows.
    deep_image_prior: the maps are painted by a small network (deep_image_prior.py) instead of being texels.
    staging: whose cameras and lights: Patina's "own" or those of "dreamfusion", with its three kinds of shading.
    """

    guidance_scale_end: float | None = None
    rescale: float | None = None
    threshold_percentile: float = 0.0
    threshold_bound: float = math.inf
    perp_neg: bool = False
    negative_prompt: bool = False
    highest: tuple[float, float] = (0.98, 0.5)
    lowest: tuple[float, float] = (0.3, 0.1)
    anneal: str = "sqrt"
    stratified: bool = True
    weighting: str | None = None
    k_steps: int = 4
    reuse: int = 1
    inversion_scale: float = -7.5
    inversion_steps: int = 10
    inversion_noise: float = 0.3
    joint_views: bool = False
    shadows: str = "auto"
    staging: str = "own"
    grid_start: str = "render"
    grid_strength: float = 0.95
    grid_steps: int = 30
    latent_steps: int = 400
    deep_image_prior: bool = False

    def __post_init__(self) -> None:
        if self.guidance_scale_end is not None and not 0 <= self.guidance_scale_end <= 200:
            raise ValueError(f"The last guidance scale is {self.guidance_scale_end}; it must lie between 0 and 200.")
        if self.rescale is not None and not 0 <= self.rescale <= 1:
            raise ValueError(f"Rescaling is {self.rescale}; it must lie between 0 and 1.")
        if not 0 <= self.threshold_percentile < 1 or not self.threshold_bound >= 1:
            raise ValueError("Dynamic thresholding needs a percentile from 0 to 1 and a bound of at least 1.")
        for low, high in zip(self.lowest, self.highest, strict=True):
            if not 0 <= low <= high <= 1:
                raise ValueError(f"Timesteps from {low} to {high} are no range; both are shares from 0 to 1.")
        if self.anneal not in ("sqrt", "linear"):
            raise ValueError(f"Timesteps anneal “sqrt” or “linear”, not “{self.anneal}”.")
        if self.weighting is not None and self.weighting not in WEIGHTINGS:
            raise ValueError(f"There is no weighting “{self.weighting}”; there are {', '.join(WEIGHTINGS)}.")
        if self.grid_start not in ("render", "blob"):
            raise ValueError(f"Four views begin as a “render” or as a “blob”, not as “{self.grid_start}”.")
        if not 0.02 < self.grid_strength <= 1 or self.grid_steps < 1:
            raise ValueError("Four views need a strength over 0.02 and at most 1, and at least one step.")
        if self.shadows not in ("auto", "on", "off"):
            raise ValueError(f"Shadows are “auto”, “on” or “off”, not “{self.shadows}”.")
        if self.staging not in ("own", "dreamfusion"):
            raise ValueError(f"Cameras and lights are “own” or of “dreamfusion”, not of “{self.staging}”.")
        if min(self.k_steps, self.reuse, self.inversion_steps, self.latent_steps) < 1:
            raise ValueError("k_steps, reuse, inversion_steps and latent_steps must be at least 1.")
        if max(self.k_steps, self.inversion_steps) > MOST_CALLS:
            raise ValueError(f"k_steps and inversion_steps must be at most {MOST_CALLS}: each is a call of the model.")
        if not math.isfinite(self.inversion_scale) or not 0 <= self.inversion_noise <= 1:
            raise ValueError("inversion_scale must be a number, and inversion_noise one from 0 to 1.")


# What a method's authors chose beside the method itself; everything else is as in Options. None of them rescaled.
PUBLISHED: dict[str, dict] = {
    "sds": {"highest": (0.98, 0.98), "lowest": (0.02, 0.02), "staging": "dreamfusion", "rescale": 0.0},
    "csd": {"rescale": 0.0},
    "nfsd": {"rescale": 0.0},
    "hifa": {"highest": (0.98, 0.3), "lowest": (0.98, 0.3), "rescale": 0.0},
    "ism": {"highest": (0.98, 0.5), "lowest": (0.02, 0.02), "anneal": "linear", "rescale": 0.0},
    "sdi": {"highest": (0.98, 0.25), "lowest": (0.98, 0.25), "anneal": "linear", "rescale": 0.0},
    "vsd": {"highest": (0.98, 0.5), "lowest": (0.02, 0.02), "anneal": "linear", "rescale": 0.0},
}
NFSD_NEGATIVE = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
)


def published(name: str, settings: dict[str, str] | None = None) -> Options:
    """The options the method `name` was published with, where they matter to it, and what `settings` say instead: name
    of an option -> its value in words ("0.5", "true", "0.98,0.5"). Raises ValueError with a sentence."""
    return Options(**{**PUBLISHED.get(name, {}), **read_settings(Options, settings or {})})


def negative_prompt(method: str, said: str, model: Denoiser) -> str:
    """What `said`; for nfsd, which lives by it, the published one where nothing is, and the model reads free text."""
    lacks = method == "nfsd" and not said.strip() and not isinstance(model, KnowsMaterials)
    return NFSD_NEGATIVE if lacks else said


def option_names(kind: type) -> list[str]:
    """What `read_settings` knows of it."""
    return [field.name for field in fields(kind) if field.name != "negative_prompt"]


def read_settings(kind: type, settings: dict[str, str]) -> dict[str, object]:
    """The values that words mean for fields of the dataclass `kind`. Raises ValueError with a sentence."""
    return {option: _read(kind, option, text) for option, text in settings.items()}


def _read(owner: type, option: str, text: str) -> object:
    kinds = {field.name: str(field.type) for field in fields(owner)}
    if option not in option_names(owner):
        raise ValueError(f"There is no option “{option}”; there are {', '.join(option_names(owner))}.")
    kind = kinds[option]
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind.startswith("tuple"):
            low, high = text.split(",")
            return float(low), float(high)
        if "None" in kind and text.lower() == "none":
            return None
        return int(text) if kind == "int" else float(text) if kind.startswith("float") else text
    except (KeyError, ValueError) as error:
        raise ValueError(f"The option “{option}” cannot be “{text}”; it is of the kind {kind}.") from error


def timesteps(
    count: int, fraction: float, total: int, generator: torch.Generator, options: Options | None = None
) -> Tensor:
    """(B,) timesteps, by default stratified over the batch; the range narrows with the square root of progress
    (CasTex, Paint-it): highest 0.98 -> 0.5, lowest 0.3 -> 0.1 of `total`."""
    options = options or Options()
    share = fraction**0.5 if options.anneal == "sqrt" else fraction
    highest, lowest = (start + (end - start) * share for start, end in (options.highest, options.lowest))
    first = torch.randperm(count, generator=generator) if options.stratified else 0
    strata = (first + torch.rand(count, generator=generator)) / (count if options.stratified else 1)
    return ((lowest + (highest - lowest) * strata) * total).long().clamp(0, total - 1)


def guidance_scale(start: float, options: Options, progress: float) -> float:
    """w at `progress` 0..1 of the run."""
    end = start if options.guidance_scale_end is None else options.guidance_scale_end
    return start + (end - start) * progress


# Each is omega / gamma for alpha_bar (B,): what multiplies x0 - target.
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "sds": lambda alpha_bar: torch.sqrt(alpha_bar * (1 - alpha_bar)),  # omega = 1 - alpha_bar (DreamFusion)
    "uniform": torch.ones_like,  # a plain mean squared error
    "score": lambda alpha_bar: torch.sqrt(alpha_bar / (1 - alpha_bar)),  # omega = 1 (CSD's first stage)
    "fantasia3d": lambda alpha_bar: alpha_bar * torch.sqrt(1 - alpha_bar),  # omega = sqrt(alpha_bar) (1 - alpha_bar)
    # omega = min(SNR, 5) / SNR (Hang et al. 2023)
    "min_snr": lambda alpha_bar: torch.minimum(
        torch.sqrt(alpha_bar / (1 - alpha_bar)), 5 * torch.sqrt((1 - alpha_bar) / alpha_bar)
    ),
    # rectified_flow_prior: S (1 - S) with S = s / (a + s), where the noise weighs S and the picture 1 - S.
    "flow": lambda alpha_bar: 1 / (2 + 1 / torch.sqrt(alpha_bar * (1 - alpha_bar)).clamp(min=1e-12)),
}


def rescale(guided: Tensor, conditional: Tensor, mask: Tensor, strength: float) -> Tensor:
    """Pull mean and deviation of each channel over the object (mask (B, 1, H, W)) to the conditional
    branch's: cures the over-saturation that a clamp only bounds (research.md 1.5)."""
    if strength == 0:
        return guided
    total = mask.sum((2, 3), keepdim=True).clamp(min=1e-6)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x * mask).sum((2, 3), keepdim=True) / total
        return mean, (((x - mean) ** 2 * mask).sum((2, 3), keepdim=True) / total).sqrt()

    mean, deviation = moments(guided)
    wanted_mean, wanted_deviation = moments(conditional)
    matched = (guided - mean) * (wanted_deviation / deviation.clamp(min=1e-4)) + wanted_mean
    return strength * matched + (1 - strength) * guided


def threshold(x0_hat: Tensor, percentile: float, bound: float) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022): a picture (B, 3, H, W) whose `percentile` of magnitudes is over 1
    is clamped there and divided by it, at most by `bound`."""
    if percentile == 0:
        return x0_hat
    magnitude = torch.quantile(x0_hat.abs().flatten(1), percentile, dim=1).clamp(1, bound).view(-1, 1, 1, 1)
    return torch.minimum(torch.maximum(x0_hat, -magnitude), magnitude) / magnitude


@dataclass(frozen=True)
class Aim:
    """Pictures (B, 3, H, W) in -1..1, how much each counts, (B,), and how noisy each was seen: time (B,), 0..1."""

    picture: Tensor
    weight: Tensor
    time: Tensor

    def gradient(self, x0: Tensor) -> Tensor:
        """(B, 3, H, W) on pictures x0 (B, 3, H, W)."""
        return self.weight.view(-1, 1, 1, 1) * (x0 - self.picture)


def take_aim(
    model: Denoiser,
    x0: Tensor,
    scene: Scene,
    mask: Tensor,
    progress: float,
    method: str,
    scale: float,
    options: Options,
    generator: torch.Generator,
    companion: Companion | None = None,
) -> Aim:
    """Where `model` wants pictures x0 (B, 3, H, W) in -1..1 with the object's mask (B, 1, H, W).

    `method` is one of GUIDANCE, `scale` is w at the run's start. Raises GuidanceError, ValueError.
    """
    if not scale >= 0:
        raise ValueError(f"The guidance scale is {scale}; it must be 0 or more.")
    if options.joint_views:
        return _joint(model, x0, scene, mask, progress, method, scale, options, generator, companion)
    t = timesteps(len(x0), progress, len(model.alphas_cumprod), generator, options).to(x0.device)
    with torch.no_grad():
        clean = encode(model, x0)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype).to(clean.device)
        if getattr(model, "enlarges", False):
            grain = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
            scene = replace(scene, picture=x0, grain=grain)
        scale = guidance_scale(scale, options, progress)
        look = Look(model, scene, clean, noise, t, scale, progress, options, generator, companion)
        target = GUIDANCE[method](look)
        picture = decode(model, target.x0)
        if target.shift and picture is not target.x0:
            # Only the difference that the latents make: what the autoencoder loses is none of the method's.
            picture = x0 + picture - decode(model, clean)
        strength = options.rescale or 0.0
        if strength:
            picture = rescale(picture, decode(model, target.conditional), mask, strength)
        picture = threshold(picture, options.threshold_percentile, options.threshold_bound)
        if target.clamp:
            picture = picture.clamp(-1, 1)
        weight = WEIGHTINGS[options.weighting or target.weighting](look.alpha_bar(t))
        return Aim(picture, target.factor * weight, t / len(model.alphas_cumprod))


def _joint(
    model: Denoiser, x0: Tensor, scene: Scene, mask: Tensor, progress: float, method: str, scale: float,
    options: Options, generator: torch.Generator, companion: Companion | None,
) -> Aim:  # fmt: skip
    """As `take_aim`, with every four pictures tiled to one 2 x 2 picture, so that the model paints them together."""
    if getattr(model, "sees_geometry", True):
        raise GuidanceError(
            f"“{model.name}” looks at each view's geometry and cannot paint four views as one picture. "
            "Switch joint views off."
        )
    count = len(x0)
    filled = torch.arange(-(-count // FOUR) * FOUR, device=x0.device).clamp(max=count - 1)
    together = replace(scene, size=2 * scene.size, azimuth_deg=None, elevation_deg=None, tiles=tuple(filled.tolist()))
    aim = take_aim(
        model, tile(x0[filled]), together, tile(mask[filled]), progress, method, scale,
        replace(options, joint_views=False), generator, companion,
    )  # fmt: skip
    each = (part.repeat_interleave(FOUR)[:count] for part in (aim.weight, aim.time))
    return Aim(untile(aim.picture)[:count], *each)
