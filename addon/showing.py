# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running job has made so far, on the object and in the panel: one map a call, pixels only."""

from __future__ import annotations

from . import images, placing, variants
from .one_job import Job
from .pictures import Pictures

_DETACHED = "Its material was undone, removed or painted on. The run goes on; Apply brings it back."


def show_one(job: Job, pictures: Pictures) -> str | None:
    """Show one of the files that wait; the note for the panel, None: it stays as it is. Raises OSError."""
    if not job.pending:
        return None
    name = next(iter(job.pending))
    source = job.pending.pop(name)
    target = images.map_file(job.output, name)
    try:
        images.replace_file(source, target)
    except FileNotFoundError:
        if job.outcome is None:
            return None  # a newer preview has replaced it
        raise
    job.shown, note = True, None
    attached = placing.attached_images(job.place)
    if attached:
        images.show(attached[name], target)
        note = ""
    elif job.outcome is None:
        note = _DETACHED
    if not job.pending:
        _show_picture(job, pictures)
    return note


def _show_picture(job: Job, pictures: Pictures) -> None:
    if job.picture is None or not job.picture.is_file():
        return
    target = job.output / variants.PICTURE
    try:
        images.replace_file(job.picture, target)
    except FileNotFoundError:
        return  # a newer one has replaced it
    job.picture = None
    pictures.read(job.place.run, target)
    pictures.latest = job.place.run
