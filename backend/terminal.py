# SPDX-License-Identifier: Apache-2.0
"""A job's events for someone at a terminal: one progress line, warnings, and the end as a sentence.

Knows how lines are drawn; refuses to know what a job does.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from addon import protocol

BAR_WIDTH = 24
QUIET_INTERVAL_S = 10.0  # between lines when the output is no terminal


class ProgressLine:
    """Call it with each event; draws one line that is overwritten, or one every ten seconds into a file."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._drawn = 0
        self._last = -QUIET_INTERVAL_S
        self._stage = ""

    def __call__(self, event: protocol.Event) -> None:
        match event:
            case protocol.Started():
                again = f", from step {event.resumed_from_step}" if event.resumed_from_step else ""
                self._line(f"Patina {event.backend_version}: {event.model} on {event.device}{again}")
            case protocol.Progress():
                self._progress(event)
            case protocol.Warning():
                self._line(f"Warning: {event.message}")
            case protocol.Done():
                self._line("Done.")
            case protocol.Cancelled():
                self._line(f"Cancelled at step {event.step}.")
            case protocol.Paused():
                self._line(f"Paused at step {event.step} ({event.reason}).")
            case protocol.Failed():
                self._line(" ".join(part for part in (event.message, event.hint) if part))

    def _progress(self, event: protocol.Progress) -> None:
        filled = round(BAR_WIDTH * min(max(event.fraction, 0.0), 1.0))
        steps = f" {event.step}/{event.total_steps}" if event.total_steps else ""
        left = f", {event.seconds_left:.0f} s left" if event.seconds_left is not None else ""
        text = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {event.fraction:4.0%} {event.stage}{steps}{left}"
        if self._out.isatty():
            self._out.write("\r" + text.ljust(self._drawn))
            self._out.flush()
            self._drawn = len(text)
        elif event.stage != self._stage or time.monotonic() - self._last >= QUIET_INTERVAL_S:
            self._last = time.monotonic()
            self._out.write(text + "\n")
            self._out.flush()
        self._stage = event.stage

    def _line(self, text: str) -> None:
        if self._drawn:
            self._out.write("\r" + " " * self._drawn + "\r")
            self._drawn = 0
        self._out.write(text + "\n")
        self._out.flush()
