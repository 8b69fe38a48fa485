# SPDX-License-Identifier: GPL-3.0-or-later
"""One run from Generate to its end, and the files of its job folder that the backend names. Shows nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from . import protocol
from .placing import Place


@dataclass
class Job:
    """One run from Generate to its end."""

    place: Place
    folder: protocol.JobFolder
    output: Path
    attempt: protocol.AttemptFolder | None = None
    offset: int = 0  # read so far in events.jsonl
    pending: dict[str, Path] = field(default_factory=dict)  # map files to show, one a tick
    picture: Path | None = None  # of the object, to show with them
    outcome: protocol.Event | None = None  # the terminal event, once there is one
    giving_up: protocol.Failed | None = None  # the process is being ended for this reason
    cancelling: bool = False
    pausing: bool = False
    last_event: float = field(default_factory=time.monotonic)
    report: Path | None = None
    extras: dict[str, Path] = field(default_factory=dict)  # the files of protocol.EXTRA_MAPS that were made
    shown: bool = False  # at least one map of the backend has reached `output`


def inside(job: Job, relative: str) -> Path:
    """A path that the backend named; it may name files of its job only. Raises ProtocolError."""
    root = job.folder.path.resolve()
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise protocol.ProtocolError(f"the path {relative!r} leads out of the job folder")
    return path


def map_files(job: Job, maps: dict[str, str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The files of the material's maps, and those of the extra maps. Raises ProtocolError."""
    unknown = maps.keys() - {*protocol.MAP_NAMES, *protocol.EXTRA_MAPS}
    if unknown:
        raise protocol.ProtocolError(f"the map {sorted(unknown)[0]!r} is unknown")
    named = [{name: inside(job, maps[name]) for name in names if name in maps} for names in _KINDS]
    return named[0], named[1]


_KINDS = (protocol.MAP_NAMES, protocol.EXTRA_MAPS)
