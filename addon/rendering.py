# SPDX-License-Identifier: GPL-3.0-or-later
"""Is Blender rendering or baking just now? Then no datablock may be touched."""

from __future__ import annotations

import contextlib
import functools

import bpy

_BLENDER_JOBS = ("RENDER", "OBJECT_BAKE", "OBJECT_BAKE_TEXTURE", "COMPOSITE")


def blender_is_rendering() -> bool:
    return any(bpy.app.is_job_running(kind) for kind in _BLENDER_JOBS if kind in _known_jobs())


@functools.cache
def _known_jobs() -> frozenset[str]:
    """The job types this Blender knows; an unknown one would raise at every tick."""
    known = set()
    for kind in _BLENDER_JOBS:
        with contextlib.suppress(TypeError, ValueError):
            bpy.app.is_job_running(kind)
            known.add(kind)
    return frozenset(known)
