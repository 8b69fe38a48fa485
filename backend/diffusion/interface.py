# SPDX-License-Identifier: Apache-2.0
"""What every frozen model offers, whatever its family: predictions of the clean picture.

Pictures are display values -1..1, (B, 3, H, W). A model answers with x0_hat, never with noise or
velocity: the conversion belongs to the family's file.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..cameras import Cameras
from ..lighting import Lights
from ..occlusion import Openness
from ..rasterize import GBuffer, select

if TYPE_CHECKING:
    from .memory import Memory


class ModelError(ValueError):
    """The model cannot be used; a sentence for a person that says what to do."""


@dataclass(frozen=True)
class Scene:
    """What a batch of pictures shows: beside the noisy picture, all a model may condition on.

    pattern_scale enlarges patterns; pattern_offset (3,) is drawn once a run, so that all views agree and seeds
    differ. `views` are the pictures' numbers in the run's pool and `memory` is the run's: see `remembered`.
    azimuth_deg, elevation_deg (B,) say where each camera stands in the object's frame, for models that read view
    words; None: the pictures are no single views. `tiles`: then each picture is four of these views, in this order.
    picture (B, 3, S, S) in -1..1: the clean pictures, and grain, noise of their shape: for models that enlarge.
    openness: what of the lights reaches the points; None: all.
    """

    gbuffer: GBuffer
    lights: Lights
    size: int
    pattern_scale: float
    pattern_offset: Tensor
    views: tuple[int, ...] = ()
    memory: dict[Hashable, Tensor] | None = None
    azimuth_deg: Tensor | None = None
    elevation_deg: Tensor | None = None
    cameras: Cameras | None = None
    tiles: tuple[int, ...] | None = None
    picture: Tensor | None = None
    grain: Tensor | None = None
    openness: Openness | None = None

    def remembered(self, what: Hashable, make: Callable[[GBuffer], Tensor]) -> Tensor:
        """Point values (N, C) that depend on `what`, the points and the pattern alone, and not on light or noise:
        `make` is asked once for every view of the run."""
        if self.memory is None:
            return make(self.gbuffer)
        pattern = (what, self.pattern_scale, *self.pattern_offset.tolist())
        missing = [place for place, view in enumerate(self.views) if (pattern, view) not in self.memory]
        if missing:
            points = select(self.gbuffer, torch.isin(self.gbuffer.view, torch.tensor(missing).to(self.gbuffer.view)))
            made = make(points)
            for place in missing:
                self.memory[pattern, self.views[place]] = made[points.view == place]
        return torch.cat([self.memory[pattern, view] for view in self.views])


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

    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene, guided: bool = True) -> Prediction:
        """x0_hat for noisy (B, 3, H, W) at timestep (B,). Not `guided`: nobody asks for the unconditional
        prediction, and it may repeat the conditional one."""


@runtime_checkable
class KnowsMaterials(Protocol):
    """What a Denoiser offers besides, that thinks in materials: it need not be asked through pictures."""

    def believed_material(self, scene: Scene) -> Tensor:
        """(N, 5) base colour (display), metallic and roughness that the prompt means at the points."""


@runtime_checkable
class Latent(Protocol):
    """What a Denoiser offers besides, whose noise lives in latents: `predict` then takes and answers latents."""

    def encode(self, picture: Tensor) -> Tensor:
        """Latents (B, C, h, w) of pictures (B, 3, H, W) in -1..1; no noise in them."""

    def decode(self, latent: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about -1..1 and not clamped."""


@runtime_checkable
class RoughlyShown(Protocol):
    """What a Latent offers besides, whose latents can be seen roughly without decoding them."""

    @property
    def latent_colors(self) -> tuple[tuple[float, float, float], ...] | None:
        """Display values -1..1 that each of the C channels adds to the last row, the colour of latents of 0; None:
        nobody knows them for its autoencoder."""


@runtime_checkable
class Worded(Protocol):
    """What a Denoiser offers besides, that can be asked for other words than the prompt's."""

    def predict_words(self, noisy: Tensor, timestep: Tensor, scene: Scene, words: tuple[str, ...]) -> Tensor:
        """x0_hat where picture i was asked for words[i]: "nothing", "negative" (the negative prompt), or view
        words ("front view", "side view", "back view", "overhead view") behind the prompt."""


class Companion(Protocol):
    """A copy of a model that learns what the pictures of this run look like, while the model itself stays frozen."""

    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene) -> Tensor:
        """x0_hat for noisy pictures or latents, as Denoiser.predict takes them."""

    def learn(self, x0: Tensor, scene: Scene, generator: torch.Generator) -> None:
        """One training step on clean pictures or latents."""

    def tensors(self) -> dict[str, Tensor]:
        """All that it has learnt, for a checkpoint; `load` takes it back."""

    def load(self, tensors: dict[str, Tensor]) -> None: ...


def new_companion(model: Denoiser, seed: int) -> Companion:
    """The one for this kind of model. Raises ModelError without the library peft."""
    try:
        from .lora import BuiltInCompanion, LoraCompanion
    except ImportError as error:
        raise ModelError(
            f"The guidance “vsd” needs the library “{error.name}”, which is missing. Repair the backend, or choose "
            "another guidance."
        ) from error
    return (BuiltInCompanion if getattr(model, "sees_geometry", True) else LoraCompanion)(model, seed)


@runtime_checkable
class Adaptable(Protocol):
    """What a Denoiser offers besides, whose network can be trained beside the maps."""

    def companion(self, seed: int) -> Companion:
        """A fresh one, in place of any before. Raises ModelError where the library for it is missing."""


@runtime_checkable
class Resting(Protocol):
    """What a Denoiser offers besides, that can give the device to others and come back by itself."""

    def rest(self) -> None: ...


@runtime_checkable
class Controllable(Protocol):
    """What a Denoiser offers besides, that may be told the geometry by a second network."""

    def set_control(self, path: Path | None, kind: str, strength: float) -> None:
        """Use the one in `path` from now on, or none. Raises ModelError."""


@runtime_checkable
class Sparing(Protocol):
    """What a Denoiser offers besides, that can do with less of its device's memory."""

    def spares(self) -> tuple[str, ...]:
        """The settings of Memory, by name, that mean something to its networks."""

    def set_memory(self, memory: Memory) -> None:
        """Work like this from now on, with the networks it has now. Raises ModelError for what it cannot do."""


def encode(model: Denoiser, picture: Tensor) -> Tensor:
    """What `model` adds noise to: the picture itself, or its latents."""
    return model.encode(picture) if isinstance(model, Latent) else picture


def decode(model: Denoiser, x0_hat: Tensor) -> Tensor:
    """The picture that `model` means by its prediction."""
    return model.decode(x0_hat) if isinstance(model, Latent) else x0_hat
