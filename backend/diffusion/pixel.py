# SPDX-License-Identifier: Apache-2.0
"""Pixel models: DeepFloyd IF's two stages. Noise lives in the picture itself; the learned variance is dropped."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel
from torch import Tensor

from .conversions import from_vp
from .folder import ModelFolder
from .interface import Scene
from .parts import text_parts, too_long
from .worded import Embedded, WordedModel

NOISE_LEVEL, ENLARGEMENT = 250, 4  # IF's: noise on the small picture, and how much smaller it is
LONGEST = 77  # tokens that IF's network was trained with; T5 itself would read more


class PixelModel(WordedModel):
    guidance_scale = 10.0
    channels = 3

    def __init__(self, folder: ModelFolder, device: torch.device) -> None:
        super().__init__(folder, device)
        self.unet = self.load("unet", UNet2DConditionModel)
        if self.unet.config.in_channels != self.channels:
            raise ValueError(
                "It is a later stage of a cascade, which enlarges pictures; Patina needs the first one."
                if self.channels == 3
                else f"Its network takes {self.unet.config.in_channels} channels; a second stage takes {self.channels}."
            )
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

    def ask(self, noisy: Tensor, timestep: Tensor, words: Embedded, told: object = None) -> Tensor:
        self.bring(self.unet)
        seen, besides = noisy.to(self.dtype), {}
        if told is not None:
            seen = torch.cat((seen, told.to(seen)), dim=1)
            besides["class_labels"] = torch.full((len(noisy),), NOISE_LEVEL, device=self.device)
        answer = self.unet(
            seen, timestep, encoder_hidden_states=words.sequence.to(self.device, self.dtype), **besides
        ).sample.float()
        answer = answer[:, : noisy.shape[1]]  # the other half is the learned variance
        alpha_bar = self.alphas_cumprod.to(self.device)[timestep]
        return from_vp(self.scheduler.config.prediction_type, noisy.float(), answer, alpha_bar)


class EnlargingModel(PixelModel):
    """The second stage: beside the noise it is shown the picture itself, small and noisy (scene.picture, .grain)."""

    guidance_scale = 4.0
    channels = 6
    enlarges = True

    def __init__(self, folder: ModelFolder, device: torch.device) -> None:
        super().__init__(folder, device)
        if self.unet.config.class_embed_type != "timestep":
            raise ValueError("Its network is not told how noisy the small picture is; IF's second stage is.")
        noising = DDPMScheduler.from_pretrained(folder.path / "image_noising_scheduler", local_files_only=True)
        self.kept = float(noising.alphas_cumprod[NOISE_LEVEL])

    def shown_of(self, scene: Scene) -> Tensor:
        size = self.render_size // ENLARGEMENT
        small = torch.nn.functional.interpolate(scene.picture, size=(size, size), mode="area")
        large = torch.nn.functional.interpolate(
            small, size=scene.picture.shape[2:], mode="bilinear", align_corners=True
        )
        return self.kept**0.5 * large + (1 - self.kept) ** 0.5 * scene.grain
