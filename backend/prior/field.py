# SPDX-License-Identifier: Apache-2.0
"""What words alone say of a surface: a small neural field from procedural textures and words to material values.

For every point it sees the procedural textures there (procedural.py) and the prompt's words, and answers with the
expected base colour, metallic, roughness and height. The denoiser (network.py) starts from this expectation and
corrects it by what the noisy picture shows. Knows tensors; knows no prompts, pictures or schedules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import procedural
from .instances import Surface, bend, textures_round

WORD_WIDTH, CODE_WIDTH, HIDDEN = 128, 256, 128
OUTPUTS = 6  # base colour 3 (display), metallic, roughness, height


class MaterialField(nn.Module):
    """`code` turns words into modulations, `forward` textures (N, C) into values (N, 6)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words + 1, WORD_WIDTH)  # the last row stands for "no word"
        self.code = nn.Sequential(
            nn.Linear(WORD_WIDTH, CODE_WIDTH), nn.SiLU(), nn.Linear(CODE_WIDTH, CODE_WIDTH), nn.SiLU()
        )
        self.sizes = (procedural.CHANNELS, HIDDEN, HIDDEN)
        self.scales = nn.Linear(CODE_WIDTH, sum(self.sizes))
        self.shifts = nn.Linear(CODE_WIDTH, 2 * HIDDEN + OUTPUTS)
        self.enter = nn.Linear(procedural.CHANNELS, HIDDEN)
        self.middle = nn.Linear(HIDDEN, HIDDEN)
        self.leave = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, textures: Tensor, numbers: Tensor) -> Tensor:
        """Values (B, N, 6) from stacked textures (B, N, C) and word numbers (B, 4), -1 where unused."""
        code = self.code(sum_of(self.words, numbers))[:, None]
        pick, scale1, scale2 = self.scales(code).split(self.sizes, dim=-1)
        shift1, shift2, base = self.shifts(code).split((HIDDEN, HIDDEN, OUTPUTS), dim=-1)
        hidden = nn.functional.silu(self.enter(textures * (1 + pick)) * (1 + scale1) + shift1)
        hidden = nn.functional.silu(self.middle(hidden) * (1 + scale2) + shift2)
        return self.leave(hidden) + base


def sum_of(table: nn.Embedding, numbers: Tensor) -> Tensor:
    """Rows of word numbers (B, 4) summed, since their order is free; without words the last row stands."""
    known = table(numbers.clamp(min=0)) * (numbers >= 0)[..., None]
    return known.sum(1) + table.weight[-1] * (numbers < 0).all(1, keepdim=True)


def expect(field: MaterialField, numbers: Tensor, q: Tensor, normal: Tensor) -> Surface:
    """What one prompt's words (4,) say at pattern coordinates q (N, 3) with smooth unit normals (N, 3)."""
    return expect_at(field, numbers, normal, torch.stack([t.stacked() for t in textures_round(q, normal)]))


def expect_at(field: MaterialField, numbers: Tensor, normal: Tensor, textures: Tensor) -> Surface:
    """The same from stacked textures (4, N, C) at the point and along the axes."""
    values = field(textures, numbers.expand(len(textures), -1))
    here = values[0]
    return Surface(
        here[:, :3].clamp(0, 1), here[:, 3].clamp(0, 1), here[:, 4].clamp(0.05, 1), bend(normal, list(values[..., 5]))
    )
