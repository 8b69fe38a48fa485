# SPDX-License-Identifier: Apache-2.0
"""Reading images, volumes and tables between their nodes, and the transpose of it. Knows no maps."""

from __future__ import annotations

import torch
from torch import Tensor

_BILINEAR, _BORDER, _ALIGN_CORNERS, _OF_THE_IMAGE_ALONE = 0, 1, False, (True, False)


def image_grid(uv: Tensor) -> Tensor:
    """Where points at uv (N, 2) read an image whose row 0 is v = 0."""
    return (uv * 2 - 1).view(1, -1, 1, 2)


def volume_grid(position: Tensor) -> Tensor:
    """Where points at position (N, 3), -1..1, read a volume (1, C, X, Y, Z)."""
    return position.flip(-1).view(1, -1, 1, 1, 3)  # grid_sample wants the last axis first


def read(image: Tensor, grid: Tensor) -> Tensor:
    """(N, C) values of an image or volume (1, C, ...) between texels."""
    if image.shape[-1] == 1:
        return image.flatten()[None].expand(grid.shape[1], -1)
    values = torch.nn.functional.grid_sample(image, grid, padding_mode="border", align_corners=_ALIGN_CORNERS)
    return values.view(image.shape[1], -1).T


def read_table(table: Tensor, place: Tensor) -> Tensor:
    """(N, C) of a table (C, ...) at places (1, N, 1.., axes) in 0..1, last axis first; linear between its nodes."""
    # Short of the limits by a millionth: exactly there grid_sample has no gradient, and none would lead back.
    found = torch.nn.functional.grid_sample(
        table[None], (place * 2 - 1) * (1 - 1e-6), padding_mode="border", align_corners=True
    )
    return found.flatten(2)[0].T


@torch.no_grad()
def spread(values: Tensor, shape: torch.Size, grid: Tensor) -> Tensor:
    """The transpose of `read`: values (N, C) -> their sums (1, C, ...) by the shares that the texels of an image of
    `shape` (1, any, ...) have in the points."""
    channels, sides = values.shape[1], shape[2:]
    if sides[-1] == 1:
        return values.sum(0).view(1, channels, *sides)
    # Autograd would read the image first, only to forget what it found.
    transpose = torch.ops.aten.grid_sampler_3d_backward if len(sides) == 3 else torch.ops.aten.grid_sampler_2d_backward
    like = values.new_zeros(()).expand(1, channels, *sides)
    values = values.T.reshape(1, channels, *grid.shape[1:-1])
    return transpose(values, like, grid, _BILINEAR, _BORDER, _ALIGN_CORNERS, _OF_THE_IMAGE_ALONE)[0]
