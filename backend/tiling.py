# SPDX-License-Identifier: Apache-2.0
"""Four pictures as one: 2 x 2, so that a model paints them together."""

from __future__ import annotations

import torch
from torch import Tensor

FOUR = 4


def tile(pictures: Tensor) -> Tensor:
    """(4 B, C, H, W) -> (B, C, 2 H, 2 W): first and second above third and fourth."""
    first, second, third, fourth = (pictures[place::FOUR] for place in range(FOUR))
    return torch.cat((torch.cat((first, second), dim=3), torch.cat((third, fourth), dim=3)), dim=2)


def untile(tiled: Tensor) -> Tensor:
    """The inverse of `tile`."""
    above, below = tiled.chunk(2, dim=2)
    quarters = torch.stack((*above.chunk(2, dim=3), *below.chunk(2, dim=3)), dim=1)
    return quarters.flatten(0, 1)
