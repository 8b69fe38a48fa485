# SPDX-License-Identifier: Apache-2.0
"""A copy of a frozen network that learns what this run's pictures look like: low-rank layers beside its attention.

As ProlificDreamer has it, the copy is told the camera too, through the embedding of the timestep; here by sines and
cosines of its azimuth and elevation. (The built-in prior's is not: it sees each view's geometry.) peft keeps the
frozen weights as they are: they are not held twice, and with the layers switched off the network answers bit for bit
as before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from .interface import Scene

if TYPE_CHECKING:
    from .built_in import BuiltInPrior
    from .worded import WordedModel

RANK, LEARNING_RATE = 4, 1e-4  # ProlificDreamer's
ADAPTER = "patina"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TIMES = ("time_embedding", "time_text_embed", "time_guidance_embed", "t_embedder")  # by family: what embeds the time
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps


class Copy(ABC):
    """An interface.Companion of a network. Making one removes the one before. `extra` is trained with the layers."""

    rate = LEARNING_RATE

    def __init__(self, model: WordedModel | BuiltInPrior, network: torch.nn.Module, seed: int) -> None:
        self.model, self.network = model, network
        if ADAPTER in getattr(network, "peft_config", {}):
            for layer in self._tuned():
                layer.delete_adapter(ADAPTER)
            del network.peft_config[ADAPTER]
            if not network.peft_config:  # of an empty one peft warns
                del network.peft_config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.to("cpu")
            config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=ATTENTION)
            inject_adapter_in_model(config, network, ADAPTER)
            extra = self.extra()
        self.layers = {name: p for name, p in network.named_parameters() if f".{ADAPTER}." in name}
        self._switch(False)
        for parameter in self.layers.values():
            parameter.data = parameter.data.float()  # half precision is too coarse to learn in
        self.layers |= extra
        network.to(model.device)
        self.optimiser = torch.optim.AdamW(list(self.layers.values()), lr=self.rate, betas=(0.9, 0.99))
        for parameter in self.layers.values():
            zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            self.optimiser.state[parameter] = dict(zip(_MOMENTS, (torch.zeros(()), zeros, zeros.clone()), strict=True))

    def extra(self) -> dict[str, torch.nn.Parameter]:
        """What else is trained, by name."""
        return {}

    @abstractmethod
    def ask(self, noisy: Tensor, timestep: Tensor, scene: Scene, part: slice) -> Tensor:
        """x0_hat of this part of the pictures, by the copy."""

    @abstractmethod
    def parts(self, count: int) -> list[slice]:
        """So many pictures in the parts that are asked at once."""

    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.ask(noisy, timestep, scene, part) for part in self.parts(len(noisy))]).to(noisy)

    def learn(self, x0: Tensor, scene: Scene, generator: torch.Generator) -> None:
        """|e_lora - e|^2 at timesteps and noise of its own; memory does not grow with the number of pictures."""
        total = len(self.model.alphas_cumprod)
        timestep = torch.randint(0, total, (len(x0),), generator=generator).to(x0.device)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
        alpha_bar = self.model.alphas_cumprod.to(x0.device)[timestep].view(-1, 1, 1, 1)
        noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        self.optimiser.zero_grad(set_to_none=True)
        for part in self.parts(len(x0)):
            with torch.enable_grad():
                x0_hat = self.ask(noisy, timestep, scene, part)
                # The error of the noise, written in x0.
                error = (alpha_bar / (1 - alpha_bar))[part] * (x0_hat - x0[part]) ** 2
                (error.mean() * len(x0_hat) / len(x0)).backward()
        self.optimiser.step()

    def tensors(self) -> dict[str, Tensor]:
        kept = {name: parameter.detach().contiguous() for name, parameter in self.layers.items()}
        for name, parameter in self.layers.items():
            kept |= {f"{name}.{what}": self.optimiser.state[parameter][what].clone() for what in _MOMENTS}
        return kept

    def load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.layers.items():
                parameter.copy_(tensors[name])
                for what in _MOMENTS:
                    self.optimiser.state[parameter][what].copy_(tensors[f"{name}.{what}"])

    def _tuned(self) -> list[BaseTunerLayer]:
        return [module for module in self.network.modules() if isinstance(module, BaseTunerLayer)]

    def _switch(self, on: bool) -> None:
        for layer in self._tuned():
            layer.enable_adapters(on)
        # Switching layers off freezes them, and what is frozen when a gradient comes back takes none.
        for parameter in self.layers.values():
            parameter.requires_grad_(True)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Inside, the network is the copy."""
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)


class LoraCompanion(Copy):
    """Of a model that reads free text; it is told the cameras."""

    def __init__(self, model: WordedModel, seed: int) -> None:
        super().__init__(model, model.modules()[0], seed)

    def extra(self) -> dict[str, torch.nn.Parameter]:
        self.embedder = next(getattr(self.network, name) for name in TIMES if hasattr(self.network, name))
        width = [part for part in self.embedder.modules() if isinstance(part, torch.nn.Linear)][-1].out_features
        self.camera = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.SiLU(), torch.nn.Linear(width, width))
        torch.nn.init.zeros_(self.camera[2].weight)
        torch.nn.init.zeros_(self.camera[2].bias)
        self.camera.to(self.model.device)
        return {f"camera.{name}": p for name, p in self.camera.named_parameters()}

    def parts(self, count: int) -> list[slice]:
        return [slice(start, start + self.model.rows) for start in range(0, count, self.model.rows)]

    def ask(self, noisy: Tensor, timestep: Tensor, scene: Scene, part: slice) -> Tensor:
        words = self.model.words_of_views(scene, len(noisy))[part]
        with self.awake(), self._told(scene, part):
            shown = self.model.shown_of(scene)
            asked = noisy[part], timestep[part].to(self.model.device), words
            told = self.model.told_beside(*asked, None if shown is None else shown[part])
            return self.model.ask(*asked, told)

    @contextmanager
    def _told(self, scene: Scene, part: slice) -> Iterator[None]:
        """Inside, the network is told the cameras of this part of the pictures."""
        told = self.camera(_angles(scene)[part].to(self.model.device)) if scene.azimuth_deg is not None else None
        hook = self.embedder.register_forward_hook(
            lambda module, inputs, output: output if told is None else output + told.to(output)
        )
        try:
            yield
        finally:
            hook.remove()


class BuiltInCompanion(Copy):
    """Of the built-in prior: it learns which materials this run's pictures show, within the prior's own limits."""

    rate = 1e-2  # the network is small, and at the published rate a run is over before it has learnt anything

    def __init__(self, model: BuiltInPrior, seed: int) -> None:
        super().__init__(model, model.unet, seed)

    def parts(self, count: int) -> list[slice]:
        return [slice(0, count)]  # its scene cannot be cut, and is small

    def ask(self, noisy: Tensor, timestep: Tensor, scene: Scene, part: slice) -> Tensor:
        with self.awake():
            return self.model.conditional(noisy, timestep, scene)


def _angles(scene: Scene) -> Tensor:
    """(B, 4) sine and cosine of azimuth and elevation."""
    angles = torch.deg2rad(torch.stack((scene.azimuth_deg, scene.elevation_deg), dim=1).float())
    return torch.cat((angles.sin(), angles.cos()), dim=1)
