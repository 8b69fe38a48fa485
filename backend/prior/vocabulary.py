# SPDX-License-Identifier: Apache-2.0
"""The words of the built-in prior: from a typed prompt to what the table knows.

Word order is free; synonyms are folded; filler words are dropped; what is left over is named in a
warning; a prompt without any material word is refused with the list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .materials import COLOURS, FAMILY_WORDS, FINISHES, MATERIALS, Prompt

TONES = ("light", "dark")
WORDS: tuple[str, ...] = (*MATERIALS, *FAMILY_WORDS, *COLOURS, *FINISHES, *TONES)
_INDEX = {word: number for number, word in enumerate(WORDS)}
SLOTS = 4  # tone, finish, colour, material


def encode(prompt: Prompt) -> Tensor:
    """Word numbers (4,) int16, -1 where unused."""
    numbers = [_INDEX[word] for word in prompt.words]
    return torch.tensor(numbers + [-1] * (SLOTS - len(numbers)), dtype=torch.int16)
