# SPDX-License-Identifier: GPL-3.0-or-later
"""Arrays to PNG files, 8 or 16 bits, exactly as given: Blender's own writers pass values through colour management."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

_KINDS = {1: 0, 3: 2, 4: 6}


def encode(values: np.ndarray) -> bytes:
    """A PNG file of (H, W) or (H, W, 3 or 4), uint8 or uint16, row 0 at the top."""
    values = values[..., None] if values.ndim == 2 else values
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    if values.dtype not in (np.uint8, np.uint16) or channels not in _KINDS:
        raise ValueError(f"no PNG of {values.dtype} with {channels} channels")
    rows = np.ascontiguousarray(values.astype(values.dtype.newbyteorder(">"))).reshape(height, -1).view(np.uint8)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, _KINDS[channels], 0, 0, 0)
    body = zlib.compress(filtered.tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def width(path: Path) -> int:
    """Of the PNG file at `path`. Raises OSError, also when it is none."""
    with open(path, "rb") as file:
        start = file.read(24)
    if len(start) < 24 or start[12:16] != b"IHDR":
        raise OSError(f"{path} is no PNG file.")
    return int.from_bytes(start[16:20])


def quantised(values: np.ndarray, bits: int) -> np.ndarray:
    """Values in 0..1 as uint8 or uint16."""
    top = 2**bits - 1
    return (np.clip(values, 0.0, 1.0) * top + 0.5).astype(np.uint8 if bits == 8 else np.uint16)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
