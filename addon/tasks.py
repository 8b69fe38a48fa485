# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done beside runs, one at a time: installing the backend, the doctor, fetching models. No bpy, no thread.

A task has `title`, `fraction`, `text`, `finished`, `error` and `lines`; `tick` goes on a little, `cancel` ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from . import environment, protocol, worker

_MOST_LINES = 60


class Install:
    """Builds the backend's environment."""

    title = "Installing the backend"

    def __init__(self, build: environment.EnvironmentBuild) -> None:
        self._build = build
        self.fraction, self.text, self.finished, self.error = 0.0, "", False, ""

    @property
    def lines(self) -> list[str]:
        return self._build.last_log_lines(_MOST_LINES)

    def tick(self) -> None:
        self.fraction, self.text = self._build.tick()
        self.finished, self.error = self._build.finished, self._build.error

    def cancel(self) -> None:
        self._build.cancel()
        self.tick()


class Removal:
    """Deletes the backend's environment, a little each tick: 1.4 GB in 30,000 files can take minutes.

    It is moved aside first, so that a new one may be made at once; one that was moved aside and left goes with it.
    `tick_s`: how long a tick may take; `workers`: as of `EnvironmentBuild`. To begin raises EnvironmentFailed, OSError.
    """

    title = "Removing the backend"

    def __init__(self, folder: Path, tick_s: float, workers: Path) -> None:
        self._tick_s, self._folder = tick_s, removed(folder)
        lock = environment.take_folder(folder, workers)
        try:
            self._folder.mkdir(exist_ok=True)
            if folder.exists():
                folder.rename(self._folder / str(time.time_ns()))
        finally:
            protocol.release_lock(lock)
        self._work = _delete(self._folder)
        self.fraction, self.text, self.finished, self.error = -1.0, "", False, ""
        self.lines: list[str] = []

    def tick(self) -> None:
        end = time.monotonic() + self._tick_s
        while not self.finished and time.monotonic() < end:
            self.text = next(self._work, "")
            self.finished = not self.text
        if self.finished and self._folder.exists():
            self.error = f"{self._folder} could not be deleted whole. Close other Blenders, press Remove again."

    def cancel(self) -> None:
        self._work.close()
        self.finished, self.error = True, "Cancelled."


class Command:
    """Runs `python -m backend WORDS` in the backend's environment; what it says goes to a file and to `lines`."""

    def __init__(self, title: str, python: Path, package_root: Path, log: Path, words: list[str]) -> None:
        self.title, self.words = title, words
        self.fraction, self.text, self.finished, self.error = -1.0, "", False, ""
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(python), "-I", "-X", "utf8", "-c", worker.BOOTSTRAP, str(package_root), *words]
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**worker.backend_environment(), "PYTHONUNBUFFERED": "1"},
                **worker.own_group(),
            )

    @property
    def lines(self) -> list[str]:
        return worker.tail_lines(self._log, _MOST_LINES)

    def said_list(self) -> list | None:
        """The last line that is a list in JSON; warnings may stand around it, since stderr goes to the same file."""
        with contextlib.suppress(OSError):
            for line in reversed(self._log.read_text("utf-8", "replace").splitlines()):
                if line.startswith("["):
                    with contextlib.suppress(ValueError):
                        return json.loads(line)
        return None

    def tick(self) -> None:
        code = self._process.poll()
        last = (self.lines or [""])[-1].strip()
        self.text = last[:120]
        share = re.search(r"(\d{1,3}) ?%", last)
        if share:
            self.fraction = min(int(share[1]), 100) / 100
        if code is not None and not self.finished:
            self.finished = True
            self.error = "" if code == 0 else last or f"It ended with the exit code {code}."

    def cancel(self) -> None:
        if self._process.poll() is None:
            worker.end_group(self._process, hard=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
        self.finished, self.error = True, "Cancelled."


def removed(folder: Path) -> Path:
    """Where an environment is moved to be deleted."""
    return folder.with_name(folder.name + ".removed")


def _delete(folder: Path) -> Iterator[str]:
    """Delete what can be deleted, from the inside out; yields each path after it was tried."""
    for inside, folders, files in os.walk(folder, topdown=False):
        for path in (Path(inside, name) for name in (*files, *folders)):
            with contextlib.suppress(OSError):
                path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
            yield str(path)
    with contextlib.suppress(OSError):
        folder.rmdir()
