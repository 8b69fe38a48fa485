# SPDX-License-Identifier: Apache-2.0
"""What all models that read free text share: words of each view, pictures in small batches, memory given back.

The prompt is encoded once, with every view's words, and the text encoders leave memory before the network enters
the device. A family's file says how its texts are encoded, and what its network is asked.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from ..prompts import view_words
from . import memory as sharing
from .folder import ModelFolder
from .interface import Companion, ModelError, Prediction, Scene, new_companion
from .memory import Memory
from .parts import network, refusals
from .view_words import VIEWS, view_shares


@dataclass(frozen=True)
class Embedded:
    """N texts as a network reads them: sequence (N, L, D), pooled (N, P) or None, length (N,) of each sequence."""

    sequence: Tensor
    pooled: Tensor | None
    length: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Embedded:
        return Embedded(self.sequence[rows], None if self.pooled is None else self.pooled[rows], self.length[rows])

    def mixed(self, shares: Tensor) -> Embedded:
        """Weighted means, shares (B, N)."""
        sequence = torch.einsum("bn,nld->bld", shares.to(self.sequence), self.sequence)
        pooled = None if self.pooled is None else shares.to(self.pooled) @ self.pooled
        return Embedded(sequence, pooled, self.length[:1].expand(len(shares)))


def joined(parts: list[Embedded]) -> Embedded:
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Embedded(
        torch.cat([part.sequence for part in parts]),
        torch.cat(pooled) if pooled else None,
        torch.cat([part.length for part in parts]),
    )


class WordedModel(ABC):
    """A Denoiser (interface.py) that reads free text. `network` lies on the CPU until it is first asked."""

    background: float | None = None
    sees_geometry = False
    enlarges = False  # it improves pictures that another model painted, and is shown them
    soft_views = True  # texts of equal length can be mixed; others cannot
    rows = Memory.rows

    def __init__(self, folder: ModelFolder, device: torch.device) -> None:
        diffusers_logging.disable_progress_bar()
        self.folder, self.device = folder, device
        self.name = folder.path.name
        self.dtype = working_dtype(device)
        self._texts: tuple[str, ...] = ()
        self._embedded: Embedded | None = None
        self._alone = False  # whether a network that works has the device to itself
        self._streamed: tuple[torch.nn.Module, ...] = ()  # those of which only the working block is there

    def load(self, part: str, kind: type, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """The network that is this part of the folder, as parts.network says, in the model's own precision or another.
        On the device “meta” its shapes alone."""
        return network(self.folder, part, kind, dtype or self.dtype, outlined=self.device.type == "meta")

    @abstractmethod
    def encode_texts(self, texts: tuple[str, ...]) -> tuple[Embedded, bool]:
        """The texts as the network reads them, and whether any of them was too long for it."""

    @abstractmethod
    def ask(self, noisy: Tensor, timestep: Tensor, words: Embedded, told: object = None) -> Tensor:
        """x0_hat (B, C, h, w) of noisy (B, C, h, w) at timestep (B,) for texts (B), float32. `told` is what
        `told_beside` made for the same pictures. Brings its network to the device."""

    @abstractmethod
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """What moves between the CPU and the device; first the one that is asked."""

    def shown_of(self, scene: Scene) -> Tensor | None:
        """(B, 3, H, W) what the network is shown beside the noisy picture; None: nothing."""
        return None

    def told_beside(self, noisy: Tensor, timestep: Tensor, words: Embedded, shown: Tensor | None) -> object:
        """What `ask` is told of the pictures `shown`: themselves, or what a second network makes of them (tensors in
        dicts, lists and tuples)."""
        return shown

    def spares(self) -> tuple[str, ...]:
        """As interface.Sparing says."""
        cuts = all(sharing.can_slice_attention(module) for module in self._own_networks())
        slicing, tiling = ("attention_slicing",) * cuts, ("vae_tiling",) * hasattr(self, "vae")
        return ("rows", "offload", *slicing, *tiling)

    def _own_networks(self) -> list[torch.nn.Module]:
        """Those that are asked, without the autoencoder."""
        return [module for module in self.modules() if module is not getattr(self, "vae", None)]

    def set_memory(self, memory: Memory) -> None:
        """As interface.Sparing says."""
        for module in self._streamed:
            sharing.stop_streaming(module)
        networks = self._own_networks()
        self._streamed = ()
        if memory.offload == "blocks":
            self._send(networks, "cpu")
            for module in networks:
                sharing.stream_blocks(module, self.device)
            self._streamed = tuple(networks)
        self.rows = memory.rows
        short = memory.offload == "auto" and sharing.is_short(self.modules(), self.device)
        self._alone = short or memory.offload in ("parts", "blocks")
        sliced = [sharing.slice_attention(module, memory.attention_slicing) for module in networks]
        if memory.attention_slicing and not all(sliced):
            raise ModelError(
                f"The network of “{self.name}” offers no attention slicing. Leave attention_slicing out."
            )
        if hasattr(self, "vae"):
            sharing.tile(self.vae, memory.vae_tiling)
        elif memory.vae_tiling:
            raise ModelError(f"“{self.name}” paints pixels and has no autoencoder to tile. Leave vae_tiling out.")

    def bring(self, *wanted: torch.nn.Module) -> None:
        """Have these networks on the device: and no others, where memory is short."""
        if self._alone:
            self._send([module for module in self.modules() if all(module is not one for one in wanted)], "cpu")
        self._send(wanted, self.device)

    def rest(self) -> None:
        """Leave the device to others."""
        self._send(self.modules(), "cpu")

    def _send(self, modules: Iterable[torch.nn.Module], where: torch.device | str) -> None:
        for module in modules:
            # To ask each of a thousand tensors whether it is there already would take longer than a small picture.
            there = next(module.parameters()).device.type == torch.device(where).type
            if not there and all(module is not one for one in self._streamed):
                module.to(where)

    def set_prompt(self, prompt: str, negative_prompt: str) -> tuple[str, ...]:
        """Encode for the calls that follow; returns warnings. Raises FolderError for text parts that cannot be used."""
        texts = (prompt, *(f"{prompt}, {view}" for view in VIEWS), negative_prompt.strip(), "")
        if texts == self._texts:
            return self._warnings
        self.rest()
        with torch.no_grad(), refusals(f"The model in {self.folder.path}"):
            self._embedded, cut = self.encode_texts(texts)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._texts = texts
        self._warnings = self.words_about_prompt()
        if cut:
            self._warnings += (f"The prompt is too long for {self.name}: its end was not read.",)
        return self._warnings

    def words_about_prompt(self) -> tuple[str, ...]:
        """Warnings that any prompt gets."""
        return ()

    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene, guided: bool = True) -> Prediction:
        words = self.words_of_views(scene, len(noisy))
        if not guided:
            conditional = self._ask_in_parts(noisy, timestep, words, scene)
            return Prediction(conditional, conditional)
        other = self._row("negative" if self._texts[5] else "nothing", len(noisy))
        words = joined([words, other])
        both = self._ask_in_parts(torch.cat((noisy, noisy)), torch.cat((timestep, timestep)), words, scene)
        return Prediction(*both.chunk(2))

    def predict_words(self, noisy: Tensor, timestep: Tensor, scene: Scene, words: tuple[str, ...]) -> Tensor:
        return self._ask_in_parts(noisy, timestep, joined([self._row(word, 1) for word in words]), scene)

    def companion(self, seed: int) -> Companion:
        """An interface.Companion. Raises ModelError without the library peft."""
        if self._streamed:
            raise ModelError(
                "The guidance “vsd” trains layers inside the network, which then cannot come block by block. Choose "
                "offload=parts, or another guidance."
            )
        return new_companion(self, seed)

    def words_of_views(self, scene: Scene, count: int) -> Embedded:
        """(count) texts: the prompt with each camera's view words."""
        if scene.azimuth_deg is None or scene.elevation_deg is None:
            return self._row("", count)
        angles = list(zip(scene.azimuth_deg.tolist(), scene.elevation_deg.tolist(), strict=True))
        if self.soft_views:
            return self._embedded[1:5].mixed(torch.tensor([view_shares(*angle) for angle in angles]))
        return joined([self._row(view_words(*angle), 1) for angle in angles])

    def _row(self, words: str, count: int) -> Embedded:
        rows = {"": 0, **{view: 1 + number for number, view in enumerate(VIEWS)}, "negative": 5, "nothing": 6}
        return self._embedded[torch.full((count,), rows[words])]

    @torch.no_grad()
    def _ask_in_parts(self, noisy: Tensor, timestep: Tensor, words: Embedded, scene: Scene) -> Tensor:
        """Never more than `rows` pictures at once: memory does not grow with the number of views."""
        shown = self.shown_of(scene)
        if shown is not None:
            shown = shown.repeat(len(noisy) // len(shown), 1, 1, 1)
        parts = [slice(start, start + self.rows) for start in range(0, len(noisy), self.rows)]
        timestep = timestep.to(self.device)
        told = (
            self.told_beside(noisy[part], timestep[part], words[part], None if shown is None else shown[part])
            for part in parts
        )
        if self._alone:  # the networks change places once for all pictures, and what the first one made waits outside
            told = [_moved(each, torch.device("cpu")) for each in told]
        answers = [
            self.ask(noisy[part], timestep[part], words[part], _moved(each, self.device))
            for part, each in zip(parts, told, strict=True)
        ]
        return torch.cat(answers).to(noisy)


def _moved(told: object, device: torch.device) -> object:
    """The same with its tensors on the device."""
    if isinstance(told, Tensor):
        return told.to(device)
    if isinstance(told, dict):
        return {name: _moved(part, device) for name, part in told.items()}
    return type(told)(_moved(part, device) for part in told) if isinstance(told, list | tuple) else told


def working_dtype(device: torch.device) -> torch.dtype:
    """Half precision where the device is made for it."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32
