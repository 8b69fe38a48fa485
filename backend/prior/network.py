# SPDX-License-Identifier: Apache-2.0
"""The built-in prior's network: a diffusers UNet on pixel blocks, and its word table.

`Conditioner` turns word numbers and the picture's scale into the vector that the UNet takes in place
of a class embedding. The UNet does not paint the picture itself: for every pixel it says how much of
each of the three fixed-material renders to take, per colour, and what to add. So shading and
silhouettes are exact from the first step on, and what is left to learn are materials.
Knows tensors; it does not know prompts, pictures on disk or schedules.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from .conditions import BACKGROUND, BLOCK, CONDITION_CHANNELS, COVERAGE_CHANNEL

WORD_WIDTH = 192
RENDERS = 3  # fixed-material renders, first in the condition
HEAD_CHANNELS = 3 * RENDERS + 3  # a gain per render and colour, and a remainder
NORMALS, WAVES = slice(9, 12), slice(13, 25)  # channels of the condition
FIELD_CHANNELS, FIELD_WIDTH = 15, 48


def new_unet(widths: tuple[int, int, int] = (128, 160, 160), layers: int = 1, size: int = 64) -> UNet2DModel:
    return UNet2DModel(
        sample_size=size // BLOCK,
        in_channels=(3 + CONDITION_CHANNELS) * BLOCK**2,
        out_channels=HEAD_CHANNELS * BLOCK**2,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
        add_attention=True,
    )


def new_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False
    )


class PatternField(nn.Module):
    """A small field per pixel: from where a pixel lies on the object and the words, a share of the head.

    Regular patterns (bricks, checks, stripes) are functions of the pattern coordinates alone; the UNet
    sees them through 4x4 blocks and takes far longer to learn them. Words scale and shift the hidden values.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(FIELD_CHANNELS, FIELD_WIDTH, 1)
        self.middle = nn.Conv2d(FIELD_WIDTH, FIELD_WIDTH, 1)
        self.leave = nn.Conv2d(FIELD_WIDTH, HEAD_CHANNELS, 1)
        self.modulate = nn.Linear(width, 4 * FIELD_WIDTH)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, condition: Tensor, embedding: Tensor) -> Tensor:
        """Head values (B, 12, H, W) from conditions (B, 25, H, W) and embeddings (B, width)."""
        where = torch.cat((condition[:, NORMALS], condition[:, WAVES]), dim=1)
        scale1, shift1, scale2, shift2 = self.modulate(embedding)[..., None, None].chunk(4, dim=1)
        hidden = nn.functional.silu(self.enter(where) * (1 + scale1) + shift1)
        hidden = nn.functional.silu(self.middle(hidden) * (1 + scale2) + shift2)
        return self.leave(hidden)


class Conditioner(nn.Module):
    """Word numbers (B, K), -1 for none, and scale (B,) -> embedding (B, width).

    `paint` gives the part of the head that needs no noisy picture: which renders a material takes and in
    what colour (a table of gains that add up, and a correction for their combination), and regular patterns.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words + 1, WORD_WIDTH)  # the last row stands for "no word"
        # Without the norm the embedding grows a hundredfold in training, drowns the timestep and kills `paint`.
        self.mix = nn.Sequential(
            nn.Linear(WORD_WIDTH + 3, width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width)
        )
        self.correction = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, HEAD_CHANNELS))
        nn.init.zeros_(self.correction[-1].weight)
        nn.init.zeros_(self.correction[-1].bias)
        self.field = PatternField(width)
        self.gains = nn.Embedding(words + 1, HEAD_CHANNELS)
        nn.init.zeros_(self.gains.weight)

    def forward(self, numbers: Tensor, scale: Tensor) -> Tensor:
        features = torch.stack((scale, torch.sin(scale * 3), torch.cos(scale * 3)), dim=1)
        return self.mix(torch.cat((_sum_of(self.words, numbers), features), dim=1))

    def paint(self, numbers: Tensor, condition: Tensor, embedding: Tensor) -> Tensor:
        """What words and place alone say of the head, (B, 12, H, W)."""
        wide = _sum_of(self.gains, numbers).float() + self.correction(embedding).float()
        return wide[..., None, None] + self.field(condition, embedding).float()


def _sum_of(table: nn.Embedding, numbers: Tensor) -> Tensor:
    """The order of words is free, so their rows are summed; without words the last row stands."""
    known = table(numbers.clamp(min=0)) * (numbers >= 0)[..., None]
    return known.sum(1) + table.weight[-1] * (numbers < 0).all(1, keepdim=True)


def predict_x0(
    unet: UNet2DModel,
    noisy: Tensor,
    condition: Tensor,
    timestep: Tensor,
    embedding: Tensor,
    paint: Tensor,
    alpha_bar: Tensor,
) -> Tensor:
    """x0_hat (B, 3, H, W) in -1..1 for noisy pictures (B, 3, H, W) and conditions (B, 25, H, W).

    `paint` (B, 12, H, W) counts by the share of noise: where the picture itself tells, words need not.
    """
    blocks = nn.functional.pixel_unshuffle(torch.cat((noisy, condition), dim=1), BLOCK)
    head = nn.functional.pixel_shuffle(unet(blocks, timestep, class_labels=embedding).sample, BLOCK).float()
    head = head + paint * (1 - alpha_bar).view(-1, 1, 1, 1)
    coverage = condition[:, COVERAGE_CHANNEL : COVERAGE_CHANNEL + 1]
    renders = (condition[:, : 3 * RENDERS] + 1) / 2 * (coverage > 0)
    painted = (head[:, : 3 * RENDERS] * renders).unflatten(1, (RENDERS, 3)).sum(1) + head[:, 3 * RENDERS :]
    return coverage * (2 * painted - 1) + (1 - coverage) * (2 * BACKGROUND - 1)
