# SPDX-License-Identifier: GPL-3.0-or-later
"""What pip's lines mean: how far it is, and why it failed.

Knows pip's words and the folder it installs into; starts nothing.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

START, DOWNLOADED, INSTALLED = 0.08, 0.75, 0.97  # where the two phases lie in the whole build
COUNT_INTERVAL_S = 1.0
SIZES = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}
DOWNLOADING = re.compile(r"^\s*(?:Downloading|Using cached) (\S+) \(([\d.]+) (kB|MB|GB)\)")
PROGRESS = re.compile(r"^\s*Progress (\d+) of (\d+)")
FAILURES = (
    (r"No space left on device", "the disk is full. Free some space, then try again."),
    (
        r"Temporary failure in name resolution|NewConnectionError|getaddrinfo failed|ConnectTimeout|ProxyError"
        r"|Read timed out|Could not fetch URL|Connection reset|Network is unreachable|Failed to establish",
        "the package index cannot be reached. Check the network (and the proxy, or PIP_INDEX_URL), then try again.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "the package index's certificate was refused. Check the clock and the proxy (PIP_CERT), then try again.",
    ),
)


class PipOutput:
    """Give it pip's lines; ask it how far pip is. `expected_mb`: about what is downloaded in all."""

    def __init__(self, folder: Path, expected_mb: float) -> None:
        self._folder = folder
        self._expected_mb = expected_mb
        self._done_mb = self._now_mb = self._now_of_mb = 0.0
        self._text = "Asking the package index"
        self._packages = 0
        self._installed = 0
        self._counted_at = 0.0
        self._errors: list[str] = []
        self._failure = ""

    def read(self, line: str) -> None:
        """Take in one line of output."""
        if found := PROGRESS.match(line):
            self._now_mb = int(found[1]) / 1e6
        elif found := DOWNLOADING.match(line):
            self._done_mb += self._now_of_mb
            self._now_mb, self._now_of_mb = 0.0, float(found[2]) * SIZES[found[3]]
            self._text = f"Downloading {found[1].rpartition('/')[2].split('-')[0]}"
        elif line.startswith("Collecting "):
            self._text = f"Looking for {line.split()[1]}"
        elif line.startswith("Installing collected packages:"):
            self._packages = line.count(",") + 1
        if line.startswith("ERROR:"):
            self._errors.append(line.removeprefix("ERROR:").strip())
        for pattern, sentence in FAILURES:
            if re.search(pattern, line):
                self._failure = sentence

    def state(self) -> tuple[float, str]:
        """The fraction of the whole build, and what is being done."""
        if self._packages:
            self._count()
            fraction = DOWNLOADED + (INSTALLED - DOWNLOADED) * min(self._installed / self._packages, 1.0)
            return fraction, f"Unpacking package {min(self._installed + 1, self._packages)} of {self._packages}"
        megabytes = self._done_mb + min(self._now_mb, self._now_of_mb)
        fraction = START + (DOWNLOADED - START) * min(megabytes / max(self._expected_mb, megabytes, 1.0), 1.0)
        size = f" ({self._now_mb:.0f} of {self._now_of_mb:.0f} MB)" if self._now_of_mb >= 1 else ""
        return fraction, self._text + (size if self._text.startswith("Downloading") else "")

    def sentence(self) -> str:
        """Why pip failed and what to do, for a person."""
        if self._failure:
            return self._failure
        missing = next((e for e in self._errors if e.startswith("No matching distribution")), None)
        if missing:
            return f"the package index has no fitting {missing.rpartition(' for ')[2]} for this Python and computer."
        return self._errors[-1] + "." if self._errors else "pip ended without saying why."

    def _count(self) -> None:
        """pip is silent while it unpacks: count what has arrived, once a second."""
        now = time.monotonic()
        if now - self._counted_at >= COUNT_INTERVAL_S:
            self._counted_at = now
            pattern = (
                "Lib/site-packages/*.dist-info"
                if (self._folder / "Lib").is_dir()
                else ("lib/python*/site-packages/*.dist-info")
            )
            self._installed = sum(1 for _ in self._folder.glob(pattern))
