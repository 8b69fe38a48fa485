# SPDX-License-Identifier: Apache-2.0
"""One map as a picture file: PNG of 8 or 16 bits or OpenEXR of 16 or 32, and back. Knows no job and no UVs.

PNG holds the values as they are stored (base colour for the display). OpenEXR holds base colour linear, as everything
that reads the format expects; the other maps as they are.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from addon.protocol import FILE_FORMATS

from .shading import linear_to_srgb, srgb_to_linear

# zlib level 1: at 4096 x 4096 three times as fast as the default for files a tenth larger.
_COMPRESS_LEVEL = 1
_PNG_START = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2  # PNG's colour types
_GREYS = ("1", "L", "LA", "La")  # Pillow's modes


def write(file: Path, values: torch.Tensor, display: bool, file_format: str = "png", bits: int | None = None) -> None:
    """Write stored values (H,W,3) or (H,W,1) in 0..1, row 0 at the top; `display`: they are display colours.

    `bits`: one of FILE_FORMATS[file_format], None for the usual. The file's name says nothing of its format.
    """
    bits = FILE_FORMATS[file_format][0] if bits is None else bits
    if bits not in FILE_FORMATS[file_format]:
        raise ValueError(f"There is no {file_format} of {bits} bits.")
    if file_format == "exr":
        _write_exr(file, srgb_to_linear(values.clamp(0, 1)) if display else values.clamp(0, 1), bits)
    elif bits == 8:
        Image.fromarray(quantise(values)).save(file, format="PNG", compress_level=_COMPRESS_LEVEL)
    else:
        file.write_bytes(_png16(quantise(values, 16)))


def read(file: Path, display: bool = False) -> np.ndarray:
    """A map as stored values (H,W,3) or (H,W) float32 in 0..1, row 0 at the top. `display`: they are display colours,
    which is only asked of OpenEXR. Raises OSError and ValueError for files that hold no map.

    Other programs may have written an 8-bit file anew: as palette, as black and white, with an alpha."""
    if file.suffix == ".exr":
        values = torch.from_numpy(_read_exr(file))
        return (linear_to_srgb(values) if display else values).numpy()
    with open(file, "rb") as opened:
        start = opened.read(25)
    if start.startswith(_PNG_START) and start[24:] == b"\x10":
        return _read_png16(file.read_bytes()).astype(np.float32) / 65535
    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would cut them off at 255
            raise ValueError("Its pixels are of neither 8 nor 16 bits.")
        return np.asarray(image.convert("L" if image.mode in _GREYS else "RGB"), dtype=np.float32) / 255


def quantise(values: torch.Tensor, bits: int = 8) -> np.ndarray:
    """Stored values (H,W,C) in 0..1, rounded to uint8 or uint16; (H,W) when C is 1."""
    texels = (values.clamp(0, 1) * (2**bits - 1) + 0.5).to(torch.int32).numpy().astype(np.uint8 if bits == 8 else "<u2")
    return np.ascontiguousarray(texels[..., 0] if texels.shape[-1] == 1 else texels)


def _png16(texels: np.ndarray) -> bytes:
    """(H,W) or (H,W,3) uint16 as a PNG file. By hand, since Pillow knows no 16-bit colours."""
    height, width = texels.shape[:2]
    rows = texels.astype(">u2").view(np.uint8).reshape(height, -1)
    rows = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # the filter "up": each byte less the one above
    rows = np.concatenate((np.full((height, 1), 2, np.uint8), rows), axis=1)
    head = struct.pack(">IIBBBBB", width, height, 16, _GREY if texels.ndim == 2 else _RGB, 0, 0, 0)
    body = zlib.compress(rows, _COMPRESS_LEVEL)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return _PNG_START + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _read_png16(content: bytes) -> np.ndarray:
    """The texels of a file of `_png16`. Raises ValueError for others."""
    try:
        width, height, _, colour = struct.unpack(">IIBB", content[16:26])
        at, parts = 8, []
        while at < len(content):
            (length,) = struct.unpack(">I", content[at : at + 4])
            if content[at + 4 : at + 8] == b"IDAT":
                parts.append(content[at + 8 : at + 8 + length])
            at += 12 + length
        rows = np.frombuffer(zlib.decompress(b"".join(parts)), np.uint8).reshape(height, -1)
    except (struct.error, zlib.error) as error:
        raise ValueError("This 16-bit PNG is damaged.") from error
    if (rows[:, 0] != 2).any() or colour not in (_GREY, _RGB):
        raise ValueError("This 16-bit PNG was not written by Patina.")
    texels = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8).view(">u2").astype(np.uint16)
    return texels if colour == _GREY else texels.reshape(height, width, 3)


def _write_exr(file: Path, values: torch.Tensor, bits: int) -> None:
    import OpenEXR  # late: few runs need it

    pixels = values.numpy().astype(np.float16 if bits == 16 else np.float32)
    channels = {"Y": np.ascontiguousarray(pixels[..., 0])} if pixels.shape[-1] == 1 else {"RGB": pixels}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as opened:
        opened.write(str(file))


def _read_exr(file: Path) -> np.ndarray:
    """(H,W,3) or (H,W) as stored. Raises ValueError."""
    import OpenEXR

    try:
        with OpenEXR.File(str(file)) as opened:
            channels = {name: channel.pixels for name, channel in opened.channels().items()}
    except RuntimeError as error:
        raise ValueError(f"{file.name} is damaged or no OpenEXR.") from error
    for name in ("RGB", "RGBA"):
        if name in channels:
            return np.array(channels[name][..., :3], dtype=np.float32)
    if "Y" not in channels:
        raise ValueError(f"{file.name} has the channels {', '.join(channels) or 'none'}; a map has RGB or Y.")
    return np.array(channels["Y"], dtype=np.float32)
