# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a run that has ended: sentences and the button that helps. Pure: knows no file and no bpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import protocol


@dataclass(frozen=True)
class Words:
    message: str
    hint: str = ""
    is_error: bool = False
    fix: str = ""  # as status.Status.fix


def words(outcome: protocol.Event, attached: bool, output: Path, fraction: float, was_started: bool) -> Words:
    """`attached`: its images are on the object; `fraction` it was at; `was_started`: the backend was reached."""
    if isinstance(outcome, protocol.Done):
        if attached:
            return Words("The maps are done.")
        detached = "The maps are done, but the material was undone or removed."
        return Words(detached, f"Press Apply, or take them from {output}")
    if isinstance(outcome, protocol.Cancelled):
        return Words("Cancelled. What was made so far stays until the next run.")
    if isinstance(outcome, protocol.Paused):
        return Words(
            "Paused. Its memory is free again.",
            "It can be resumed at any time, also after Blender was closed.",
        )
    fix = ""
    if outcome.kind == "out_of_memory":
        fix = "smaller"
    elif not was_started or "Repair the backend" in outcome.hint:
        fix = "repair"
    return Words(outcome.message, outcome.hint, True, fix)
