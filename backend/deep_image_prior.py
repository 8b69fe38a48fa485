# SPDX-License-Identifier: Apache-2.0
"""Maps that a small convolutional network paints from fixed noise (Paint-it, Youwang et al. 2024; Ulyanov et al. 2018).

Texels then move together, smooth structure before noise: the network is what is optimised, by Adam. It is taught the
moves that pictures wish for as any maps are (descent.py), and what it paints is written into the maps' UV levels, so
that nothing else knows of it. What all points share moves by itself, since a network is slow to paint one value
everywhere; finer volumes stay as the run began them. On one core a step with maps of 512 takes a second more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .material import CHANNELS

INPUT, WIDTH, DEPTH = 16, 32, 4
LOUDNESS = 0.1  # of the noise, as Ulyanov's
LEARNING_RATE = 1e-3
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps


class DeepImagePrior:
    """The network of one run; `pyramid` are the maps' UV levels (1, 7, T, T), coarse to fine, which begin flat."""

    def __init__(self, pyramid: Sequence[Tensor], seed: int) -> None:
        device, self.sides = pyramid[-1].device, [level.shape[-1] for level in pyramid]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = _Hourglass().to(device)
            self.noise = (LOUDNESS * torch.rand(1, INPUT, self.sides[-1], self.sides[-1])).to(device)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)
        for parameter in self.network.parameters():
            zeros = torch.zeros_like(parameter)
            self.optimiser.state[parameter] = dict(zip(_MOMENTS, (torch.zeros(()), zeros, zeros.clone()), strict=True))
        self._painted: list[Tensor] | None = None

    def move(self, pyramid: Sequence[Tensor], wishes: Sequence[Tensor | None], points: int, rate: float) -> None:
        """Teach the network the moves, to be subtracted, that so many points wish of each level (their sums; None:
        nobody read it), at this share of its rate, and write what it now paints into `pyramid`."""
        painted = self._levels() if self._painted is None else self._painted
        asked = [(level, wish / points) for level, wish in zip(painted, wishes, strict=True) if wish is not None]
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward([level for level, _ in asked], [wish for _, wish in asked])
        for group in self.optimiser.param_groups:
            group["lr"] = LEARNING_RATE * rate
        self.optimiser.step()
        self._painted = self._levels()
        with torch.no_grad():
            for level, new in zip(pyramid, self._painted, strict=True):
                level.copy_(new)

    def tensors(self) -> dict[str, Tensor]:
        """All that changes, for a checkpoint; `load` takes it back."""
        kept = {}
        for name, parameter in self.network.named_parameters():
            kept[name] = parameter.detach()
            kept |= {f"{name}.{what}": self.optimiser.state[parameter][what].clone() for what in _MOMENTS}
        return kept

    def load(self, tensors: dict[str, Tensor]) -> None:
        self._painted = None
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(tensors[name])
                for what in _MOMENTS:
                    self.optimiser.state[parameter][what].copy_(tensors[f"{name}.{what}"])

    def _levels(self) -> list[Tensor]:
        """What is painted, cut into the levels whose sum it is: each takes what the coarser ones left."""
        left, levels = self.network(self.noise), []
        for side in self.sides:
            part = nn.functional.adaptive_avg_pool2d(left, side)
            levels.append(part)
            left = left - nn.functional.interpolate(part, size=left.shape[2:], mode="bilinear", align_corners=False)
        return levels


class _Hourglass(nn.Module):
    """Down DEPTH times and up again, with skips; its last layer begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(INPUT if level == 0 else WIDTH, 2) for level in range(DEPTH))
        self.up = nn.ModuleList(_block(WIDTH + (INPUT if level == 0 else WIDTH), 1) for level in range(DEPTH))
        self.last = nn.Conv2d(WIDTH, CHANNELS, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for layer in self.down:
            skipped.append(x)
            x = layer(x)
        for layer, skip in zip(reversed(self.up), reversed(skipped), strict=True):
            x = nn.functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = layer(torch.cat((x, skip), dim=1))
        return self.last(x)


def _block(channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, stride, 1), nn.GroupNorm(4, WIDTH), nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.GroupNorm(4, WIDTH), nn.LeakyReLU(0.2),
    )  # fmt: skip
