# SPDX-License-Identifier: Apache-2.0
"""The built-in prior's denoiser: a diffusers UNet on pixel blocks that denoises materials, not colours.

From the noisy picture and its condition (conditions.py) it says by how much base colour, metallic and roughness
differ, pixel by pixel, from what the words expect. The clean picture is then rendered from these values with
Patina's own shading, so light, reflections and silhouettes are exact and cannot get into the maps.
Knows tensors; it does not know prompts, pictures on disk or schedules.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from .conditions import BLOCK, CONDITION_CHANNELS, VALUES


def new_unet(widths: tuple[int, int, int] = (96, 128, 128), layers: int = 1, size: int = 64) -> UNet2DModel:
    unet = UNet2DModel(
        sample_size=size // BLOCK,
        in_channels=(3 + CONDITION_CHANNELS) * BLOCK**2,
        out_channels=VALUES * BLOCK**2,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        add_attention=True,
    )
    # It begins by believing the words.
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def new_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False
    )


def correction(unet: UNet2DModel, noisy: Tensor, condition: Tensor, timestep: Tensor, alpha_bar: Tensor) -> Tensor:
    """What to add (B, 5, H, W) to the expected values, for noisy pictures (B, 3, H, W), conditions (B, 21, H, W),
    timesteps and their alpha_bar (B,). It counts by the share of signal: pure noise tells nothing."""
    blocks = nn.functional.pixel_unshuffle(torch.cat((noisy, condition), dim=1), BLOCK)
    answer = nn.functional.pixel_shuffle(unet(blocks, timestep).sample, BLOCK).float()
    return answer * alpha_bar.sqrt().view(-1, 1, 1, 1)
