# SPDX-License-Identifier: GPL-3.0-or-later
"""Create and check the backend's Python environment.

Knows interpreters, venv and pip; knows neither bpy nor what the packages are for. All work is done by child
processes that `EnvironmentBuild.tick` watches: no thread, no call longer than a few milliseconds. `build.py` makes
its `.venv` with the same class.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import protocol, worker
from .pip_output import PipOutput

BACKEND = Path(__file__).resolve().parents[1] / "backend"
STAMP = "patina-environment.json"
PROBE = "import sys, venv, ensurepip, pyexpat, ssl; print('%d.%d' % sys.version_info[:2])"
PROBE_INDEX = (
    "import os, sys; from pip._vendor import requests; "
    "sys.exit(0 if requests.get(sys.argv[1], timeout=6, verify=os.environ.get('PIP_CERT', True)).ok else 1)"
)
# pip, ended as soon as its stdin is closed: when Blender is killed, nobody is left to cancel the installation.
PIP = (
    "import os, runpy, threading\n"
    "threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()\n"
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_CUDA_INDEX = "https://download.pytorch.org/whl/cu130"  # Windows only: on Linux the plain index has CUDA builds
PROBE_LIMIT_S = 20.0
VENV_LIMIT_S = 300.0
PIP_LIMIT_S = 3 * 3600.0
CHECK_LIMIT_S = 300.0
CUDA_DOWNLOAD_MB = 2700
NEEDED_BYTES = 3 << 30
NEEDED_BYTES_CUDA = 10 << 30


@dataclass(frozen=True)
class Recipe:
    """What an environment shall hold. `check` is Python code that must run in it without an error."""

    requirements: tuple[Path, ...] = (BACKEND / "requirements.txt",)
    constraints: Path = BACKEND / "constraints.txt"
    versions: tuple[str, ...] = ("3.11", "3.12", "3.13")
    download_mb: int = 280  # about; with CUDA it is CUDA_DOWNLOAD_MB more
    check: str = "import torch, diffusers, safetensors, numpy, PIL, scipy, trimesh, xatlas"

    def fingerprint(self) -> str:
        """Changes with every change of the pins. Raises OSError when a file is missing."""
        digest = hashlib.sha256(self.check.encode())
        for path in (*self.requirements, self.constraints):
            digest.update(path.read_bytes())
        return digest.hexdigest()


class EnvironmentFailed(Exception):
    """The environment could not be built or removed; the text is a sentence for a person."""


def chosen_python() -> Path | None:
    """The interpreter that the variable PATINA_PYTHON names; it is used as it is, nothing is installed into it."""
    named = os.environ.get("PATINA_PYTHON", "").strip()
    return Path(named) if named else None


def environment_python(folder: Path) -> Path:
    """The interpreter to start the backend with: PATINA_PYTHON, else the one in the environment's folder."""
    return chosen_python() or _venv_python(folder)


def environment_ready(folder: Path, recipe: Recipe | None = None) -> bool:
    """Can the backend be started from this folder as it is? True as well when PATINA_PYTHON names an interpreter."""
    named = chosen_python()
    return named.is_file() if named is not None else is_built(folder, recipe or Recipe())


def is_built(folder: Path, recipe: Recipe) -> bool:
    """Does the folder hold the environment that the recipe describes, built to the end?"""
    try:
        stamp = json.loads((folder / STAMP).read_text("utf-8"))
        return stamp["fingerprint"] == recipe.fingerprint() and _venv_python(folder).exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def python_candidates(preferred: Path | None = None, blender_python: Path | None = None) -> list[Path]:
    """Interpreters to try: the person's choice alone, else those on PATH, then Blender's own. Starts none of them."""
    if preferred:
        return [preferred]
    found: list[Path] = []
    for name in ("python3.11", "python3.12", "python3.13", "python3", "python"):
        every = (shutil.which(name, path=folder) for folder in os.get_exec_path())
        found += [Path(path) for path in every if path]
    if os.name == "nt":  # the installer of python.org does not touch PATH unless asked
        programs = Path(os.environ.get("LOCALAPPDATA", ""), "Programs", "Python")
        found += [programs / f"Python{version}" / "python.exe" for version in ("311", "312", "313")]
    if blender_python:
        found.append(blender_python)
    return [path for path in dict.fromkeys(found) if path.exists()]


def take_folder(folder: Path, workers: Path | None) -> int:
    """The lock on an environment, for who changes it; given back by `protocol.release_lock`.

    `workers` as of `EnvironmentBuild`. Raises EnvironmentFailed when another Blender installs or uses it, OSError.
    """
    lock = protocol.take_lock(folder.with_name(folder.name + ".lock"), str(os.getpid()))
    if lock is None:
        raise EnvironmentFailed("Another Blender is installing the backend right now. Wait until it is done.")
    if workers is not None and folder.exists() and worker.others_live(workers):
        protocol.release_lock(lock)
        raise EnvironmentFailed("Another Blender is using the backend. Close it, wait a few seconds, then try again.")
    return lock


@dataclass
class EnvironmentBuild:
    """Builds `folder` from nothing, replacing what is there. Call `tick` until `finished`; then read `error`.

    `pythons` are tried in order, see `python_candidates`. What the children print is kept in the file `log` beside
    the folder.
    """

    folder: Path
    pythons: Sequence[Path]
    recipe: Recipe = field(default_factory=Recipe)
    wheels: Path | None = None  # a folder of wheels to install from, without any network
    workers: Path | None = None  # where the folders of the backends are that may run in the environment, if any
    error: str = ""
    finished: bool = False

    def __post_init__(self) -> None:
        self.log = self.folder.with_name(self.folder.name + ".log")
        self._child: subprocess.Popen | None = None
        self._state = (0.0, "Looking for Python")
        self._work = self._build()

    def tick(self) -> tuple[float, str]:
        """Go on a little; the fraction done in 0..1 and what is being done. Raises nothing but programming errors."""
        if not self.finished:
            try:
                fraction, text = next(self._work)
                self._state = (max(fraction, self._state[0]), text)
            except StopIteration:
                self.finished, self._state = True, (1.0, "Ready")
            except EnvironmentFailed as failure:
                self.finished, self.error = True, str(failure)
            except OSError as error:
                self.finished = True
                self.error = f"The backend could not be installed: {error.strerror or error} ({error.filename})."
        return self._state

    def cancel(self) -> None:
        """End the children at once. What was installed is no environment: the next build starts anew."""
        if not self.finished:
            self.finished, self.error = True, "The installation was cancelled."
            self._work.close()

    def last_log_lines(self, count: int = 20) -> list[str]:
        """The last lines that pip or another child printed."""
        return worker.tail_lines(self.log, count)

    def _build(self) -> Iterator[tuple[float, str]]:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = take_folder(self.folder, self.workers)
        try:
            self.log.write_bytes(b"")
            self._check_disk()
            if self.wheels is not None and not any(self.wheels.glob("*.whl")):
                raise EnvironmentFailed(f"There are no wheels (.whl files) in {self.wheels}. Choose another folder.")
            yield 0.0, "Looking for Python"
            base = yield from self._find_python()
            with contextlib.suppress(FileNotFoundError):  # from here on the folder is no environment
                (self.folder / STAMP).unlink()
            yield 0.02, "Creating the environment"
            command = [str(base), "-I", "-m", "venv", "--clear", str(self.folder)]
            if (yield from self._run(command, VENV_LIMIT_S)) != 0:
                raise EnvironmentFailed(f"{base} could not create {self.folder}: {self._last_line()}")
            yield from self._install()
            yield 0.97, "Trying it out"
            check = [str(_venv_python(self.folder)), "-I", "-X", "utf8", "-c", self.recipe.check]
            if (yield from self._run(check, CHECK_LIMIT_S)) != 0:
                raise EnvironmentFailed(f"What was installed does not work here: {self._last_line()}")
            stamp = {"fingerprint": self.recipe.fingerprint(), "base": str(base)}
            protocol.write_beside(self.folder / STAMP, json.dumps(stamp).encode())
        finally:
            if self._child is not None:
                _end(self._child)
            protocol.release_lock(lock)

    def _check_disk(self) -> None:
        needed = NEEDED_BYTES_CUDA if has_nvidia() else NEEDED_BYTES
        free = shutil.disk_usage(self.folder.parent).free
        if free < needed:
            raise EnvironmentFailed(
                f"The backend needs {needed >> 30} GB, but {self.folder.parent} has {free / 2**30:.1f} GB left. "
                "Free some space or choose another folder."
            )

    def _find_python(self) -> Iterator[tuple[float, str]]:
        for candidate in dict.fromkeys(self.pythons):
            if self.folder in candidate.parents:
                continue  # it would be deleted while it works
            answer: list[str] = []
            try:
                code = yield from self._run([str(candidate), "-I", "-c", PROBE], PROBE_LIMIT_S, answer.append)
            except (OSError, EnvironmentFailed):
                code = None
            if code == 0 and answer and answer[-1].strip() in self.recipe.versions:
                return candidate
        wanted = " or ".join(self.recipe.versions)
        if len(self.pythons) == 1:
            raise EnvironmentFailed(
                f"{self.pythons[0]} is not a Python {wanted} with venv and pip. Choose another one in the preferences."
            )
        package = f"python{self.recipe.versions[0]}-venv"
        raise EnvironmentFailed(
            f"No Python {wanted} with venv and pip was found. Install one "
            + (f"(Debian, Ubuntu: apt-get install {package})." if sys.platform == "linux" else "from python.org.")
        )

    def _install(self) -> Iterator[tuple[float, str]]:
        python = str(_venv_python(self.folder))
        pip = [python, "-I", "-X", "utf8", "-c", PIP, "--no-input", "--disable-pip-version-check", "install"]
        if self.wheels is not None:
            yield from self._install_offline(pip)
            return
        yield 0.04, "Updating pip"
        # A newer pip tells how far a download is. Without it, things work all the same.
        with contextlib.suppress(EnvironmentFailed):
            yield from self._run([*pip, "--upgrade", "pip"], CHECK_LIMIT_S)
        index, answer = torch_index(), 1
        if index:
            with contextlib.suppress(EnvironmentFailed):  # an index that does not answer in time is none
                answer = yield from self._run([python, "-I", "-c", PROBE_INDEX, index + "/torch/"], PROBE_LIMIT_S)
        index = index if answer == 0 else None
        said: list[str] = []
        yield from self._run([python, "-I", "-m", "pip", "--version"], CHECK_LIMIT_S, said.append)
        bar = "raw" if _pip_version(said) >= (24, 1) else "off"
        # What is used is compiled when it is first imported, which is much less than everything.
        pip += ["--no-compile", "--progress-bar", bar, "--constraint", str(self.recipe.constraints)]
        pip += [part for path in self.recipe.requirements for part in ("--requirement", str(path))]
        for extra in dict.fromkeys((index, None)):  # if it fails with PyTorch's own index, then without
            output = PipOutput(self.folder, self.recipe.download_mb + (CUDA_DOWNLOAD_MB if has_nvidia() else 0))
            command = [*pip, "--extra-index-url", extra] if extra else pip
            code = yield from self._run(command, PIP_LIMIT_S, output.read, output.state)
            if code == 0:
                return
        raise EnvironmentFailed(f"The backend could not be installed: {output.sentence()} The whole log: {self.log}")

    def _install_offline(self, pip: list[str]) -> Iterator[tuple[float, str]]:
        """From the folder of wheels alone; it holds what `pip download` with our requirements brings."""
        command = [*pip, "--no-compile", "--no-index", "--find-links", str(self.wheels)]
        command += ["--constraint", str(self.recipe.constraints)]
        command += [part for path in self.recipe.requirements for part in ("--requirement", str(path))]
        output = PipOutput(self.folder, self.recipe.download_mb)
        yield 0.05, "Installing from the folder"
        if (yield from self._run(command, PIP_LIMIT_S, output.read, output.state)) != 0:
            last = next((line for line in reversed(self.last_log_lines()) if "ERROR" in line), self._last_line())
            raise EnvironmentFailed(
                f"The backend could not be installed from {self.wheels}: {last.strip()} The whole log: {self.log}"
            )

    def _run(
        self,
        command: list[str],
        limit_s: float,
        on_line: Callable[[str], object] | None = None,
        state: Callable[[], tuple[float, str]] | None = None,
    ) -> Iterator[tuple[float, str]]:
        """Run one child, its output into the log; returns its exit code. Raises OSError, EnvironmentFailed (time)."""
        with open(self.log, "ab") as log:
            start = log.seek(0, os.SEEK_END)
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # nothing is ever written: its end means that we are gone
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**worker.clean_environment(), "PYTHONUNBUFFERED": "1"},
                **worker.own_group(),
            )
        deadline = time.monotonic() + limit_s
        with self._child.stdin, open(self.log, "rb") as output:
            output.seek(start)
            while True:
                code = self._child.poll()  # before reading: what it printed last is there once it has ended
                rest = b""
                for line in iter(lambda: output.readline(65536), b""):
                    if not line.endswith(b"\n") and code is None:
                        rest = line
                        break
                    if on_line is not None:
                        on_line(line.decode("utf-8", "replace").rstrip())
                output.seek(-len(rest), os.SEEK_CUR)
                if code is not None:
                    return code
                if time.monotonic() > deadline:
                    _end(self._child)
                    raise EnvironmentFailed(f"{command[0]} did not end within {limit_s:.0f} seconds. Try again.")
                yield state() if state else self._state

    def _last_line(self) -> str:
        return (self.last_log_lines(1) or ["it said nothing."])[0].strip()


def torch_index() -> str | None:
    """PyTorch's own package index when the plain one has the wrong builds for this machine, else None.

    PATINA_TORCH_INDEX decides when it is set (empty: none); an index that the person has set for pip is left alone.
    """
    if "PATINA_TORCH_INDEX" in os.environ:
        return os.environ["PATINA_TORCH_INDEX"].strip().rstrip("/") or None
    if os.environ.get("PIP_INDEX_URL") or os.environ.get("PIP_EXTRA_INDEX_URL") or os.environ.get("PIP_NO_INDEX"):
        return None
    if sys.platform == "linux" and not has_nvidia():
        return TORCH_CPU_INDEX
    if os.name == "nt" and has_nvidia():
        return TORCH_CUDA_INDEX
    return None


def has_nvidia() -> bool:
    """Is the driver of an NVIDIA card here?"""
    if os.name == "nt":
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll").exists()
    return Path("/proc/driver/nvidia/version").exists()


def _venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _pip_version(lines: list[str]) -> tuple[int, int]:
    found = re.match(r"pip (\d+)\.(\d+)", lines[0] if lines else "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _end(child: subprocess.Popen) -> None:
    """Kill a child and those it started; waits a moment, so that none is left behind."""
    if child.poll() is None:
        worker.end_group(child, hard=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.5)
