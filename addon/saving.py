# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps of an unsaved file follow it: at its first save they are copied beside it. Knows files and handlers only."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import bpy
from bpy.app.handlers import persistent

from . import generate, images, session

_MOVED = "moved"  # an empty file beside maps that were copied to their .blend
_KEEP_MOVED_S = 24 * 3600.0


@persistent
def _before_save(file: str, _unused=None) -> None:
    """Copy maps from the user's folder to the folder of the file about to be written, and point the images there.

    Copied, not moved: an undo of the save's predecessor still finds the old files.
    """
    if not file:
        return  # the startup file
    try:
        follow(Path(file).resolve())
    except OSError as error:
        print(f"Patina: the maps could not be copied beside {file}: {error}. They stay in {generate.unsaved_root()}")


def follow(blend: Path) -> None:
    """Do so for this .blend file. Raises OSError."""
    unsaved = generate.unsaved_root().resolve()
    moved: dict[Path, Path] = {}
    for image in [image for image in bpy.data.images if images.RUN_KEY in image]:
        old = Path(bpy.path.abspath(image.filepath, library=image.library))
        if image.library is not None or not old.is_file() or not old.resolve().is_relative_to(unsaved):
            continue
        if old.parent not in moved:
            moved[old.parent] = images.new_folder(blend.parent / "patina", old.parent.parent.name)
            for file in old.parent.iterdir():
                if file.is_file() and not file.name.startswith("."):
                    images.replace_file(file, moved[old.parent] / file.name)
            (old.parent / _MOVED).touch()
        image.filepath = str(moved[old.parent] / old.name)  # Blender makes it relative when it writes the file
    for obj in bpy.data.objects:
        for variant in obj.patina.variants:
            if Path(variant.folder) in moved or Path(variant.folder).resolve() in moved:
                variant.folder = str(moved.get(Path(variant.folder)) or moved[Path(variant.folder).resolve()])
                variant.made_in = blend.name
    running = session.current()
    for job in (running.job, running.result, *running.waiting):
        if job is not None and job.output in moved:
            job.output = moved[job.output]


def _remove_moved() -> None:
    """Remove what followed its file more than a day ago; by then no undo step of a running Blender wants it."""
    for marker in generate.unsaved_root().glob(f"*/*/{_MOVED}"):
        if time.time() - marker.stat().st_mtime > _KEEP_MOVED_S:
            shutil.rmtree(marker.parent, ignore_errors=True)


def register() -> None:
    with contextlib.suppress(OSError):
        _remove_moved()
    bpy.app.handlers.save_pre.append(_before_save)


def unregister() -> None:
    bpy.app.handlers.save_pre.remove(_before_save)
