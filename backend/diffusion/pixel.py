# SPDX-License-Identifier: Apache-2.0
"""Pixel models: DeepFloyd IF's first stage. Noise lives in the picture itself; the learned variance is dropped."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel
from torch import Tensor

from .conversions import from_vp
from .folder import ModelFolder
from .worded import Embedded, WordedModel, network, text_parts, too_long

LONGEST = 77  # tokens that IF's network was trained with; T5 itself would read more


class PixelModel(WordedModel):
    guidance_scale = 10.0

    def __init__(self, folder: ModelFolder, device: torch.device) -> None:
        super().__init__(folder, device)
        self.unet = network(folder, "unet", UNet2DConditionModel, self.dtype)
        if self.unet.config.in_channels != 3:
            raise ValueError("It is a later stage of a cascade, which enlarges pictures; Patina needs the first one.")
        self.scheduler = DDPMScheduler.from_pretrained(folder.path / "scheduler", local_files_only=True)
        self.render_size = self.unet.config.sample_size

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.scheduler.alphas_cumprod

    def modules(self) -> tuple[torch.nn.Module, ...]:
        return (self.unet,)

    def encode_texts(self, texts: tuple[str, ...]) -> tuple[Embedded, bool]:
        parts = text_parts(self.folder, self.device, self.dtype)
        pipeline = IFPipeline(
            **parts, unet=None, scheduler=None, safety_checker=None, feature_extractor=None, watermarker=None,
            requires_safety_checker=False,
        )  # fmt: skip
        sequence, _ = pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False, device=self.device)
        length = torch.full((len(texts),), sequence.shape[1])
        return Embedded(sequence, None, length), too_long(parts["tokenizer"], texts, LONGEST)

    def ask(self, noisy: Tensor, timestep: Tensor, words: Embedded) -> Tensor:
        answer = self.unet(
            noisy.to(self.dtype), timestep, encoder_hidden_states=words.sequence.to(self.device, self.dtype)
        ).sample.float()
        answer = answer[:, : noisy.shape[1]]  # the other half is the learned variance
        alpha_bar = self.alphas_cumprod.to(self.device)[timestep]
        return from_vp(self.scheduler.config.prediction_type, noisy.float(), answer, alpha_bar)
