# SPDX-License-Identifier: Apache-2.0
"""Moving the maps by what points wish: each texel by the mean wish of the points it is read at.

Unlike a plain gradient, which is large where many pixels fall and small where few do, a mean moves all texels
alike. The mean runs over some steps, weighted by how often a texel was seen in them. Knows tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY = 0.8  # share of the sums that stays from step to step
ENOUGH = 0.1  # points (bilinear shares) from which on a texel follows its mean fully


class MeanDescent(torch.optim.Optimizer):
    """A parameter's `grad` (1, C, ...) holds the sums of the wished moves by the shares the texels have in the
    points, `reach` the sums of these shares (1, 1, ...); lr is the share of the mean that is moved at once."""

    def __init__(self, groups: list[dict], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, reach: list[Tensor | None]) -> None:
        parameters = [(group, p) for group in self.param_groups for p in group["params"]]
        for (group, parameter), seen in zip(parameters, reach, strict=True):
            if parameter.grad is None or seen is None:
                continue
            state = self.state[parameter]
            if not state:
                state.update(self.fresh(parameter))
            state["moves"].mul_(MEMORY).add_(parameter.grad)
            state["reach"].mul_(MEMORY).add_(seen)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.addcdiv_(state["moves"], state["reach"] + ENOUGH, value=-group["lr"])

    @staticmethod
    def fresh(parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter (1, C, ...) before its first step."""
        return {"moves": torch.zeros_like(parameter), "reach": torch.zeros_like(parameter[:, :1])}
