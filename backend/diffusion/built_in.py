# SPDX-License-Identifier: Apache-2.0
"""The prior that ships with Patina: predicts the clean picture in pixel space, told about geometry and light."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from torch import Tensor

from .. import ggx_tables
from ..prior import conditions, network, vocabulary
from .interface import Prediction, Scene

WEIGHTS = Path(__file__).resolve().parents[1] / "prior"


class BuiltInPrior:
    name = "built-in"
    background = conditions.BACKGROUND
    guidance_scale = 3.0

    def __init__(self, device: torch.device, folder: Path = WEIGHTS) -> None:
        """Load unet/, scheduler/ and the word table from `folder`. Raises OSError where they are missing."""
        self.device = device
        diffusers_logging.disable_progress_bar()
        self.unet = UNet2DModel.from_pretrained(
            folder / "unet", use_safetensors=True, torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
        self.unet = self.unet.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        words = json.loads((folder / "words.json").read_text("utf-8"))["words"]
        if tuple(words) != vocabulary.WORDS:
            raise OSError(f"The word table in {folder} does not fit this version of Patina. Install Patina again.")
        self.conditioner = network.Conditioner(len(words), 4 * self.unet.config.block_out_channels[0])
        self.conditioner.load_state_dict(load_file(folder / "words.safetensors"))
        self.conditioner = self.conditioner.float().eval().requires_grad_(False).to(device)
        self.render_size = self.unet.config.sample_size * conditions.BLOCK
        self.tables = ggx_tables.load().to(device)
        self._words = vocabulary.encode(None)[None].repeat(2, 1)

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.scheduler.alphas_cumprod

    def set_prompt(self, prompt: str, negative_prompt: str) -> tuple[str, ...]:
        reading = vocabulary.read(prompt)
        negative, warnings = None, reading.warnings
        if negative_prompt.strip():
            try:
                negative = vocabulary.read(negative_prompt).prompt
            except vocabulary.PromptError:
                warnings += ("The built-in model finds no material in the negative prompt and ignores it.",)
        self._words = torch.stack((vocabulary.encode(reading.prompt), vocabulary.encode(negative)))
        return warnings

    @torch.no_grad()
    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene) -> Prediction:
        condition = self._condition(scene).repeat(2, 1, 1, 1)
        count = noisy.shape[0]
        density = 1.0 / scene.pattern_scale
        scale = conditions.scale_of(scene.extent, density, scene.size).to(self.device)
        words = self._words.to(self.device).long().repeat_interleave(count, 0)
        alpha_bar = self.alphas_cumprod.to(self.device)[timestep.to(self.device)].repeat(2)
        with torch.autocast(self.device.type, torch.bfloat16):
            embedding = self.conditioner(words, scale.repeat(2))
            x0_hat = network.predict_x0(
                self.unet,
                noisy.repeat(2, 1, 1, 1),
                condition,
                timestep.to(self.device).repeat(2),
                embedding,
                self.conditioner.paint(words, condition, embedding),
                alpha_bar,
            )
        return Prediction(*x0_hat.chunk(2))

    def _condition(self, scene: Scene) -> Tensor:
        gbuffer = scene.gbuffer
        light = conditions.fixed_renders(gbuffer, scene.lights, self.tables)
        normal = torch.nn.functional.normalize(gbuffer.normal, dim=1)
        q = gbuffer.position / scene.pattern_scale + scene.pattern_offset.to(gbuffer.position)
        values = torch.cat((light, normal, q), dim=1)
        count, size = gbuffer.coverage.shape[0], scene.size
        flat = torch.zeros(count * size * size, values.shape[1], device=values.device)
        flat = flat.index_copy(0, gbuffer.pixel, values).view(count, size, size, -1).permute(0, 3, 1, 2)
        return conditions.assemble(flat[:, :9], flat[:, 9:12], gbuffer.coverage[:, None], flat[:, 12:15])
