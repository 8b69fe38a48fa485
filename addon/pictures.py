# SPDX-License-Identifier: GPL-3.0-or-later
"""The small pictures the panel shows, one a run, and how much room the variants take on the disk.

Read at moments (a file is opened, a run goes on, a button was pressed), so that drawing computes nothing.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import bpy
import bpy.utils.previews

from . import variants


class Pictures:
    def __init__(self) -> None:
        self._previews = bpy.utils.previews.new()
        self._read: dict[str, tuple[Path, int]] = {}  # run -> file and when that was written
        self.bytes: dict[str, int] = {}  # run -> bytes on the disk
        self.gone: set[str] = set()  # runs whose maps are not where they were
        self.latest = ""  # the run that has shown something last

    def icon(self, run: str) -> int:
        """Blender's number of the picture, 0 if there is none."""
        return self._previews[run].icon_id if run in self._previews else 0

    def read(self, run: str, file: Path) -> None:
        """Show `file` as the picture of a run; what cannot be read is left out."""
        with contextlib.suppress(OSError, KeyError):
            stamp = (file, file.stat().st_mtime_ns)
            if self._read.get(run) == stamp:
                return
            if run in self._previews:
                del self._previews[run]
            # Asking for the size has it read now: read in the background it flickers at every preview.
            _ = self._previews.load(run, str(file), "IMAGE").image_size[0]
            self._read[run] = stamp

    def look_around(self) -> None:
        """Read the pictures of all variants in the open file, and measure their files."""
        self.bytes, self.gone = {}, set()
        for obj in bpy.data.objects:
            for variant in obj.patina.variants:
                if variant.run in self.bytes:
                    continue
                folder = variants.folder_of(variant)
                self.read(variant.run, folder / variants.PICTURE)
                self.bytes[variant.run] = variants.size_of(variant)
                if not variants.has_maps(variant):
                    self.gone.add(variant.run)

    def close(self) -> None:
        bpy.utils.previews.remove(self._previews)
