# SPDX-License-Identifier: Apache-2.0
"""One attempt of a job: request in, events out, one terminal event whatever happens.

Knows the lock, the control lines, the words for every failure and the exit codes; refuses to know how a
texture is made (texturing.py) and how commands arrive (serve.py).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import logging.handlers
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from addon import protocol

Watch = Callable[[protocol.Event], None]
LOG_LIMIT_BYTES = 2_000_000
MESSAGE_LIMIT = 2000
DEVICE_POLL_S, WAITING_TOLD_S = 0.5, 60.0

# Named errors of the rooms: where they live, and the failure they mean. Looked up among the loaded modules
# only: what was never imported cannot have been raised.
NAMED_ERRORS = (
    ("backend.mesh", "MeshError", "bad_mesh"),
    ("backend.uv", "UvError", "bad_mesh"),
    ("backend.prompts", "PromptError", "bad_prompt"),
    ("backend.models", "ModelError", "bad_model"),
    ("addon.protocol", "ProtocolError", "bad_request"),
)
HINTS = {
    "bad_mesh": "Correct the mesh, then press Generate again.",
    "bad_prompt": "Change the prompt, then press Generate again.",
    "bad_model": "Choose another model, or repair this one.",
    "bad_request": "Press Generate again. If that does not help, repair the backend.",
    "out_of_memory": "Choose a smaller texture size or draft quality, or close other programs.",
    "disk_full": "Free some space, then press Generate again.",
    "locked": "Wait for it, or cancel it there.",
    "internal": "The log of this attempt says more.",
}


class CannotTell(Exception):
    """The attempt's end could not be written down; only `exit_code` can still say it."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_job(
    folder: Path,
    attempt: int,
    shelf: Callable[[], object] | None,
    host_gone: Callable[[], bool],
    watch: Watch | None = None,
    device_lock: Path | None = None,
) -> int:
    """Run attempt number `attempt` of the job in `folder` to its end and return the exit code that means it.

    `shelf` gives the models.ModelShelf to use, None: one of this job's own. It is called inside the attempt, since
    making one imports torch. `host_gone` is asked at every step; `watch` sees every event after it was written. With
    `device_lock` the job waits its turn among those that share this file. Raises CannotTell when the end cannot be
    written into the attempt's events; nothing else.
    """
    job = protocol.JobFolder(Path(folder))
    attempt_folder = job.attempt(attempt)
    if not attempt_folder.path.is_dir():
        raise CannotTell(protocol.EXIT_BAD_REQUEST, f"There is no folder {attempt_folder.path}.")
    events = _EventFile(attempt_folder, watch)
    lock = None
    try:
        lock = protocol.take_job_lock(job.lock, _who_we_are())
        if lock is None:
            locked = protocol.Failed("locked", f"This job is already running: {_holder(job.lock)}.", HINTS["locked"])
            return events.end(locked)
        control = _Control(attempt_folder.control, host_gone, events)
        with _attempt_log(attempt_folder.log), _turn(device_lock, control.stop_asked, events) as stopped:
            if stopped is not None:
                return events.end(stopped)
            return _run(job, shelf, control.stop_asked, events)
    except OSError as error:  # the lock file or the log could not be made
        return events.end(failure_of(error))
    finally:
        if lock is not None:
            protocol.release_lock(lock)


def _run(
    job: protocol.JobFolder,
    shelf: Callable[[], object] | None,
    stop_asked: Callable[[], str | None],
    events: _EventFile,
) -> int:
    log = logging.getLogger("patina.job")
    log.info("attempt in %s, Python %s on %s", job.path, platform.python_version(), platform.platform())
    try:
        request = job.read_request()
        from . import models, texturing  # here: they bring torch along, which takes seconds

        ending = None
        with contextlib.closing(texturing.run(request, job, (shelf or models.ModelShelf)(), stop_asked)) as run:
            for event in run:
                if isinstance(event, protocol.TERMINAL_EVENTS):
                    ending = event
                    break
                events.write(event)
        if ending is None:
            raise RuntimeError("the run ended without saying how")
        log.info("ended: %s", type(ending).__name__)
        return events.end(ending)
    except CannotTell:
        raise
    except KeyboardInterrupt:
        return events.end(protocol.Cancelled(events.step))
    except BaseException as error:  # whatever it is, it must be told: SystemExit of a library too
        failure = failure_of(error)
        log.error("%s: %s", failure.kind, failure.message, exc_info=error)
        return events.end(failure)


def failure_of(error: BaseException) -> protocol.Failed:
    """The `Failed` event that says `error` to a person."""
    kind = _kind_of(error)
    message = str(error).strip() or type(error).__name__
    hint = HINTS[kind]
    if kind == "out_of_memory":
        message = "The computer's or the graphics card's memory is used up."
    elif kind == "disk_full":
        message = f"The disk is full{f' ({error.filename})' if getattr(error, 'filename', None) else ''}."
    elif isinstance(error, ImportError):
        message = f"The backend's Python environment is incomplete: {message}."
        hint = "Repair the backend in the add-on's preferences."
    elif kind == "internal":
        message = f"Something went wrong inside Patina: {type(error).__name__}: {message}"
    return protocol.Failed(kind, message[:MESSAGE_LIMIT], hint)


def exit_code_of(ending: protocol.Event) -> int:
    """The exit code that says the same as a terminal event."""
    match ending:
        case protocol.Failed():
            return protocol.FAILURE_KINDS[ending.kind]
        case protocol.Cancelled():
            return protocol.EXIT_CANCELLED
        case protocol.Paused(reason="host gone"):
            return protocol.EXIT_HOST_GONE
    return protocol.EXIT_OK


def _kind_of(error: BaseException) -> str:
    for module, name, kind in NAMED_ERRORS:
        if isinstance(error, getattr(sys.modules.get(module), name, ())):
            return kind
    torch_memory = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    text = str(error).lower()
    if isinstance(error, (MemoryError, torch_memory)):
        return "out_of_memory"
    if isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text):
        return "out_of_memory"  # torch's allocator on the CPU has no class of its own
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return "out_of_memory"
    return "internal"


class _EventFile:
    """An attempt's events.jsonl: made by its first line, never one that was there before."""

    def __init__(self, attempt: protocol.AttemptFolder, watch: Watch | None) -> None:
        self.step = 0
        self._path = attempt.events
        self._watch = watch
        self._made = False

    def write(self, event: protocol.Event) -> None:
        """Append one line, whole or not at all. Raises OSError, and CannotTell if the file is another attempt's."""
        line = protocol.encode(event).encode()
        # Opened anew for each line and never made twice: when the job folder is deleted under us, we notice.
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(self._path, flags if self._made else flags | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise CannotTell(
                protocol.EXIT_USAGE, f"{self._path} already holds an attempt; each start needs a new one."
            ) from None
        self._made = True
        try:
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        self.step = getattr(event, "step", self.step)
        if self._watch is not None:
            self._watch(event)

    def end(self, event: protocol.Event) -> int:
        """Write the terminal event; its exit code. Raises CannotTell with that exit code if it cannot be written."""
        code = exit_code_of(event)
        try:
            self.write(event)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                code = protocol.EXIT_DISK_FULL
            elif code == protocol.EXIT_OK:
                code = protocol.EXIT_FAILED
            raise CannotTell(code, f"{self._path} cannot be written: {error.strerror or error}.") from error
        return code


class _Control:
    """What the host asks of a running attempt."""

    def __init__(self, path: Path, host_gone: Callable[[], bool], events: _EventFile) -> None:
        self._path = path
        self._host_gone = host_gone
        self._events = events
        self._offset = 0
        self._asked: str | None = None

    def stop_asked(self) -> str | None:
        """None, or why the run shall stop now: "cancel", "pause" or "host gone". Cheap enough for every step."""
        try:
            messages, self._offset = protocol.read_lines(self._path, self._offset, protocol.Control)
        except protocol.ProtocolError as error:
            messages, self._offset = [], self._path.stat().st_size
            self._events.write(protocol.Warning(f"An order to this job could not be read: {error}"))
        for message in messages:
            if isinstance(message, protocol.Cancel):
                self._asked = "cancel"
            elif self._asked is None:
                self._asked = "pause"
        if self._asked is None and self._host_gone():
            self._asked = "host gone"
        return self._asked


@contextlib.contextmanager
def _turn(
    device_lock: Path | None, stop_asked: Callable[[], str | None], events: _EventFile
) -> Iterator[protocol.Event | None]:
    """Hold the device's lock inside; yields the terminal event instead if the job was stopped before its turn."""
    lock, told = None, -math.inf
    try:
        while (asked := stop_asked()) is None and device_lock is not None and lock is None:
            lock = protocol.take_lock(device_lock, _who_we_are())
            if lock is None:
                if time.monotonic() - told > WAITING_TOLD_S:  # again and again: who says nothing is taken for hung
                    events.write(protocol.Progress("Waiting for another Blender's job", 0, 0, 0.0))
                    told = time.monotonic()
                time.sleep(DEVICE_POLL_S)
        match asked:
            case None:
                yield None
            case "cancel":
                yield protocol.Cancelled(0)
            case "pause":
                yield protocol.Paused("asked", 0)
            case _:
                yield protocol.Paused("host gone", 0)
    finally:
        if lock is not None:
            protocol.release_lock(lock)


@contextlib.contextmanager
def _attempt_log(path: Path) -> Iterator[None]:
    """What is logged and warned inside goes to `path`, which never grows past LOG_LIMIT_BYTES (twice)."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_LIMIT_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.handleError = lambda record: None  # a full disk must not turn a log line into a failure
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def _who_we_are() -> str:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return f"process {os.getpid()} on {platform.node() or 'this computer'}, since {now}"


def _holder(lock: Path) -> str:
    """Who holds the lock, in the words its holder wrote; made safe to show."""
    try:
        text = lock.read_text("utf-8", "replace")[:200]
    except OSError:
        text = ""
    return "".join(c for c in text if c.isprintable()) or "another process holds its lock"
