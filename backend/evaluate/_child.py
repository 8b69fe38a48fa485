# SPDX-License-Identifier: Apache-2.0
"""Measuring in a process of its own, started as the add-on starts the backend: its memory and threads are its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 1800  # of one measurement


def child(function: Callable[..., dict[str, object]], *arguments: str) -> dict[str, object]:
    """What a module's `function` answers in a process of its own with the launcher's settings. Raises RuntimeError with
    what it said last."""
    name = function.__name__
    code = f"import json, sys\nfrom {function.__module__} import {name}\nprint(json.dumps({name}(*sys.argv[1:])))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=launcher_environment(), capture_output=True, text=True,
            timeout=LONGEST_S, cwd=ROOT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{name} took more than {LONGEST_S} s.") from None
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:].strip() or f"{name} ended with {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def launcher_environment() -> dict[str, str]:
    """What the add-on starts the backend with. Asked, not imported: the backend knows nothing of the launcher."""
    code = "import json; from addon.worker import backend_environment; print(json.dumps(backend_environment()))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    return json.loads(done.stdout)
