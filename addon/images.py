# SPDX-License-Identifier: GPL-3.0-or-later
"""The four image datablocks of a run and the files they show. Knows no nodes and no job.

The files exist, at their final paths, before the datablocks do; later only files are replaced and pixels reloaded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import bpy
import numpy as np

from . import png, protocol

RUN_KEY, MAP_KEY = "patina_run", "patina_map"
# A plain start for each map, 0..255 as stored: mid grey, no metal, half rough, no bumps.
_PLAIN = {"base_color": (128, 128, 128), "metallic": (0,), "roughness": (128,), "normal": (128, 128, 255)}
_PLAIN_SIZE = 16


def new_folder(root: Path, object_name: str) -> Path:
    """Make `root`/<object>/<next free number>. Raises OSError."""
    parent = root / (bpy.path.clean_name(object_name) or "object")
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(p.name) for p in parent.iterdir() if p.name.isdigit()), default=0) + 1
    while True:
        folder = parent / f"{number:04d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another Blender was faster
            number += 1


def is_of_a_run(folder: Path) -> bool:
    """Whether `new_folder` made it. Images that were unpacked or saved elsewhere are in a folder of the user's."""
    return len(folder.name) >= 4 and folder.name.isdigit()


def map_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.png"


def write_plain(folder: Path) -> None:
    """The four start files, where there are none yet. Raises OSError."""
    for name in protocol.MAP_NAMES:
        if not map_file(folder, name).exists():
            plain = np.full((_PLAIN_SIZE, _PLAIN_SIZE, len(_PLAIN[name])), _PLAIN[name], np.uint8)
            protocol.write_beside(map_file(folder, name), png.encode(plain))


def load(folder: Path, run: str, object_name: str) -> dict[str, bpy.types.Image]:
    """New image datablocks for the four files of `folder`, tagged with the run. Raises RuntimeError."""
    images = {}
    try:
        for name in protocol.MAP_NAMES:
            image = images[name] = bpy.data.images.load(str(map_file(folder, name)), check_existing=False)
            image.name = f"{object_name} {name}"
            if bpy.data.filepath:
                with contextlib.suppress(ValueError):  # on another drive: the path stays absolute
                    image.filepath = bpy.path.relpath(image.filepath)
            image[RUN_KEY], image[MAP_KEY] = run, name
            if name != "base_color":
                image.colorspace_settings.is_data = True
            else:
                with contextlib.suppress(TypeError):  # a colour configuration without that name: keep its default
                    image.colorspace_settings.name = "sRGB"
    except BaseException:
        for image in images.values():
            bpy.data.images.remove(image)
        raise
    return images


def find(run: str) -> dict[str, bpy.types.Image]:
    """The image datablocks of a run that exist in the open file; nothing found is held on to."""
    return {image[MAP_KEY]: image for image in bpy.data.images if image.get(RUN_KEY) == run and MAP_KEY in image}


def pixels(image: bpy.types.Image) -> np.ndarray:
    """All that Blender holds of the image: (H, W, channels) floats, row 0 at the top. Raises RuntimeError."""
    width, height = image.size
    if not width or not height:
        raise RuntimeError(f"The image {image.name} cannot be read: {bpy.path.abspath(image.filepath)}")
    values = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(values)
    return values.reshape(height, width, image.channels)[::-1]


def texels(image: bpy.types.Image) -> np.ndarray:
    """What the image shows now: (H, W, C) in 0..1 as stored, row 0 at the top; C is 1 or 3. Raises RuntimeError."""
    values = pixels(image)
    if image.is_float and not image.colorspace_settings.is_data:  # Blender decodes those when it reads them
        values = display(values)
    return values[..., :1] if image.get(MAP_KEY) in ("metallic", "roughness") else values[..., :3]


def read_data(file: Path) -> np.ndarray:
    """A picture file as (H, W, C) values in 0..1 as stored, row 0 at the top. Raises RuntimeError."""
    image = bpy.data.images.load(str(file), check_existing=False)
    try:
        image.colorspace_settings.is_data = True
        width, height = image.size
        if not width or not height:
            raise RuntimeError(f"The image {file} cannot be read.")
        values = np.empty(width * height * image.channels, np.float32)
        image.pixels.foreach_get(values)
        return values.reshape(height, width, image.channels)[::-1]
    finally:
        bpy.data.images.remove(image)


def resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, C) at another size, bilinear; itself where it has it."""
    if values.shape[:2] == (height, width):
        return values
    down, across = np.mgrid[0:height, 0:width]
    place = (across + 0.5) * values.shape[1] / width - 0.5, (down + 0.5) * values.shape[0] / height - 0.5
    return bilinear(values, *place)


def display(linear: np.ndarray) -> np.ndarray:
    """Linear values as a display shows them (sRGB)."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.clip(linear, 0, None) ** (1 / 2.4) - 0.055)


def bilinear(pixels: np.ndarray, across: np.ndarray, down: np.ndarray, wrap: bool = False) -> np.ndarray:
    """`pixels` (H, W, C) at places (...,) counted in pixels from the middle of the first; the border goes on, or the
    picture repeats if `wrap`."""
    height, width, _ = pixels.shape
    left, top = np.floor(across).astype(np.int64), np.floor(down).astype(np.int64)
    to_right, to_bottom = (across - left)[..., None], (down - top)[..., None]

    def at(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        if wrap:
            return pixels[row % height, column % width]
        return pixels[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]

    above = at(top, left) * (1 - to_right) + at(top, left + 1) * to_right
    below = at(top + 1, left) * (1 - to_right) + at(top + 1, left + 1) * to_right
    return above * (1 - to_bottom) + below * to_bottom


def replace_file(source: Path, target: Path) -> None:
    """Put a copy of `source` in the place of `target` in one step. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(source, beside)
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def show(image: bpy.types.Image, file: Path) -> None:
    """Let the datablock show what its file holds now; a packed image is packed anew. Raises OSError."""
    if image.packed_file is not None:
        content = file.read_bytes()
        image.pack(data=content, data_len=len(content))
    image.reload()
