# SPDX-License-Identifier: GPL-3.0-or-later
"""Models whose answers are known in closed form: Gaussian and Gaussian-mixture priors, and one that knows the noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.diffusion.interface import Prediction
from backend.distillation import Options
from backend.guidance import Look

LINEAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
COSINE = torch.cos((torch.linspace(0, 0.999, 1000, dtype=torch.float64) + 0.008) / 1.008 * torch.pi / 2) ** 2


def gain(deviation: float, alpha_bar: Tensor) -> Tensor:
    """k of research.md 1.5: E[x0_hat] = (1 - k) mean + k x."""
    return alpha_bar * deviation**2 / (alpha_bar * deviation**2 + 1 - alpha_bar)


@dataclass
class Gaussian:
    """E[x0 | x_t] of N(mean, deviation^2) per pixel; a mean is a number or a picture (1, C, H, W)."""

    conditional: tuple
    unconditional: tuple
    negative: tuple = (-0.1, 0.4)
    alphas_cumprod: Tensor = None
    name: str = "gaussian"

    def __post_init__(self):
        if self.alphas_cumprod is None:
            self.alphas_cumprod = LINEAR

    def denoise(self, prior, noisy, timestep):
        mean, deviation = prior
        alpha_bar = self.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        return mean + gain(deviation, alpha_bar) / alpha_bar.sqrt() * (noisy - alpha_bar.sqrt() * mean)

    def predict(self, noisy, timestep, scene, guided=True):
        conditional = self.denoise(self.conditional, noisy, timestep)
        return Prediction(conditional, self.denoise(self.unconditional, noisy, timestep) if guided else conditional)

    def predict_words(self, noisy, timestep, scene, words):
        priors = {"nothing": self.unconditional, "negative": self.negative}
        assert len(words) == len(noisy) and len(set(words)) == 1
        return self.denoise(priors[words[0]], noisy, timestep)


@dataclass
class Mixture:
    """A prior of pictures: modes (K, C, H, W), each with `deviation` per pixel; the prompt means the first alone."""

    modes: Tensor
    deviation: float
    alphas_cumprod: Tensor = None
    name: str = "mixture"

    def __post_init__(self):
        if self.alphas_cumprod is None:
            self.alphas_cumprod = COSINE

    def posterior(self, noisy, timestep, modes):
        alpha_bar = self.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        off = noisy[:, None] - alpha_bar.sqrt()[:, None] * modes[None]
        variance = (alpha_bar * self.deviation**2 + 1 - alpha_bar)[:, None]
        likely = torch.softmax((-(off**2) / (2 * variance)).sum((2, 3, 4)), dim=1)
        each = modes[None] + (gain(self.deviation, alpha_bar) / alpha_bar.sqrt())[:, None] * off
        return (likely.view(*likely.shape, 1, 1, 1) * each).sum(1)

    def predict(self, noisy, timestep, scene, guided=True):
        return Prediction(self.posterior(noisy, timestep, self.modes[:1]), self.posterior(noisy, timestep, self.modes))

    def predict_words(self, noisy, timestep, scene, words):
        return self.posterior(noisy, timestep, self.modes if words[0] == "nothing" else self.modes[1:])


@dataclass
class Truthful:
    """Finds the very picture that the noise was added to, whatever it is asked for."""

    x0: Tensor
    alphas_cumprod: Tensor = None
    name: str = "truthful"

    def __post_init__(self):
        if self.alphas_cumprod is None:
            self.alphas_cumprod = LINEAR

    def predict(self, noisy, timestep, scene, guided=True):
        return Prediction(self.x0.clone(), self.x0.clone())

    def predict_words(self, noisy, timestep, scene, words):
        return self.x0.clone()


@dataclass
class Believes:
    """A Companion that takes pictures to be of a Gaussian prior (mean, deviation), or to be one picture (x0, 0.0)."""

    model: object
    prior: tuple

    def predict(self, noisy, timestep, scene):
        mean, deviation = self.prior
        if isinstance(mean, Tensor):
            return mean.clone()
        alpha_bar = self.model.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        return mean + gain(deviation, alpha_bar) / alpha_bar.sqrt() * (noisy - alpha_bar.sqrt() * mean)

    def learn(self, x0, scene, generator):
        """It knows all it ever will."""


def look(model, x0, noise, timestep, scale, options=None, progress=0.0, seed=0, companion=None):
    """A Look at pictures x0 (B, C, H, W) at timestep(s); vsd's companion, where none is given, knows the pictures."""
    timestep = torch.as_tensor(timestep).expand(len(x0)).clone()
    generator = torch.Generator().manual_seed(seed)
    companion = companion or Believes(model, (x0, 0.0))
    return Look(model, None, x0, noise, timestep, scale, progress, options or Options(), generator, companion)


def antithetic(count, shape=(3, 2, 2), seed=0):
    """Noise (2 count, ...) whose mean is exactly 0, as in a closed form."""
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat((noise, -noise))
