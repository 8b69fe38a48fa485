# SPDX-License-Identifier: Apache-2.0
"""What every frozen model offers, whatever its family: predictions of the clean picture.

Pictures are display values -1..1, (B, 3, H, W). A model answers with x0_hat, never with noise or
velocity: the conversion belongs to the family's file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..lighting import Lights
from ..rasterize import GBuffer


@dataclass(frozen=True)
class Scene:
    """What a batch of pictures shows: beside the noisy picture, all a model may condition on.

    extent (B,) is half the picture's width at the object, in object radii; pattern_scale enlarges
    patterns; pattern_offset (3,) is drawn once a run, so that all views agree and seeds differ.
    """

    gbuffer: GBuffer
    lights: Lights
    extent: Tensor
    size: int
    pattern_scale: float
    pattern_offset: Tensor


@dataclass(frozen=True)
class Prediction:
    """x0_hat with the prompt and without, each (B, 3, H, W)."""

    conditional: Tensor
    unconditional: Tensor


class Denoiser(Protocol):
    name: str
    render_size: int  # pixels to a side it was made for
    guidance_scale: float  # the w it works well with
    background: float | None  # display value 0..1 behind the object; None: random

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) alpha_bar by timestep."""

    def set_prompt(self, prompt: str, negative_prompt: str) -> tuple[str, ...]:
        """Encode the prompt for the calls that follow; returns warnings. Raises PromptError."""

    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene) -> Prediction:
        """x0_hat for noisy (B, 3, H, W) at timestep (B,)."""
