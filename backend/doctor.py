# SPDX-License-Identifier: Apache-2.0
"""What works on this computer: Python, packages against their pins, device, memory, disk.

Knows how to look; changes nothing and needs no network.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
NEEDED_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report; `problem` is empty when all is well."""

    subject: str
    found: str
    problem: str = ""


def main() -> int:
    """Print the findings; 0 when nothing stands in the way of a run, else 1."""
    findings = [_python(), *_packages(), _device(), _disk()]
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{'!!' if finding.problem else 'ok'}  {finding.subject.ljust(width)}  {finding.found} {finding.problem}")
    return 1 if any(finding.problem for finding in findings) else 0


def _python() -> Finding:
    problem = "" if (3, 11) <= sys.version_info[:2] <= (3, 13) else "(Patina's backend needs 3.11 to 3.13)"
    return Finding("Python", f"{platform.python_version()} on {platform.platform()}", problem)


def _packages() -> list[Finding]:
    findings = []
    for name, pinned in pinned_versions(REQUIREMENTS.read_text("utf-8")).items():
        try:
            found = importlib.metadata.version(name)
            importlib.import_module({"pillow": "PIL"}.get(name, name))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "missing", "(repair the backend)"))
        except Exception as error:  # a broken wheel may raise anything; the report must go on
            findings.append(Finding(name, found, f"(cannot be loaded: {error})"))
        else:
            public = found.partition("+")[0]
            problem = "" if public in pinned else f"(tested with {' or '.join(pinned)})"
            findings.append(Finding(name, found, problem))
    return findings


def pinned_versions(requirements: str) -> dict[str, list[str]]:
    """Package name -> the versions that a requirements text pins it to (several: one a Python version)."""
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", requirements, re.MULTILINE):
        pins.setdefault(name, []).append(version)
    return pins


def _device() -> Finding:
    try:
        import torch
    except Exception as error:  # as above
        return Finding("device", "unknown", f"(torch cannot be loaded: {error})")
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("device", f"cuda: {torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        return Finding("device", "mps")
    return Finding("device", f"cpu: {torch.get_num_threads()} of {os.cpu_count()} threads")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.home()).free
    problem = "" if free >= NEEDED_FREE_BYTES else "(a job needs about 1 GiB)"
    return Finding("disk", f"{free / 2**30:.0f} GiB free in {Path.home()}", problem)
