# SPDX-License-Identifier: Apache-2.0
"""Latent epsilon and v models: Stable Diffusion 1.5 and 2.x, and SDXL with its two encoders and size conditions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from .conversions import from_vp
from .folder import ModelFolder
from .interface import ModelError, Scene
from .parts import text_parts, too_long
from .worded import Embedded, WordedModel

if TYPE_CHECKING:
    from .control import Control


# As interface.RoughlyShown says, by the autoencoder's scaling factor, which tells those of four channels apart.
# Published: of Stable Diffusion 1 and 2 with Latent-Paint, of SDXL for 8 bits in diffusers' documentation.
_LATENT_COLORS = {
    0.18215: (
        (0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473), (0.0, 0.0, 0.0),
    ),
    0.13025: (
        (0.471, 0.471, 0.471), (-0.471, -0.039, 0.078), (0.196, 0.118, -0.039), (-0.549, -0.392, -0.275),
        (0.176, 0.098, 0.02),
    ),
}  # fmt: skip


class LatentModel(WordedModel):
    """SD 1.5 and 2.x. The autoencoder works in float32: SDXL's overflows in float16."""

    guidance_scale = 7.5

    def __init__(self, folder: ModelFolder, device: torch.device) -> None:
        super().__init__(folder, device)
        self.control: Control | None = None
        self.unet = self.load("unet", UNet2DConditionModel)
        self.vae = self.load("vae", AutoencoderKL, torch.float32)
        if self.unet.config.in_channels != self.vae.config.latent_channels:
            raise ValueError(
                f"Its network takes {self.unet.config.in_channels} channels where its autoencoder makes "
                f"{self.vae.config.latent_channels}: it is made for inpainting or another task."
            )
        self.scheduler = DDPMScheduler.from_pretrained(folder.path / "scheduler", local_files_only=True)
        self.shrink = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.render_size = self.unet.config.sample_size * self.shrink

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.scheduler.alphas_cumprod

    @property
    def latent_colors(self) -> tuple[tuple[float, float, float], ...] | None:
        """As interface.RoughlyShown says."""
        return _LATENT_COLORS.get(self.vae.config.scaling_factor) if self.vae.config.latent_channels == 4 else None

    def modules(self) -> tuple[torch.nn.Module, ...]:
        return (self.unet, self.vae) if self.control is None else (self.unet, self.vae, self.control.net)

    def encode(self, picture: Tensor) -> Tensor:
        self.bring(self.vae)
        return encode_with(self.vae, picture, self.device, self.shrink)

    def decode(self, latent: Tensor) -> Tensor:
        self.bring(self.vae)
        return decode_with(self.vae, latent, self.device)

    def encode_texts(self, texts: tuple[str, ...]) -> tuple[Embedded, bool]:
        parts = text_parts(self.folder, self.device, self.dtype)
        pipeline = StableDiffusionPipeline(
            **parts, vae=None, unet=None, scheduler=None, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        sequence, _ = pipeline.encode_prompt(list(texts), self.device, 1, do_classifier_free_guidance=False)
        tokenizer = parts["tokenizer"]
        length = torch.full((len(texts),), sequence.shape[1])
        return Embedded(sequence, None, length), too_long(tokenizer, texts, tokenizer.model_max_length)

    def conditions(self, words: Embedded, size: tuple[int, int]) -> dict[str, Tensor]:
        """What the network is told beside the words; size (H, W) of the picture in pixels."""
        return {}

    def set_control(self, path: Path | None, kind: str, strength: float) -> None:
        """As interface.Controllable says."""
        self.control = None
        if path is not None:
            from . import control

            self.control = control.load(path, kind, strength, self.unet, self.name, self.dtype)

    def shown_of(self, scene: Scene) -> Tensor | None:
        if self.control is None:
            return None
        from . import control

        return control.shown(self.control.kind, scene)

    def told_beside(self, noisy: Tensor, timestep: Tensor, words: Embedded, shown: Tensor | None) -> dict[str, object]:
        if shown is None:
            return {}
        self.bring(self.control.net)
        asked = noisy.to(self.device, self.dtype), timestep, words.sequence.to(self.device, self.dtype)
        return self.control.residuals(*asked, self._conditions_of(noisy, words), shown)

    def ask(self, noisy: Tensor, timestep: Tensor, words: Embedded, told: object = None) -> Tensor:
        self.bring(self.unet)
        answer = self.unet(
            noisy.to(self.device, self.dtype), timestep,
            encoder_hidden_states=words.sequence.to(self.device, self.dtype),
            added_cond_kwargs=self._conditions_of(noisy, words) or None, **(told or {}),
        ).sample.float()  # fmt: skip
        alpha_bar = self.alphas_cumprod.to(self.device)[timestep]
        return from_vp(self.scheduler.config.prediction_type, noisy.float(), answer, alpha_bar)

    def _conditions_of(self, noisy: Tensor, words: Embedded) -> dict[str, Tensor]:
        return self.conditions(words, (noisy.shape[2] * self.shrink, noisy.shape[3] * self.shrink))


class SdxlModel(LatentModel):
    def encode_texts(self, texts: tuple[str, ...]) -> tuple[Embedded, bool]:
        parts = text_parts(self.folder, self.device, self.dtype)
        pipeline = StableDiffusionXLPipeline(
            **parts, vae=None, unet=None, scheduler=None, image_encoder=None, feature_extractor=None,
            add_watermarker=False,
        )  # fmt: skip
        sequence, _, pooled, _ = pipeline.encode_prompt(
            list(texts), device=self.device, do_classifier_free_guidance=False
        )
        if self.folder.settings.get("force_zeros_for_empty_prompt", True):
            empty = torch.tensor([not text for text in texts], device=sequence.device)
            sequence = sequence.masked_fill(empty[:, None, None], 0.0)
            pooled = pooled.masked_fill(empty[:, None], 0.0)
        cut = any(too_long(parts[name], texts, parts[name].model_max_length) for name in ("tokenizer", "tokenizer_2"))
        return Embedded(sequence, pooled, torch.full((len(texts),), sequence.shape[1])), cut

    def conditions(self, words: Embedded, size: tuple[int, int]) -> dict[str, Tensor]:
        """Pooled words, and the sizes SDXL was trained with: the picture is no enlarged small one, and not cropped."""
        height, width = size
        original = (max(height, self.render_size), max(width, self.render_size))
        sizes = torch.tensor([*original, 0, 0, height, width], device=self.device, dtype=self.dtype)
        pooled = words.pooled.to(self.device, self.dtype)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}


def check_size(picture: Tensor, multiple: int) -> None:
    if picture.shape[2] % multiple or picture.shape[3] % multiple:
        raise ModelError(
            f"This model's pictures must be a multiple of {multiple} pixels wide, not {picture.shape[3]}. "
            "Choose another render size."
        )


def encode_with(vae: AutoencoderKL, picture: Tensor, device: torch.device, multiple: int) -> Tensor:
    """Latents of pictures (B, 3, H, W), one at a time. Raises ModelError where the size is no multiple."""
    check_size(picture, multiple)
    with torch.no_grad():
        each = [vae.encode(one[None].to(device, vae.dtype)).latent_dist.mode() for one in picture]
    return ((torch.cat(each) - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor).to(picture)


def decode_with(vae: AutoencoderKL, latent: Tensor, device: torch.device) -> Tensor:
    """The inverse of `encode_with`."""
    with torch.no_grad():
        stored = latent.to(device, vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        return torch.cat([vae.decode(one[None]).sample for one in stored]).to(latent)
