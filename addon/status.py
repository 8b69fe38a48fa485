# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run shows of itself: plain values, and their copy on the window manager for the panel to draw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import bpy

INFO, WARNING, ERROR = "INFO", "WARNING", "ERROR"


@dataclass
class Status:
    """Same names as `settings.PATINA_PG_run`. `seconds_left` is -1 where nobody knows."""

    busy: bool = False
    can_cancel: bool = False
    can_pause: bool = False
    queued: int = 0
    run: str = ""
    object_name: str = ""
    stage: str = ""
    step: int = 0
    total_steps: int = 0
    fraction: float = 0.0
    seconds_left: float = -1.0
    note: str = ""
    level: str = INFO
    message: str = ""
    hint: str = ""
    log: str = ""
    fix: str = ""  # "smaller" or "repair": the button that helps
    warnings: str = ""
    waiting_result: str = ""


def sentence(status: Status) -> str:
    """Message and hint as one text for a terminal or a report."""
    parts = [text if text[-1] in ".!?:" else f"{text}." for text in (status.message, status.hint) if text]
    return " ".join(parts)


def told(error: Exception) -> str:
    """The error as a sentence for a person, without the number of the system's or the prefix of Blender's."""
    if not isinstance(error, OSError):
        return str(error).strip().removeprefix("Error: ")
    text = (error.strerror or str(error)).rstrip(".")
    return f"{text} ({error.filename})." if error.filename else f"{text}."


def publish(status: Status) -> None:
    """Copy what changed to the window manager and have the panels drawn again."""
    manager = bpy.data.window_managers[0] if bpy.data.window_managers else None
    if manager is None:
        return
    shown, changed = manager.patina, False
    for name, value in dataclasses.asdict(status).items():
        old = getattr(shown, name)
        if abs(old - value) > 1e-6 if isinstance(value, float) else old != value:
            setattr(shown, name, value)
            changed = True
    if changed:
        redraw()


def redraw(preferences_too: bool = False) -> None:
    """Have the sidebars of all 3D views drawn again, and the preferences if asked."""
    for manager in bpy.data.window_managers:
        for window in manager.windows:
            for area in window.screen.areas:
                if preferences_too and area.type == "PREFERENCES":
                    area.tag_redraw()
                if area.type == "VIEW_3D":
                    for region in area.regions:
                        if region.type == "UI":
                            region.tag_redraw()


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 1 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
