# SPDX-License-Identifier: Apache-2.0
"""Models of published architectures with drawn weights: what a step of them costs is measured without a download.

Their configurations are those of the published checkpoints, tested by their numbers of parameters; but for IF's second
stage, of which only the number (1.2 billion) was at hand: ours has 1.1 billion in the same kind of blocks.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import ControlNetModel, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from .control import Control
from .flow import KleinModel
from .folder import ModelFolder
from .interface import Denoiser
from .latent import LatentModel, SdxlModel
from .pixel import EnlargingModel, PixelModel
from .worded import Embedded

DEVIATION, BLOCK = 0.02, 1 << 22  # of the weights; values drawn, and used again and again


@dataclass(frozen=True)
class Architecture:
    """`parts`: configurations by part; `text`: tokens, width and pooled width (0: none) of a prompt."""

    family: type
    parts: dict[str, dict]
    text: tuple[int, int, int]
    controlled: bool = False


def model(name: str, device: torch.device, toy: bool = False) -> Denoiser:
    """One of ARCHITECTURES, or with the same kinds of blocks at toy size; prompts mean nothing to it."""
    architecture = (TOYS if toy else ARCHITECTURES)[name]

    class Drawn(architecture.family):
        def load(self, part: str, kind: type, dtype: torch.dtype | None = None) -> torch.nn.Module:
            return drawn(kind, architecture.parts[part], dtype or self.dtype)

        def encode_texts(self, texts: tuple[str, ...]) -> tuple[Embedded, bool]:
            length, width, pooled = architecture.text
            generator = torch.Generator().manual_seed(0)
            words = torch.randn(len(texts), length, width, generator=generator)
            together = torch.randn(len(texts), pooled, generator=generator) if pooled else None
            return Embedded(words, together, torch.full((len(texts),), length)), False

    with tempfile.TemporaryDirectory() as folder:
        for part, scheduler in _schedulers(architecture.family).items():
            scheduler.save_pretrained(Path(folder) / part)
        made = Drawn(ModelFolder(Path(folder), name, {}, {}), device)
    made.name = name
    if architecture.controlled:
        net = drawn(ControlNetModel, architecture.parts["control"], made.dtype)
        made.control = Control(net, "depth", 1.0)
    made.set_prompt("red plastic", "")
    return made


def drawn(kind: type, configuration: dict, dtype: torch.dtype) -> torch.nn.Module:
    """A network of this configuration on the CPU, frozen, never in more memory than its own weights take."""
    with torch.device("meta"):
        network = kind(**configuration)
    # torch's own: that of diffusers warns of a list of exceptions that is empty.
    network = torch.nn.Module.to(network, dtype).to_empty(device="cpu").eval().requires_grad_(False)
    block = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * DEVIATION).to(dtype)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        flat = tensor.data.view(-1)
        if tensor.dim() < 2:  # biases, scales of norms, running statistics
            flat.fill_(1.0 if name.endswith(("weight", "var")) else 0.0)
            continue
        for start in range(0, len(flat), BLOCK):
            part = flat[start : start + BLOCK]
            part.copy_(block[: len(part)])
    return network


def parameters(name: str) -> dict[str, int]:
    """How many each part of the architecture has, without making any."""
    counts = {}
    for part, configuration in ARCHITECTURES[name].parts.items():
        with torch.device("meta"):
            network = _kind(ARCHITECTURES[name].family, part)(**configuration)
        counts[part] = sum(parameter.numel() for parameter in network.parameters())
    return counts


def _kind(family: type, part: str) -> type:
    import diffusers

    if part == "vae":
        return diffusers.AutoencoderKLFlux2 if family is KleinModel else diffusers.AutoencoderKL
    kinds = {"unet": "UNet2DConditionModel", "control": "ControlNetModel", "transformer": "Flux2Transformer2DModel"}
    return getattr(diffusers, kinds[part])


@cache
def cosine_schedule() -> DDPMScheduler:
    """DeepFloyd IF's."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


@cache
def latent_schedule() -> DDPMScheduler:
    """Stable Diffusion's."""
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def _schedulers(family: type) -> dict[str, object]:
    if family is KleinModel:
        return {"scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)}
    if issubclass(family, PixelModel):
        return {"scheduler": cosine_schedule(), "image_noising_scheduler": cosine_schedule()}
    return {"scheduler": latent_schedule()}


def _if_blocks(widths: tuple[int, ...], kinds: str) -> dict[str, object]:
    """DeepFloyd IF's blocks: R plain, S with attention."""
    down = {"R": "ResnetDownsampleBlock2D", "S": "SimpleCrossAttnDownBlock2D"}
    up = {"R": "ResnetUpsampleBlock2D", "S": "SimpleCrossAttnUpBlock2D"}
    return {
        "block_out_channels": widths, "down_block_types": [down[kind] for kind in kinds],
        "up_block_types": [up[kind] for kind in reversed(kinds)], "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "encoder_hid_dim_type": "text_proj", "addition_embed_type": "text", "cross_attention_norm": "group_norm",
        "resnet_time_scale_shift": "scale_shift", "act_fn": "gelu", "time_embedding_act_fn": "gelu", "out_channels": 6,
    }  # fmt: skip


def _sdxl(widths: tuple[int, ...], depths: tuple[int, ...], heads: tuple[int, ...]) -> dict[str, object]:
    return {
        "block_out_channels": widths, "transformer_layers_per_block": depths, "attention_head_dim": heads,
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * (len(widths) - 1)),
        "addition_embed_type": "text_time", "use_linear_projection": True,
    }  # fmt: skip


def _autoencoder(widths: tuple[int, ...], **more: object) -> dict[str, object]:
    blocks = len(widths)
    return {
        "block_out_channels": widths, "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks, **more,
    }  # fmt: skip


_WIDE = (128, 256, 512, 512)
_SDXL = _sdxl((320, 640, 1280), (1, 2, 10), (5, 10, 20)) | {
    "cross_attention_dim": 2048, "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_SDXL_UP = {"sample_size": 128, "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
_IF = {"cross_attention_dim": 2816, "encoder_hid_dim": 4096, "attention_head_dim": 64, "layers_per_block": 3}
ARCHITECTURES = {
    "SD 1.5": Architecture(
        LatentModel,
        {
            "unet": {"sample_size": 64, "cross_attention_dim": 768},
            "vae": _autoencoder(_WIDE, layers_per_block=2, sample_size=512),
        },
        (77, 768, 0),
    ),
    "SDXL + ControlNet": Architecture(
        SdxlModel,
        {
            "unet": _SDXL | _SDXL_UP,
            "vae": _autoencoder(_WIDE, layers_per_block=2, sample_size=1024, scaling_factor=0.13025),
            "control": _SDXL,
        },
        (77, 2048, 1280),
        controlled=True,
    ),
    "IF I": Architecture(
        PixelModel,
        {"unet": _if_blocks((704, 1408, 2112, 2816), "RSSS") | _IF | {"in_channels": 3, "sample_size": 64}},
        (77, 4096, 0),
    ),
    "IF II": Architecture(
        EnlargingModel,
        {
            "unet": _if_blocks((320, 640, 1280, 1280), "RRSS")
            | _IF
            | {
                "cross_attention_dim": 1280, "in_channels": 6, "sample_size": 256, "class_embed_type": "timestep",
                "resnet_skip_time_act": True, "resnet_out_scale_factor": 1.4142,
            }  # fmt: skip
        },
        (77, 4096, 0),
    ),
    "FLUX.2 klein 4B": Architecture(
        KleinModel,
        {
            "transformer": {
                "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "attention_head_dim": 128,
                "num_attention_heads": 24, "joint_attention_dim": 7680, "guidance_embeds": False,
            },
            "vae": _autoencoder(_WIDE, layers_per_block=2, latent_channels=32, sample_size=1024),
        },
        (512, 7680, 0),
    ),
}  # fmt: skip

_NARROW = {"norm_num_groups": 4, "layers_per_block": 1}
_TOY_XL = _sdxl((8, 16), (1, 1), (1, 2)) | _NARROW | {
    "cross_attention_dim": 28, "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 12 + 6 * 4,
}  # fmt: skip
_TOY_IF = _if_blocks((8, 16), "RS") | _NARROW | {
    "cross_attention_dim": 32, "encoder_hid_dim": 16, "attention_head_dim": 4, "addition_embed_type_num_heads": 2,
}  # fmt: skip
_TOY_VAE = _autoencoder((8, 8), **_NARROW, sample_size=16)
TOYS = {
    "SD 1.5": Architecture(
        LatentModel,
        {
            "unet": {
                "sample_size": 8, "cross_attention_dim": 16, "block_out_channels": (8, 16), "attention_head_dim": 4,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **_NARROW,
            },
            "vae": _TOY_VAE,
        },
        (7, 16, 0),
    ),
    "SDXL + ControlNet": Architecture(
        SdxlModel,
        {
            "unet": _TOY_XL | {"sample_size": 8, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
            "vae": _TOY_VAE,
            "control": _TOY_XL | {"conditioning_embedding_out_channels": (8, 8)},
        },
        (7, 28, 12),
        controlled=True,
    ),
    "IF I": Architecture(
        PixelModel, {"unet": _TOY_IF | {"in_channels": 3, "sample_size": 16}}, (7, 16, 0)
    ),
    "IF II": Architecture(
        EnlargingModel,
        {"unet": _TOY_IF | {"in_channels": 6, "sample_size": 32, "class_embed_type": "timestep"}},
        (7, 16, 0),
    ),
    "FLUX.2 klein 4B": Architecture(
        KleinModel,
        {
            "transformer": {
                "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
                "num_attention_heads": 2, "joint_attention_dim": 24, "timestep_guidance_channels": 16,
                "axes_dims_rope": (2, 2, 2, 2), "guidance_embeds": False,
            },
            "vae": _TOY_VAE | {"latent_channels": 4},
        },
        (7, 24, 0),
    ),
}  # fmt: skip
