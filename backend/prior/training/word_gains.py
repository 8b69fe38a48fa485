# SPDX-License-Identifier: Apache-2.0
"""The words' first guess in closed form: which fixed render a word asks for, and in what colour.

Per colour channel a picture is close to  sum_k gain_k render_k + offset,  with
gain = g_0 + sum over its words of g_word.
All g are found by one ridge regression over the pictures; gradient descent would need hours to see every word
often enough. `Conditioner.gains` starts from them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..conditions import FIXED_MATERIALS
from ..vocabulary import WORDS

TERMS = len(FIXED_MATERIALS) + 1  # the renders and an offset
RIDGE = 3.0  # pictures' worth of belief that a word changes nothing


def fit(folder: Path, shards: int) -> Tensor:
    """(words + 1, 12) gains per word in the order of the network's head; the last row (no words) is 0."""
    count = len(WORDS) + 1  # the last block is g_0
    gram = np.zeros((3, count * TERMS, count * TERMS))
    right = np.zeros((3, count * TERMS))
    for path in sorted(folder.glob("*.npz"))[:shards]:
        with np.load(path, allow_pickle=False) as shard:
            _accumulate(gram, right, shard["target"], shard["light"], shard["coverage"], shard["words"])
    ridge = np.full(count * TERMS, RIDGE * 0.1)  # a render's mean square is about 0.1
    ridge[-TERMS:] = 1e-6
    solved = np.stack([np.linalg.solve(g + np.diag(ridge), r) for g, r in zip(gram, right, strict=True)])
    by_word = solved.reshape(3, count, TERMS).transpose(1, 2, 0)  # word, term, colour
    by_word[-1] = 0
    return torch.from_numpy(by_word.reshape(count, 3 * TERMS)).float()


def _accumulate(gram, right, target, light, coverage, words) -> None:
    for row in range(len(words)):
        inside = coverage[row, 0] > 250
        if not inside.any():
            continue
        wanted = target[row][:, inside] / 255.0
        renders = light[row].reshape(TERMS - 1, 3, *inside.shape)[:, :, inside] / 255.0
        present = [int(word) for word in words[row] if word >= 0] + [len(WORDS)]
        columns = np.concatenate([np.arange(TERMS) + word * TERMS for word in present])
        for colour in range(3):
            terms = np.stack([*renders[:, colour], np.ones(inside.sum())])
            block = terms @ terms.T / inside.sum()
            gram[colour][np.ix_(columns, columns)] += np.tile(block, (len(present), len(present)))
            right[colour][columns] += np.tile(terms @ wanted[colour] / inside.sum(), len(present))
