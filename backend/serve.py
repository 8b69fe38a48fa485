# SPDX-License-Identifier: Apache-2.0
"""The resident backend: one job folder after another, as the host orders on stdin.

Knows the command pipe, the sign of life, the host's end and idleness; refuses to know what a job does (job.py).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import os
import queue
import stat
import sys
import threading
import time
from pathlib import Path

from addon import protocol

from . import job

HEARTBEAT_S = 1.0
IDLE_RELEASE_S = 600.0  # a warm model is given back after ten idle minutes
HOST_GONE_LIMIT_S = 120.0  # a stage that takes longer to stop than this is left without a checkpoint
LOG_LIMIT_BYTES = 4_000_000
LOG_KEPT_BYTES = 64_000


def serve(home: Path, device_lock: Path | None = None, idle_release_s: float = IDLE_RELEASE_S) -> int:
    """Obey the commands on stdin until Shutdown or its end; the exit code.

    `home` holds `alive` and `worker.log`. A job that fails does not end the process; one whose end cannot be written
    down does, so that the exit code can tell.
    """
    commands: queue.SimpleQueue[protocol.Command | protocol.ProtocolError | None] = queue.SimpleQueue()
    host_gone = threading.Event()
    _survive_a_full_log()
    for target, arguments in ((_read_commands, (commands, host_gone)), (_heartbeat, (home, host_gone))):
        threading.Thread(target=target, args=arguments, name=target.__name__, daemon=True).start()
    shelf = functools.cache(_new_shelf)
    while True:
        try:
            command = commands.get(timeout=idle_release_s)
        except queue.Empty:
            command = protocol.ReleaseMemory()
        match command:
            case None | protocol.Shutdown():
                return protocol.EXIT_OK
            case protocol.ReleaseMemory():
                _release(shelf)
            case protocol.Run():
                try:
                    folder = Path(command.job)
                    code = job.run_job(folder, command.attempt, shelf, host_gone.is_set, device_lock=device_lock)
                except job.CannotTell as error:
                    print(error, file=sys.stderr)
                    return error.exit_code
                if code == protocol.EXIT_HOST_GONE:
                    return code
                if code == protocol.EXIT_OUT_OF_MEMORY:
                    _release(shelf)
            case protocol.ProtocolError():
                print(f"A command on stdin cannot be obeyed: {command}", file=sys.stderr)
                return protocol.EXIT_USAGE


def _new_shelf() -> object:
    from . import models  # brings torch along

    return models.ModelShelf()


def _release(shelf: functools._lru_cache_wrapper) -> None:
    """Give the models' memory back, if any were ever loaded."""
    if shelf.cache_info().currsize:
        shelf().release()
    gc.collect()


def _read_commands(commands: queue.SimpleQueue, host_gone: threading.Event) -> None:
    """Thread: turn lines on stdin into commands; its end, or Shutdown, means that the host is gone."""
    rest = b""
    with contextlib.suppress(OSError):
        # os.read, not sys.stdin: a thread that sleeps in a buffered read keeps the interpreter from ending.
        while block := os.read(0, 65536):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                try:
                    command = protocol.decode(line.decode("utf-8"), protocol.Command)
                except (protocol.ProtocolError, UnicodeDecodeError) as error:
                    command = protocol.ProtocolError(str(error))
                if isinstance(command, protocol.Shutdown):
                    host_gone.set()
                commands.put(command)
    host_gone.set()
    commands.put(None)


def _heartbeat(home: Path, host_gone: threading.Event) -> None:
    """Thread: touch `alive` every second, keep the log short, and end what does not end after its host."""
    gone_at: float | None = None
    while True:
        with contextlib.suppress(OSError):
            (home / "alive").touch()
        with contextlib.suppress(OSError):
            _shorten_log(home / "worker.log")
        if host_gone.is_set():
            gone_at = time.monotonic() if gone_at is None else gone_at
            if time.monotonic() - gone_at > HOST_GONE_LIMIT_S:
                os._exit(protocol.EXIT_HOST_GONE)
        time.sleep(HEARTBEAT_S)


def _shorten_log(log: Path) -> None:
    """Keep only the end of the log once it is too long; whoever writes to it goes on writing."""
    state = os.fstat(1)
    if not stat.S_ISREG(state.st_mode) or state.st_size <= LOG_LIMIT_BYTES:
        return
    with open(log, "rb") as file:
        file.seek(-LOG_KEPT_BYTES, os.SEEK_END)
        end = file.read(LOG_KEPT_BYTES)
    os.ftruncate(1, 0)
    os.lseek(1, 0, os.SEEK_SET)
    os.write(1, b"[older lines were dropped]\n" + end)


def _survive_a_full_log() -> None:
    """Let no print fail because the log cannot take it: the log serves the job, never the other way round."""
    sys.stdout = _ForgivingStream(io.FileIO(1, "w", closefd=False), "utf-8", "replace", write_through=True)
    sys.stderr = _ForgivingStream(io.FileIO(2, "w", closefd=False), "utf-8", "replace", write_through=True)


class _ForgivingStream(io.TextIOWrapper):
    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()
