# SPDX-License-Identifier: Apache-2.0
"""What no camera sees takes the values of the nearest surface that one does, in 3D."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

AT_MOST = 200_000  # seen texels in the tree: their spacing is far below what the eye can tell


def nearest_seen(position: Tensor, hidden: Tensor) -> Tensor:
    """For each hidden point the index, among the seen ones, of the nearest; position (K, 3), hidden (K,) bool."""
    seen = position[~hidden].cpu()
    stride = max(1, len(seen) // AT_MOST)
    _, nearest = cKDTree(seen[::stride].numpy()).query(position[hidden].cpu().numpy(), workers=1)
    return torch.from_numpy(nearest).to(position.device) * stride
