# SPDX-License-Identifier: GPL-3.0-or-later
"""The one session of this Blender, and what drives it: Blender's timer, or a plain loop when headless."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import bpy
from bpy.app.handlers import persistent

from . import environment, jobs, preferences, status
from .status import Status


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Headless: inside, Ctrl-C and SIGTERM raise KeyboardInterrupt; yields the list of those that came.

    By itself Blender without a window takes note of the first Ctrl-C and goes on, and ends at once with the second.
    """
    came: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread: its signals are another's
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
    try:
        yield came
    finally:
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        for number, handler in before.items():
            signal.signal(number, usual[number] if handler is None else handler)  # None: Blender's own, out of reach


def run_to_end(running: jobs.Session) -> Status:
    """Headless: tick until the run has ended, with a line for each stage and tenth. Ctrl-C cancels the run."""
    said = ""
    while running.busy:
        try:
            running.tick()
            shown = running.status
            line = f"Patina: {int(shown.fraction * 10) * 10:3d} % {shown.stage}"
            if shown.busy and line != said:
                print(line, flush=True)
                said = line
            time.sleep(jobs.TICK_S / 2)
        except KeyboardInterrupt:
            running.cancel()
    return running.status


def finish_task(running: jobs.Session) -> None:
    """Headless: wait for the task under way, with a line for each thing it does. Ctrl-C cancels it."""
    said = ""
    while running.task is not None and not running.task.finished:
        try:
            running.tick()
            if running.task.text != said:
                said = running.task.text
                print(f"Patina: {running.task.title}: {said}", flush=True)
            time.sleep(jobs.TICK_S)
        except KeyboardInterrupt:
            running.task.cancel()


# The one thing that outlives calls: Blender gives an add-on no other place for a process handle.
_session: jobs.Session | None = None


def current() -> jobs.Session:
    """The session of this Blender, from `register` to `unregister`."""
    return _session


def keep_ticking() -> None:
    """Have Blender's timer call `tick` until the run has ended (not headless: there is no event loop then)."""
    if not bpy.app.background and not bpy.app.timers.is_registered(_on_timer):
        bpy.app.timers.register(_on_timer, first_interval=jobs.TICK_S, persistent=True)


def _on_timer() -> float | None:
    if _session is None:
        return None
    _session.tick()
    return jobs.TICK_S if _session.has_work else None


@persistent
def _after_load(*_) -> None:
    """A file saved in mid-run brings what its panel showed then; show what is true now."""
    if _session is not None:
        status.publish(_session.status)
        _session.look_around()


def _look_around_once() -> None:
    """After the add-on was enabled: what is on the disk may not be read while Blender registers."""
    if _session is not None:
        _session.look_around()
        status.redraw()


def register() -> None:
    global _session
    bpy.app.handlers.load_post.append(_after_load)
    _session = jobs.Session(Path(__file__).resolve().parent.parent)
    if bpy.app.background:
        _session.ready = environment.environment_ready(preferences.data_folder() / "backend-env")
    else:
        bpy.app.timers.register(_look_around_once, first_interval=0.5)


def unregister() -> None:
    global _session
    bpy.app.handlers.load_post.remove(_after_load)
    for timer in (_on_timer, _look_around_once):
        if bpy.app.timers.is_registered(timer):
            bpy.app.timers.unregister(timer)
    if _session is not None:
        _session.close()
        _session = None
