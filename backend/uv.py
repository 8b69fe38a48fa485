# SPDX-License-Identifier: Apache-2.0
"""UVs: can a texture be painted through them, and if not, new ones (xatlas only here).

Knows UVs as (F,3,2) arrays of triangle corners, origin bottom left; knows no files.
"""

from __future__ import annotations

import numpy as np

TOLERANCE = 0.01  # how far outside the unit square a UV may lie
FARTHEST_TILE = 1000.0  # beyond it float32 has too few digits left within a tile


def shift_tiles(uvs: np.ndarray) -> int:
    """Move each triangle of `uvs` (F,3,2) by whole tiles into [0,1] +- TOLERANCE, in place.

    An image repeats in every tile, so this changes no pixel. Returns how many triangles do not fit.
    """
    low, high = uvs.min(axis=1), uvs.max(axis=1)
    odd = np.flatnonzero(((low < -TOLERANCE) | (high > 1 + TOLERANCE)).any(axis=1))
    if not len(odd):
        return 0
    tile = np.floor((low[odd] + high[odd]) / 2)
    tile[np.abs(tile) > FARTHEST_TILE] = 0
    uvs[odd] -= tile[:, None]
    moved = uvs[odd]
    return int(((moved < -TOLERANCE) | (moved > 1 + TOLERANCE)).any(axis=(1, 2)).sum())
