# SPDX-License-Identifier: Apache-2.0
"""Panoramas on the disk: .exr and .hdr files into arrays, and a folder of them into environments.

Blender's bundled ones lie in `datafiles/studiolights/world` beside its scripts; any folder of a person's will do.
Knows file formats; panoramas.py knows what their light is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .panoramas import Environment, PanoramaError, from_panorama

ENDINGS = (".exr", ".hdr")
FILES_AT_MOST = 64  # of a folder: each takes about a second and 5 MB


def environments(folder: Path) -> dict[str, Environment]:
    """All panoramas of a folder by file name, in alphabetical order; `panoramas.lights` lights pictures with them.

    Raises PanoramaError, naming the file, for one that cannot serve, and for a folder without any or with too many.
    """
    if not folder.is_dir():
        raise PanoramaError(f"{folder} is no folder. Choose one with .exr or .hdr panoramas.")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
    if not files:
        raise PanoramaError(f"{folder} holds no .exr or .hdr file. Choose a folder with panoramas.")
    if len(files) > FILES_AT_MOST:
        raise PanoramaError(f"{folder} holds {len(files)} panoramas; at most {FILES_AT_MOST} are used. Move some out.")
    found = {}
    for file in files:
        try:
            found[file.name] = from_panorama(read_panorama(file))
        except PanoramaError as error:
            raise PanoramaError(f"{file.name}: {error}") from error
    return found


def read_panorama(file: Path) -> np.ndarray:
    """(H, W, 3) float32 of an .exr or .hdr file, row 0 at the top. Raises PanoramaError or OSError."""
    content = file.read_bytes()
    if content[:4] == b"\x76\x2f\x31\x01":
        return _read_exr(file)
    if content[:2] == b"#?":
        return _read_hdr(content, file.name)
    raise PanoramaError(f"{file.name} is neither OpenEXR nor Radiance HDR. Save it as .exr or .hdr.")


def _read_exr(file: Path) -> np.ndarray:
    import OpenEXR

    with OpenEXR.File(str(file)) as opened:
        channels = opened.channels()
        if "RGB" in channels or "RGBA" in channels:
            pixels = channels["RGB" if "RGB" in channels else "RGBA"].pixels[..., :3]
        elif {"R", "G", "B"} <= channels.keys():
            pixels = np.stack([channels[name].pixels for name in "RGB"], axis=-1)
        else:
            raise PanoramaError(f"{file.name} has no channels R, G and B.")
    return np.ascontiguousarray(pixels, dtype=np.float32)


def _read_hdr(content: bytes, name: str) -> np.ndarray:
    """Radiance's run-length encoded RGBE, the only kind in use."""
    header, _, rest = content.partition(b"\n\n")
    size, _, body = rest.partition(b"\n")
    words = size.split()
    if b"32-bit_rle_rgbe" not in header or len(words) != 4 or words[0] != b"-Y" or words[2] != b"+X":
        raise PanoramaError(f"{name} is a kind of Radiance picture that is not read. Save it as .exr.")
    height, width = int(words[1]), int(words[3])
    if not 8 <= width <= 32767 or not 1 <= height <= 32767:
        raise PanoramaError(f"{name} has an unlikely size of {width} x {height}.")
    rows, at = np.zeros((height, 4, width), np.uint8), 0
    try:
        for row in range(height):
            if body[at : at + 4] != bytes((2, 2, width >> 8, width & 255)):
                raise PanoramaError(f"{name} is not run-length encoded or is damaged at row {row}.")
            at += 4
            for part in range(4):
                x = 0
                while x < width:
                    run = body[at]
                    count = run - 128 if run > 128 else run
                    if not count or x + count > width:
                        raise PanoramaError(f"{name} is damaged at row {row}.")
                    taken = 1 if run > 128 else count
                    piece = np.frombuffer(body, np.uint8, taken, at + 1)
                    rows[row, part, x : x + count] = piece
                    at, x = at + 1 + taken, x + count
    except (IndexError, ValueError) as error:
        if isinstance(error, PanoramaError):
            raise
        raise PanoramaError(f"{name} ends too early.") from error
    scale = np.ldexp(1.0, rows[:, 3].astype(np.int32) - 136).astype(np.float32)
    return rows[:, :3].transpose(0, 2, 1) * np.where(rows[:, 3] > 0, scale, 0)[..., None]
