# SPDX-License-Identifier: Apache-2.0
"""Score distillation: from a frozen model's predictions to a target for the picture that is being painted.

Notation (DDPM): x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) e; gamma = sqrt((1 - alpha_bar) / alpha_bar).
eps_hat - e = (x0 - x0_hat) / gamma, so every method of the literature is a target for x0: one whose gradient on
the noise is d has the target x0 - gamma d. Plain functions in one dict. They know no cameras, maps or model
families; weights, thresholds and timesteps are distillation.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .diffusion.interface import Companion, Denoiser, Latent, ModelError, Prediction, Scene, Worded
from .diffusion.view_words import other_views

if TYPE_CHECKING:
    from .distillation import Options

NFSD_SMALL = 0.2  # share of the timesteps below which NFSD takes the prediction itself for the domain's direction
ISM_STRIDE = 0.2  # of the timesteps: the longest step of the inversion


class GuidanceError(ModelError):
    """This method cannot be used with this model; a sentence for a person that says what to do."""


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t (B, C, H, W) for alpha_bar (B,)."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def noise_in(noisy: Tensor, x0_hat: Tensor, alpha_bar: Tensor) -> Tensor:
    """eps_hat (B, C, H, W): what x0_hat takes for the noise in x_t, for alpha_bar (B,) below 1."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return (noisy - alpha_bar.sqrt() * x0_hat) / (1 - alpha_bar).sqrt()


def classifier_free(prediction: Prediction, guidance_scale: float) -> Tensor:
    """x0_hat with guidance: w = 0 unconditional, w = 1 conditional (Ho and Salimans 2022)."""
    return prediction.unconditional + guidance_scale * (prediction.conditional - prediction.unconditional)


def perpendicular(vector: Tensor, to: Tensor) -> Tensor:
    """`vector` (B, C, H, W) without its part along `to`, picture by picture (Perp-Neg's projection)."""
    along = (vector * to).sum((1, 2, 3), keepdim=True) / (to * to).sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return vector - along * to


def perp_neg(prediction: Prediction, negatives: Tensor, weights: Tensor) -> Tensor:
    """What is added to the prompt's direction e_c - e_u (B, C, H, W): off x0_hats `negatives` (K, B, C, H, W) by
    weights (K, B), all of them below or equal 0, only across that direction (Armandpour et al. 2023)."""
    wanted = prediction.conditional - prediction.unconditional
    push = torch.zeros_like(wanted)
    for negative, weight in zip(negatives, weights, strict=True):
        push = push + weight.view(-1, 1, 1, 1) * perpendicular(negative - prediction.unconditional, wanted)
    return push


@dataclass(frozen=True)
class Look:
    """One noisy look at B pictures, and the model to ask about it.

    x0 and noise (B, C, H, W) are in the model's space: the picture's values, or latents; timestep (B,);
    progress 0..1 of the run; the generator is for what a method draws besides; the companion is vsd's.
    """

    model: Denoiser
    scene: Scene
    x0: Tensor
    noise: Tensor
    timestep: Tensor
    guidance_scale: float
    progress: float
    options: Options
    generator: torch.Generator
    companion: Companion | None = None

    def alpha_bar(self, timestep: Tensor) -> Tensor:
        """(B,) of timesteps (B,), on the pictures' device."""
        return self.model.alphas_cumprod[timestep.to(self.model.alphas_cumprod.device)].to(self.x0)

    @property
    def noisy(self) -> Tensor:
        return add_noise(self.x0, self.noise, self.alpha_bar(self.timestep))

    def predict(self, noisy: Tensor, timestep: Tensor, guided: bool = True) -> Prediction:
        return self.model.predict(noisy, timestep, self.scene, guided)

    def words(self, noisy: Tensor, timestep: Tensor, words: str) -> Tensor:
        """x0_hat for other words than the prompt's. Raises GuidanceError where the model knows none."""
        if not isinstance(self.model, Worded):
            raise GuidanceError(
                f"The model “{self.model.name}” cannot be asked for “{words}” beside the prompt, which this guidance "
                "needs. Choose another guidance, or a model that reads free text."
            )
        return self.model.predict_words(noisy, timestep, self.scene, (words,) * len(noisy))

    def guided(self, noisy: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """(x0_hat with guidance, x0_hat of the prompt alone)."""
        scale = self.guidance_scale
        prediction = self.predict(noisy, timestep, guided=scale != 1 or self.options.perp_neg)
        pushed = scale * self.off_other_views(noisy, timestep, prediction)
        return classifier_free(prediction, scale) + pushed, prediction.conditional

    def off_other_views(self, noisy: Tensor, timestep: Tensor, prediction: Prediction) -> Tensor | float:
        """Perp-Neg's part of the prompt's direction, where it is asked for; else 0. Raises GuidanceError."""
        if not self.options.perp_neg:
            return 0.0
        scene = self.scene
        if not isinstance(self.model, Worded) or scene.azimuth_deg is None or scene.elevation_deg is None:
            raise GuidanceError(
                f"Perp-Neg needs a model that reads view words, and single views; “{self.model.name}” has none here. "
                "Switch Perp-Neg off."
            )
        others = other_views(scene.azimuth_deg.tolist(), scene.elevation_deg.tolist())
        negatives = [self.model.predict_words(noisy, timestep, scene, words) for words, _ in others]
        weights = [torch.tensor(weight, device=noisy.device, dtype=noisy.dtype) for _, weight in others]
        return perp_neg(prediction, torch.stack(negatives), torch.stack(weights))


@dataclass(frozen=True)
class Target:
    """Where a method wants x0, in the model's space.

    `conditional` is the prompt's own x0_hat, which x0-space rescaling looks at. `shift`: the target is x0 moved by
    a difference of predictions and no picture of its own, so a decoder's error must not get into it. `weighting`
    is the published one (distillation.WEIGHTINGS); `factor` multiplies it.
    """

    x0: Tensor
    conditional: Tensor
    weighting: str = "sds"
    factor: float = 1.0
    clamp: bool = False
    shift: bool = False


def clamped(look: Look) -> Target:
    """(omega / gamma)(x0 - clamp(x0_hat)) with omega = 1 - alpha_bar (CasTex)."""
    return Target(*look.guided(look.noisy, look.timestep), clamp=True)


def sds(look: Look) -> Target:
    """DreamFusion's omega (eps_hat - e)."""
    return Target(*look.guided(look.noisy, look.timestep))


def csd(look: Look) -> Target:
    """Classifier score distillation (Yu et al. 2023): the prompt's part w (e_c - e_u) of SDS alone. With a negative
    prompt, what is pushed off changes from no words to the negative ones during the run, as published."""
    prediction = look.predict(look.noisy, look.timestep)
    against = prediction.unconditional
    if look.options.negative_prompt and isinstance(look.model, Worded):
        nothing = look.words(look.noisy, look.timestep, "nothing")
        against = nothing + look.progress * (against - nothing)
    pushed = look.off_other_views(look.noisy, look.timestep, prediction)
    moved = look.guidance_scale * (prediction.conditional - against + pushed)
    return Target(look.x0 + moved, prediction.conditional, shift=True)


def nfsd(look: Look) -> Target:
    """Noise-free score distillation (Katzir et al. 2023): d = delta_D + w (e_c - e_u), where delta_D is e_u at small
    timesteps and e_u - e_negative at others. The noise itself never enters at the others. Without a negative prompt
    nothing is left of delta_D there: distillation.negative_prompt has the published one."""
    noisy, timestep = look.noisy, look.timestep
    alpha_bar = look.alpha_bar(timestep)
    conditional = look.predict(noisy, timestep, guided=False).conditional
    nothing = look.words(noisy, timestep, "nothing")
    negative = look.words(noisy, timestep, "negative")
    gamma = ((1 - alpha_bar) / alpha_bar).sqrt().view(-1, 1, 1, 1)
    small = (timestep < NFSD_SMALL * len(look.model.alphas_cumprod)).view(-1, 1, 1, 1).to(noisy.device)
    # In x0: -gamma (e_u - e_negative) = u - negative.
    domain = torch.where(small, -gamma * noise_in(noisy, nothing, alpha_bar), nothing - negative)
    wanted = conditional - nothing + look.off_other_views(noisy, timestep, Prediction(conditional, nothing))
    return Target(look.x0 + domain + look.guidance_scale * wanted, conditional, shift=True)


def hifa(look: Look) -> Target:
    """HiFA (Zhu and Zhuang 2023): residuals in the model's space and, times 0.01, in RGB. Here both are RGB, since
    nothing is sent back through an encoder; its share is the timesteps (distillation.PUBLISHED)."""
    return Target(*look.guided(look.noisy, look.timestep), factor=1.01)


def ism(look: Look) -> Target:
    """Interval score matching (LucidDreamer): x_s and x_t by unconditional DDIM inversion of x0, and
    d = e_w(x_t) - e_u(x_s). Since x_t is made of e_u(x_s), gamma d is x0_hat(x_s) - x0_hat(x_t), without a division by
    little noise. Costs up to six model calls."""
    total = len(look.model.alphas_cumprod)
    gap = max(1, round((0.1 - 0.075 * min(1.0, look.progress / 0.3)) * total))
    noisy, timestep = look.x0, look.timestep
    before = (timestep - gap).clamp(min=0)
    for now, after in _times_up_to(before, max(1, round(ISM_STRIDE * total))):
        noisy, _ = _invert(look, noisy, now, after, 0.0)
    further, hat_before = _invert(look, noisy, before, timestep, 0.0)
    x0_hat, conditional = look.guided(further, timestep)
    return Target(look.x0 + (x0_hat - hat_before), conditional, shift=True)


def sdi(look: Look) -> Target:
    """Score distillation via inversion (Lukoianov et al. 2024): the noise is not drawn but found, by DDIM inversion
    of x0 under the prompt with a negative scale. Costs up to twelve model calls."""
    options, total = look.options, len(look.model.alphas_cumprod)
    stride = max(1, total // options.inversion_steps)
    late = torch.randint(0, stride, look.timestep.shape, generator=look.generator).to(look.timestep)
    end = (look.timestep + late).clamp(max=total - 1)
    noisy = look.x0
    for now, after in _times_up_to(end, stride):
        noisy, _ = _invert(look, noisy, now, after, options.inversion_scale)
        if options.inversion_noise:
            # As the sampler's variance between the two times, times eta.
            here, there = (look.alpha_bar(t).view(-1, 1, 1, 1) for t in (now, after))
            variance = ((1 - here) / (1 - there) * (1 - there / here)).clamp(min=0)
            drawn = torch.randn(noisy.shape, generator=look.generator, dtype=noisy.dtype).to(noisy.device)
            noisy = noisy + options.inversion_noise * variance.sqrt() * drawn
    found = noise_in(noisy, look.x0, look.alpha_bar(end))
    again = add_noise(look.x0, found, look.alpha_bar(look.timestep))
    return Target(*look.guided(again, look.timestep), weighting="uniform")


def k_step(look: Look) -> Target:
    """x0_hat after k deterministic steps (DDIM; for flow models Euler's, which is the same) from x_t. It is no
    gradient of one timestep, so it has no weight of one, and several optimiser steps may use it."""
    noisy, steps = look.noisy, look.options.k_steps
    times = [look.timestep * (steps - number) // steps for number in range(steps)]
    x0_hat, conditional = look.guided(noisy, times[0])
    for now, after in zip(times, times[1:], strict=False):
        if not isinstance(look.model, Latent):
            # As every sampler of pixel models does: unclamped, four steps diverge (research.md 1.5).
            x0_hat = x0_hat.clamp(-1, 1)
        noise = noise_in(noisy, x0_hat, look.alpha_bar(now))
        noisy = add_noise(x0_hat, noise, look.alpha_bar(after))
        x0_hat, conditional = look.guided(noisy, after)
    return Target(x0_hat, conditional, weighting="uniform", clamp=True)


def vsd(look: Look) -> Target:
    """Variational score distillation (ProlificDreamer, Wang et al. 2023): d = e_w - e_lora, where e_lora is what a copy
    of the model says, which is trained on this run's own pictures. Where it knows the picture itself, this is SDS."""
    if look.companion is None:
        raise GuidanceError(
            f"The guidance “vsd” trains a copy of the model beside the maps, which “{look.model.name}” does not offer. "
            "Choose another guidance, or another model."
        )
    x0_hat, conditional = look.guided(look.noisy, look.timestep)
    own = look.companion.predict(look.noisy, look.timestep, look.scene)
    look.companion.learn(look.x0, look.scene, look.generator)
    return Target(look.x0 + (x0_hat - own), conditional, shift=True)


def _times_up_to(end: Tensor, stride: int) -> list[tuple[Tensor, Tensor]]:
    """(now, after) from 0 up to timesteps `end` (B,); a picture that has arrived stays, whatever the others do."""
    times = [(end * 0 + number * stride).clamp(max=end) for number in range(-(-int(end.max()) // stride) + 1)]
    return list(zip(times, times[1:], strict=False))


def _invert(look: Look, noisy: Tensor, now: Tensor, after: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """DDIM from timestep `now` up to `after` with guidance `scale`; (x at `after`, x0_hat at `now`)."""
    x0_hat = classifier_free(look.predict(noisy, now), scale)
    noise = noise_in(noisy, x0_hat, look.alpha_bar(now))
    further = add_noise(x0_hat, noise, look.alpha_bar(after))
    return torch.where((after == now).view(-1, 1, 1, 1), noisy, further), x0_hat


TRAINED = ("vsd",)  # methods that need a companion
Guidance = Callable[[Look], Target]
GUIDANCE: dict[str, Guidance] = {
    "clamped": clamped,
    "sds": sds,
    "csd": csd,
    "nfsd": nfsd,
    "hifa": hifa,
    "ism": ism,
    "sdi": sdi,
    "vsd": vsd,
    "k_step": k_step,
}
