# SPDX-License-Identifier: GPL-3.0-or-later
"""Start, feed, watch and stop the backend process.

Knows processes, signals and three files (`alive`, `worker.log`, an attempt's events); knows neither bpy
nor what a job means. Holds no thread, and no call but `stop` takes longer than a few milliseconds: the
owner calls `tick` from Blender's timer or from a loop.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from . import protocol

# argv[1] is the folder that holds `backend/` and `addon/`; -I keeps everything else of the user's Python out.
BOOTSTRAP = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module('backend', run_name='__main__', alter_sys=True)"
)
STUCK_AFTER_S = 10.0  # the backend touches `alive` every second
TERMINATE_AFTER_S = 5.0  # after a cancel that was not obeyed
KILL_AFTER_S = 2.0  # after a terminate that was not obeyed
OLD_FOLDER_S = 24 * 3600.0


class WorkerError(Exception):
    """The backend process could not be started or fed; the text is a sentence for a person."""


class Worker:
    """One backend process. Send it one `Run` at a time: a cancel that is not obeyed ends the whole process."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self._process = process
        self._alive = folder / "alive"
        self._alive_stamp: int | None = None
        self._alive_seen = time.monotonic()
        self._unsent = b""
        self._cancelled: protocol.AttemptFolder | None = None
        self._terminate_at: float | None = None
        self._kill_at: float | None = None
        self._ended_by_us = False

    @classmethod
    def start(cls, python: Path, package_root: Path, home: Path) -> Worker:
        """Start `python -m backend serve` from `package_root`; returns at once. Raises WorkerError.

        `home` is shared by all Blenders of a user: each worker gets a folder of its own in it, and
        `home/device.lock` makes their jobs queue for the device.
        """
        try:
            _remove_old_folders(home)
            folder = home / f"{os.getpid()}-{time.time_ns()}"
            folder.mkdir(parents=True)
            (folder / "alive").touch()
            command = [str(python), "-I", "-X", "utf8", "-c", BOOTSTRAP, str(package_root), "serve"]
            command += ["--home", str(folder), "--device-lock", str(home / "device.lock")]
            with open(folder / "worker.log", "ab") as log:
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=backend_environment(),
                    bufsize=0,
                    **own_group(),
                )
        except OSError as error:
            raise WorkerError(
                f"The backend could not be started with {python}: {error.strerror or error}. "
                "Repair the backend in the add-on's preferences."
            ) from error
        with contextlib.suppress(OSError, AttributeError, ValueError):  # Windows pipes: only from Python 3.12
            os.set_blocking(process.stdin.fileno(), False)
        return cls(process, folder)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: protocol.Command) -> None:
        """Queue one command; `tick` goes on sending when the pipe is full. Raises WorkerError when it is dead."""
        if self.poll() is not None or self._process.stdin is None or self._process.stdin.closed:
            raise WorkerError(self.end_sentence() or "The backend is being stopped.")
        self._unsent += protocol.encode(command).encode()
        self._flush()

    def poll(self) -> int | None:
        """The exit code once the process has ended (negative: the signal that ended it), else None."""
        return self._process.poll()

    def alive_age(self) -> float:
        """Seconds since the backend last showed life, on a clock that stands still while the computer sleeps."""
        now = time.monotonic()
        try:
            stamp = self._alive.stat().st_mtime_ns
        except OSError:
            stamp = self._alive_stamp
        if stamp != self._alive_stamp:
            self._alive_stamp, self._alive_seen = stamp, now
        return now - self._alive_seen

    def is_stuck(self) -> bool:
        """Running, but without a sign of life for STUCK_AFTER_S: stopped, swapped out or hanging."""
        return self.poll() is None and self.alive_age() > STUCK_AFTER_S

    def request_cancel(self, job: protocol.JobFolder, attempt: int) -> None:
        """Ask the running attempt to cancel; `tick` terminates, then kills the process if it does not obey."""
        self._cancelled = job.attempt(attempt)
        self._terminate_at = time.monotonic() + TERMINATE_AFTER_S
        with contextlib.suppress(OSError):  # a full disk or a deleted job: the escalation cancels it all the same
            protocol.append_line(self._cancelled.control, protocol.Cancel())

    def tick(self, now: float | None = None) -> None:
        """Go on with what is under way: unsent commands, an unanswered cancel, a stop. `now` as time.monotonic()."""
        now = time.monotonic() if now is None else now
        self._flush()
        self.alive_age()
        if self.poll() is not None:
            self._terminate_at = self._kill_at = self._cancelled = None
            return
        if self._cancelled is not None and _has_ended(self._cancelled):
            self._terminate_at = self._cancelled = None
        if self._terminate_at is not None and now >= self._terminate_at:
            self._terminate_at, self._kill_at = None, now + KILL_AFTER_S
            self._end(hard=False)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._end(hard=True)

    def close(self) -> None:
        """Ask the process to end and return at once: a running job checkpoints and pauses. Enforces nothing."""
        if self.poll() is None and not self._process.stdin.closed:
            with contextlib.suppress(WorkerError):
                self.send(protocol.Shutdown())
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def stop(self, timeout: float = 3.0) -> int | None:
        """Close, wait up to `timeout` seconds, then kill. Blocks; for the end of Blender or of the add-on."""
        self.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        self._end(hard=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(2.0)
        return None

    def last_log_lines(self, count: int = 20) -> list[str]:
        """The last lines the process wrote, made safe to show; empty when there are none."""
        return tail_lines(self.log, count)

    def end_sentence(self) -> str | None:
        """Why the process ended, as a sentence with what to do; None while it runs."""
        code = self.poll()
        if code is None:
            return None
        if code == protocol.EXIT_OK:
            return "The backend has ended."
        if self._ended_by_us:
            return "The backend did not answer and was ended."
        if code in protocol.EXIT_SENTENCES:
            return protocol.EXIT_SENTENCES[code]
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            why = " Usually the computer ran out of memory." if name == "SIGKILL" else ""
            return f"The backend was ended from outside or crashed ({name}).{why} Press Generate to go on."
        return f"The backend ended unexpectedly (exit code {code}). Its log says more: {self.log}"

    def _flush(self) -> None:
        if not self._unsent or self._process.stdin is None or self._process.stdin.closed:
            return
        try:
            written = os.write(self._process.stdin.fileno(), self._unsent)
        except BlockingIOError:
            return  # the pipe is full; the next tick goes on
        except OSError:
            self._unsent = b""  # the reader is gone: `poll` tells the owner
            return
        self._unsent = self._unsent[written:]

    def _end(self, hard: bool) -> None:
        self._ended_by_us = True
        end_group(self._process, hard)


def end_group(process: subprocess.Popen, hard: bool) -> None:
    """Terminate (or kill, `hard`) a process started with `own_group`, with the children it may have."""
    with contextlib.suppress(OSError):
        if os.name == "nt":
            process.kill() if hard else process.terminate()
        elif process.poll() is None:  # never signal a group whose number may have been given away
            os.killpg(process.pid, signal.SIGKILL if hard else signal.SIGTERM)


def own_group() -> dict:
    """Arguments of Popen that put a child into its own process group, without a console window on Windows."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def clean_environment() -> dict[str, str]:
    """This process's environment without what would bend another Python (PYTHONHOME of Blender's, a virtual one)."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") and name not in ("VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    }


def backend_environment() -> dict[str, str]:
    """The backend's environment. Spinning OpenMP threads cost a factor of ten to twenty on a busy machine."""
    environment = clean_environment()
    environment["OMP_WAIT_POLICY"] = "passive"
    environment.setdefault("OMP_NUM_THREADS", str(thread_count()))
    return environment


def thread_count() -> int:
    """Threads for the backend: all of few cores, half of many (two share a core); more than 8 gain nothing here."""
    with contextlib.suppress(AttributeError):  # Linux: a container or taskset may allow fewer than there are
        cores = len(os.sched_getaffinity(0))
        return max(min(cores, 2), min(cores // 2, 8))
    cores = os.cpu_count() or 1
    return max(min(cores, 2), min(cores // 2, 8))


def tail_lines(path: Path, count: int, block: int = 16384) -> list[str]:
    """The last `count` lines of a text file, without control characters, each cut at 300 characters."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - block))
            text = file.read(block).decode("utf-8", "replace")
    except OSError:
        return []
    lines = ("".join(c for c in line if c.isprintable() or c == "\t")[:300] for line in text.splitlines())
    return [line for line in lines if line.strip()][-count:]


def _has_ended(attempt: protocol.AttemptFolder) -> bool:
    """Does the attempt's last complete line hold a terminal event? Reads the end of the file only."""
    try:
        with open(attempt.events, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 65536))
            lines = file.read(65536).split(b"\n")
    except OSError:
        return False
    try:
        last = protocol.decode(lines[-2].decode("utf-8"), protocol.Event) if len(lines) > 1 else None
    except (protocol.ProtocolError, UnicodeDecodeError):
        return False
    return isinstance(last, protocol.TERMINAL_EVENTS)


def others_live(home: Path) -> bool:
    """Has a backend of another process than this one shown life a moment ago?"""
    for alive in home.glob("*-*/alive"):
        with contextlib.suppress(OSError):
            is_ours = alive.parent.name.startswith(f"{os.getpid()}-")
            if not is_ours and abs(time.time() - alive.stat().st_mtime) < STUCK_AFTER_S:
                return True
    return False


def _remove_old_folders(home: Path) -> None:
    """Remove worker folders that showed no life for a day. What cannot be removed stays for another time."""
    if not home.is_dir():
        return
    for alive in itertools.islice(home.glob("*-*/alive"), 20):
        with contextlib.suppress(OSError):
            if time.time() - alive.stat().st_mtime > OLD_FOLDER_S:
                shutil.rmtree(alive.parent, ignore_errors=True)
