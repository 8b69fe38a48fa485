# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that did not come to their end here: found again in their job folders, after a pause, a crash or a closed file.

The job folder is the truth; `place.json` in it says what Blender needs to show the result. Knows files only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from . import images, protocol
from .placing import Member, Place

PLACE = "place.json"
_LOOKED_AT = 60  # of the newest job folders
_TAIL = 65536
FINISHED_KEPT_S = 24 * 3600.0
UNFINISHED_KEPT_S = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Left:
    """A job that can be gone on with (`ending` "paused" or "interrupted") or whose result nobody took ("done")."""

    place: Place
    folder: protocol.JobFolder
    output: Path
    ending: str
    fraction: float


def note(place: Place, folder: protocol.JobFolder, output: Path) -> None:
    """Write down where the result of a job belongs. Raises OSError."""
    fields = {f.name: getattr(place, f.name) for f in dataclasses.fields(Place) if f.name != "request"}
    fields["own_uvs"] = str(place.own_uvs) if place.own_uvs else None
    fields["others"] = [{**vars(member), "own_uvs": str(member.own_uvs or "")} for member in place.others]
    stored = {**fields, "output": str(output)}
    protocol.write_beside(folder.path / PLACE, json.dumps(stored, indent=1).encode())


def find(jobs: Path, busy: set[str]) -> list[Left]:
    """What is left in the folder `jobs`, newest first, without the runs in `busy` and those that run elsewhere."""
    try:
        folders = sorted((path for path in jobs.iterdir() if (path / PLACE).is_file()), reverse=True)[:_LOOKED_AT]
    except OSError:
        return []
    return [left for path in folders if path.name not in busy and (left := _look(path)) is not None]


def discard(left: Left) -> None:
    """Give a job up: its folder goes, the maps that were shown of it stay."""
    shutil.rmtree(left.folder.path, ignore_errors=True)


def took(folder: protocol.JobFolder) -> None:
    """The result of a job is where it belongs: what only the run needed can go."""
    for path in (folder.previews, folder.maps, folder.start, folder.lights):
        shutil.rmtree(path, ignore_errors=True)
    for path in (folder.checkpoint, folder.reference, folder.path / PLACE):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def thin(jobs: Path) -> None:
    """Remove job folders: of ended runs after a day, of others (with their checkpoints) after thirty.

    The maps of variants are not in them.
    """
    with contextlib.suppress(OSError):
        for path in list(jobs.iterdir()):
            age = time.time() - path.stat().st_mtime
            limit = UNFINISHED_KEPT_S if (path / PLACE).is_file() else FINISHED_KEPT_S
            if path.is_dir() and age > limit:
                shutil.rmtree(path, ignore_errors=True)


def _look(path: Path) -> Left | None:
    folder = protocol.JobFolder(path)
    try:
        stored = json.loads((path / PLACE).read_text("utf-8"))
        output = Path(stored.pop("output"))
        own_uvs = stored.pop("own_uvs")
        stored["object_uid"] = -1  # of another session
        others = [{**member, "object_uid": -1} for member in stored.pop("others", ())]
        others = tuple(Member(**{**m, "own_uvs": Path(m["own_uvs"]) if m["own_uvs"] else None}) for m in others)
        own_uvs = Path(own_uvs) if own_uvs else None
        place = Place(**stored, own_uvs=own_uvs, others=others, request=folder.read_request())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # not a job of this kind, or taken already
    ending, fraction = last_words(folder)
    if ending is None:  # with its last word written a backend may still hold the lock for a moment
        if _runs_elsewhere(folder):
            return None
        return Left(place, folder, output, "interrupted", fraction)
    if isinstance(ending, protocol.Done):
        return Left(place, folder, output, "done", 1.0)
    return Left(place, folder, output, "paused", fraction) if isinstance(ending, protocol.Paused) else None


def _runs_elsewhere(folder: protocol.JobFolder) -> bool:
    try:
        lock = protocol.take_lock(folder.lock, folder.lock.read_text("utf-8") if folder.lock.is_file() else "")
    except (OSError, UnicodeDecodeError):
        return True
    if lock is None:
        return True
    protocol.release_lock(lock)
    return False


def last_words(folder: protocol.JobFolder) -> tuple[protocol.Event | None, float]:
    """The terminal event of the last attempt, if it has one, and how far it was (0..1)."""
    attempts = folder.attempts()
    if not attempts:
        return None, 0.0
    ending, fraction = None, 0.0
    try:
        with open(attempts[-1].events, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read(_TAIL).split(b"\n")[:-1]
    except OSError:
        return None, 0.0
    for line in lines:
        with contextlib.suppress(protocol.ProtocolError, UnicodeDecodeError):
            event = protocol.decode(line.decode("utf-8"), protocol.Event)
            if isinstance(event, protocol.Progress):
                fraction = event.fraction
            elif isinstance(event, protocol.TERMINAL_EVENTS):
                ending = event
    return ending, fraction


def show_what_is_done(left: Left) -> None:
    """Copy the maps of a finished job to where they belong. Raises OSError."""
    for name in protocol.MAP_NAMES:
        images.replace_file(left.folder.maps / f"{name}.png", images.map_file(left.output, name))
    extras = [left.folder.maps / f"{name}.png" for name in protocol.EXTRA_MAPS]
    for source in (left.folder.picture, left.folder.report, *extras):
        if source.is_file():
            images.replace_file(source, left.output / source.name)
