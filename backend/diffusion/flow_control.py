# SPDX-License-Identifier: Apache-2.0
"""ControlNets of the flow models SD3 and Z-Image: they see the control picture as their autoencoder's latents.

diffusers has none for FLUX.2. Encodings of the pictures are control.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    ZImageControlNetModel,
)
from torch import Tensor

from .control import check_fit, open_net
from .folder import FolderError


@dataclass(frozen=True)
class Sd3Control:
    """A loaded ControlNet of SD3; strength 0..1 and more of what it adds."""

    net: SD3ControlNetModel
    kind: str
    strength: float

    @property
    def shifts(self) -> bool:
        """Whether it was trained with the autoencoder's shift: those that are told no pooled words were not."""
        return not self.net.config.force_zeros_for_pooled_projection

    def residuals(self, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor, latent: Tensor) -> dict[str, list]:
        """What the transformer takes besides, for x (B, C, h, w) in the flow's units and the pictures' latents."""
        samples = self.net(
            hidden_states=x, timestep=sigma * 1000, controlnet_cond=latent.to(x), conditioning_scale=self.strength,
            encoder_hidden_states=None if self.net.config.joint_attention_dim is None else text,
            pooled_projections=pooled if self.shifts else torch.zeros_like(pooled), return_dict=False,
        )[0]  # fmt: skip
        return {"block_controlnet_hidden_states": list(samples)}


def load_sd3(path: Path, kind: str, strength: float, transformer: torch.nn.Module, name: str) -> Sd3Control:
    """As control.load. Raises FolderError."""
    net, kind = open_net(path, kind, SD3ControlNetModel, name, transformer.dtype)
    same = "patch_size", "in_channels", "attention_head_dim", "num_attention_heads", "pooled_projection_dim"
    check_fit(net, transformer, same, path, name)
    if net.config.joint_attention_dim is not None:
        check_fit(net, transformer, ("joint_attention_dim", "caption_projection_dim"), path, name)
    if net.config.extra_conditioning_channels:
        raise FolderError(f"The control in {path} is made for inpainting. Choose one of depth or normals.")
    # Some share the transformer's positions, which the pipeline hands them.
    rest = dict.fromkeys(
        ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3",
         "tokenizer_3")
    )  # fmt: skip
    StableDiffusion3ControlNetPipeline(transformer=transformer, controlnet=net, **rest)
    return Sd3Control(net.requires_grad_(False), kind, strength)


@dataclass(frozen=True)
class ZImageControl:
    """A loaded ControlNet of Z-Image, which works with parts of the transformer itself."""

    net: ZImageControlNetModel
    kind: str
    strength: float
    shifts = True

    def residuals(self, x: list[Tensor], time: Tensor, texts: list[Tensor], latent: Tensor) -> dict[str, dict]:
        """What the transformer takes besides, for the same x and time and the pictures' latents (B, C, h, w)."""
        missing = self.net.config.control_in_dim - latent.shape[1]  # since version 2.0 it takes a mask as well
        latent = torch.nn.functional.pad(latent, (0, 0, 0, 0, 0, missing)).to(x[0])
        samples = self.net(x, time, texts, latent[:, :, None], conditioning_scale=self.strength)
        return {"controlnet_block_samples": samples}


def load_z_image(path: Path, kind: str, strength: float, transformer: torch.nn.Module, name: str) -> ZImageControl:
    """As control.load. Raises FolderError."""
    net, kind = open_net(path, kind, ZImageControlNetModel, name, transformer.dtype)
    check_fit(net, transformer, ("dim", "n_heads", "n_kv_heads", "n_refiner_layers"), path, name)
    if net.config.control_in_dim < transformer.config.in_channels:
        check_fit(net, transformer, ("in_channels",), path, name)
    if max(net.config.control_layers_places) >= transformer.config.n_layers:
        raise FolderError(
            f"The control in {path} is made for another family of models than “{name}”, which has only "
            f"{transformer.config.n_layers} layers. Choose a control for this model."
        )
    return ZImageControl(ZImageControlNetModel.from_transformer(net, transformer), kind, strength)
