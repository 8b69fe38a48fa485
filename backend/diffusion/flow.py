# SPDX-License-Identifier: Apache-2.0
"""Flow models: SD3, FLUX.2 klein and Z-Image. To the rest of Patina their noise looks like any other's.

x = (1 - S) x0 + S e is VP noise in other units (conversions.py), so these models offer an alpha_bar for each of
their times S, take a VP x_t and answer x0_hat. Times are drawn in the shifted S that the model samples in.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from .conversions import flow_alpha_bar, flow_unit, from_flow, shift_of, shifted
from .folder import ModelFolder
from .interface import ModelError, Scene
from .latent import check_size, decode_with, encode_with
from .memory import Memory
from .parts import text_parts, too_long
from .worded import Embedded, WordedModel

if TYPE_CHECKING:
    from .flow_control import Sd3Control, ZImageControl


class FlowModel(WordedModel):
    """What the three share. `velocity` is the family's: e - x0 in the flow's own units, told what a control says."""

    vae: torch.nn.Module
    transformer: torch.nn.Module
    render_size: int
    shrink: int  # pixels a latent is wide
    patch: int  # latents a token is wide
    control: Sd3Control | ZImageControl | None = None

    def _read_times(self, tokens: int) -> None:
        """Set `sigmas` (T,) by timestep for pictures of so many tokens."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
            self.folder.path / "scheduler", local_files_only=True
        )
        config = scheduler.config
        shift = shift_of(self.mu(config, tokens)) if config.use_dynamic_shifting else config.shift
        self.sigmas = shifted(config.num_train_timesteps, shift)

    def mu(self, config: dict, tokens: int) -> float:
        """The dynamic shift's logarithm: a line through two picture sizes."""
        share = (tokens - config["base_image_seq_len"]) / (config["max_image_seq_len"] - config["base_image_seq_len"])
        return config["base_shift"] + share * (config["max_shift"] - config["base_shift"])

    def velocity(self, x: Tensor, sigma: Tensor, words: Embedded, told: dict) -> Tensor:
        raise NotImplementedError

    @property
    def alphas_cumprod(self) -> Tensor:
        return flow_alpha_bar(self.sigmas)

    def modules(self) -> tuple[torch.nn.Module, ...]:
        return (self.transformer, self.vae) if self.control is None else (self.transformer, self.vae, self.control.net)

    def shown_of(self, scene: Scene) -> Tensor | None:
        """The control picture's latents, of the scale that the control was trained with."""
        if self.control is None:
            return None
        from . import control

        latent = self.encode(control.shown(self.control.kind, scene).clamp(0, 1) * 2 - 1)
        config = self.vae.config
        return latent if self.control.shifts else latent + (config.shift_factor or 0.0) * config.scaling_factor

    def encode(self, picture: Tensor) -> Tensor:
        self.bring(self.vae)
        return encode_with(self.vae, picture, self.device, self.shrink * self.patch)

    def decode(self, latent: Tensor) -> Tensor:
        self.bring(self.vae)
        return decode_with(self.vae, latent, self.device)

    def ask(self, noisy: Tensor, timestep: Tensor, words: Embedded, told: object = None) -> Tensor:
        self.bring(*self.networks())
        x, sigma = self._own_units(noisy, timestep)
        return from_flow(x, self.velocity(x, sigma, words, told or {}).float(), sigma)

    def networks(self) -> tuple[torch.nn.Module, ...]:
        """What has to be there when the transformer is asked."""
        return (self.transformer,)

    def _own_units(self, noisy: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sigmas.to(self.device)[timestep]
        return noisy.float() * flow_unit(sigma).view(-1, 1, 1, 1), sigma


class Sd3Model(FlowModel):
    guidance_scale = 7.0

    def __init__(self, folder: ModelFolder, device: torch.device) -> None:
        super().__init__(folder, device)
        self.transformer = self.load("transformer", SD3Transformer2DModel)
        self.vae = self.load("vae", AutoencoderKL, torch.float32)
        self.shrink = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.patch = self.transformer.config.patch_size
        self.render_size = self.transformer.config.sample_size * self.shrink
        self._read_times((self.transformer.config.sample_size // self.patch) ** 2)

    def encode_texts(self, texts: tuple[str, ...]) -> tuple[Embedded, bool]:
        parts = text_parts(self.folder, self.device, self.dtype)
        pipeline = StableDiffusion3Pipeline(
            **{"tokenizer_3": None, "text_encoder_3": None, **parts}, transformer=None, vae=None, scheduler=None
        )
        # Without T5 the pipeline asks the network how wide T5's words would be.
        pipeline.register_modules(transformer=self.transformer)
        sequence, _, pooled, _ = pipeline.encode_prompt(
            list(texts), None, None, device=self.device, do_classifier_free_guidance=False
        )
        tokenizer = parts["tokenizer"]
        cut = "tokenizer_3" not in parts and too_long(tokenizer, texts, tokenizer.model_max_length)
        return Embedded(sequence, pooled, torch.full((len(texts),), sequence.shape[1])), cut

    def set_control(self, path: Path | None, kind: str, strength: float) -> None:
        """As interface.Controllable says."""
        self.control = None
        if path is not None:
            from .flow_control import load_sd3

            self.control = load_sd3(path, kind, strength, self.transformer, self.name)

    def told_beside(self, noisy: Tensor, timestep: Tensor, words: Embedded, shown: Tensor | None) -> dict:
        if shown is None:
            return {}
        self.bring(self.control.net)
        x, sigma = self._own_units(noisy, timestep)
        return self.control.residuals(x.to(self.dtype), sigma, *self._texts_of(words), shown)

    def velocity(self, x: Tensor, sigma: Tensor, words: Embedded, told: dict) -> Tensor:
        text, pooled = self._texts_of(words)
        return self.transformer(
            hidden_states=x.to(self.dtype), timestep=sigma * 1000, encoder_hidden_states=text,
            pooled_projections=pooled, **told,
        ).sample  # fmt: skip

    def _texts_of(self, words: Embedded) -> tuple[Tensor, Tensor]:
        return words.sequence.to(self.device, self.dtype), words.pooled.to(self.device, self.dtype)


class KleinModel(FlowModel):
    """FLUX.2 klein. Latents are 2 x 2 patches, normalised by the autoencoder's running statistics."""

    def __init__(self, folder: ModelFolder, device: torch.device) -> None:
        super().__init__(folder, device)
        self.transformer = self.load("transformer", Flux2Transformer2DModel)
        self.vae = self.load("vae", AutoencoderKLFlux2, torch.float32)
        self.distilled = bool(folder.settings.get("is_distilled", False))
        self.guidance_scale = 1.0 if self.distilled else 4.0
        self.shrink, self.patch = 2 ** (len(self.vae.config.block_out_channels) - 1), 2
        self.render_size = min(1024, self.vae.config.sample_size)
        self._read_times((self.render_size // (self.shrink * self.patch)) ** 2)

    def mu(self, config: dict, tokens: int) -> float:
        return compute_empirical_mu(tokens, 50)

    def words_about_prompt(self) -> tuple[str, ...]:
        if not self.distilled:
            return ()
        return (
            f"{self.name} was distilled to few steps and knows no guidance scale: use it with the guidance “k_step”.",
        )

    def encode(self, picture: Tensor) -> Tensor:
        check_size(picture, self.shrink * self.patch)
        self.bring(self.vae)
        with torch.no_grad():
            each = [self.vae.encode(one[None].to(self.device, self.vae.dtype)).latent_dist.mode() for one in picture]
            patched = Flux2KleinPipeline._patchify_latents(torch.cat(each))
            mean, deviation = self._statistics(patched)
            return ((patched - mean) / deviation).to(picture)

    def decode(self, latent: Tensor) -> Tensor:
        self.bring(self.vae)
        with torch.no_grad():
            mean, deviation = self._statistics(latent.to(self.device, self.vae.dtype))
            stored = Flux2KleinPipeline._unpatchify_latents(latent.to(mean) * deviation + mean)
            return torch.cat([self.vae.decode(one[None]).sample for one in stored]).to(latent)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        mean = norm.running_mean.view(1, -1, 1, 1).to(like)
        return mean, (norm.running_var.view(1, -1, 1, 1) + self.vae.config.batch_norm_eps).sqrt().to(like)

    def encode_texts(self, texts: tuple[str, ...]) -> tuple[Embedded, bool]:
        parts = text_parts(self.folder, self.device, self.dtype)
        pipeline = Flux2KleinPipeline(**parts, scheduler=None, vae=None, transformer=None)
        sequence, _ = pipeline.encode_prompt(list(texts), device=self.device)
        cut = too_long(parts["tokenizer"], texts, pipeline.tokenizer_max_length)
        return Embedded(sequence, None, torch.full((len(texts),), sequence.shape[1])), cut

    def velocity(self, x: Tensor, sigma: Tensor, words: Embedded, told: dict) -> Tensor:
        text = words.sequence.to(self.device, self.dtype)
        answer = self.transformer(
            hidden_states=Flux2KleinPipeline._pack_latents(x).to(self.dtype), timestep=sigma, guidance=None,
            encoder_hidden_states=text,
            txt_ids=Flux2KleinPipeline._prepare_text_ids(text).to(self.device),
            img_ids=Flux2KleinPipeline._prepare_latent_ids(x).to(self.device),
        ).sample  # fmt: skip
        return answer.permute(0, 2, 1).reshape(x.shape)


class ZImageModel(FlowModel):
    """Z-Image: its time runs backwards and its answer has the other sign; texts keep their own lengths."""

    guidance_scale = 5.0
    soft_views = False

    def __init__(self, folder: ModelFolder, device: torch.device) -> None:
        super().__init__(folder, device)
        self.transformer = self.load("transformer", ZImageTransformer2DModel)
        self.vae = self.load("vae", AutoencoderKL, torch.float32)
        self.shrink = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.patch = 2
        self.render_size = min(1024, self.vae.config.sample_size)
        self._read_times((self.render_size // (self.shrink * self.patch)) ** 2)

    def encode_texts(self, texts: tuple[str, ...]) -> tuple[Embedded, bool]:
        parts = text_parts(self.folder, self.device, self.dtype)
        pipeline = ZImagePipeline(**parts, scheduler=None, vae=None, transformer=None)
        each, _ = pipeline.encode_prompt(list(texts), device=self.device, do_classifier_free_guidance=False)
        length = torch.tensor([len(text) for text in each])
        sequence = torch.nn.utils.rnn.pad_sequence(each, batch_first=True)
        return Embedded(sequence, None, length), too_long(parts["tokenizer"], texts, 512)

    def set_control(self, path: Path | None, kind: str, strength: float) -> None:
        """As interface.Controllable says."""
        self.set_memory(Memory())  # a control takes parts of the transformer, which must be whole then
        self.control = None
        if path is not None:
            from .flow_control import load_z_image

            self.control = load_z_image(path, kind, strength, self.transformer, self.name)

    def set_memory(self, memory: Memory) -> None:
        if self.control is not None and memory.offload == "blocks":
            raise ModelError(
                f"The control of “{self.name}” works with parts of its network, which then cannot come block by block. "
                "Choose offload=parts, or leave the control out."
            )
        super().set_memory(memory)

    def networks(self) -> tuple[torch.nn.Module, ...]:
        return (self.transformer,) if self.control is None else (self.transformer, self.control.net)

    def told_beside(self, noisy: Tensor, timestep: Tensor, words: Embedded, shown: Tensor | None) -> dict:
        if shown is None:
            return {}
        self.bring(*self.networks())
        x, sigma = self._own_units(noisy, timestep)
        return self.control.residuals(*self._asked(x, sigma, words), shown)

    def velocity(self, x: Tensor, sigma: Tensor, words: Embedded, told: dict) -> Tensor:
        answer = self.transformer(*self._asked(x, sigma, words), return_dict=False, **told)[0]
        return -torch.stack([one.float() for one in answer]).squeeze(2)

    def _asked(self, x: Tensor, sigma: Tensor, words: Embedded) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        texts = [
            text[:length].to(self.device, self.dtype)
            for text, length in zip(words.sequence, words.length.tolist(), strict=True)
        ]
        return list(x.to(self.dtype)[:, :, None]), 1 - sigma, texts
