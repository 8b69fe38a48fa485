# SPDX-License-Identifier: Apache-2.0
"""What no camera sees takes the values of the nearest surface that one does, in 3D."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor

SEEN_AT_MOST = 200_000  # points in the tree: their spacing is far below what the eye can tell
# Inside a closed shell all of it is about equally near and each question takes long; neighbours share one.
ASKED_AT_MOST = 20_000


def nearest_seen(position: Tensor, hidden: Tensor) -> Tensor:
    """For each hidden point the index, among the seen ones, of the nearest; position (K, 3), hidden (K,) bool.

    With very many points of either kind some are left out, and the answer is nearly the nearest.
    """
    seen, asking = position[~hidden].cpu().numpy(), position[hidden].cpu().numpy()
    stride, every = max(1, len(seen) // SEEN_AT_MOST), max(1, len(asking) // ASKED_AT_MOST)
    _, nearest = cKDTree(seen[::stride]).query(asking[::every], workers=1)
    if every > 1:
        _, like = cKDTree(asking[::every]).query(asking, workers=1)
        nearest = nearest[like]
    return torch.from_numpy(nearest).to(position.device) * stride
