# SPDX-License-Identifier: GPL-3.0-or-later
"""What the optimiser's shading sees is what Cycles renders: the short tables of `evaluate parity`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("bpy")
pytest.importorskip("OpenEXR")

from backend.evaluate import parity  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
LIMITS = {  # of the worst picture; noise of the few samples included
    "suns, hard": 0.008,
    "second-order world, hard": 0.025,
    "HDR worlds, hard": 0.05,
    "end to end": 0.02,
    "end to end, HDR worlds": 0.05,
    "occluded": 0.08,
}


def measured(folder: Path, table: str, samples: int) -> dict:
    command = [sys.executable, str(REPO / "tests" / "blender" / "parity_renders.py"), str(folder)]
    command += ["--table", table, "--size", "48", "--samples", str(samples)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BLENDER_USER_RESOURCES": str(folder / "user")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    facts = json.loads((folder / "facts.json").read_text())
    rows = parity.compare(folder, facts)
    assert len(rows) == len(facts["renders"])
    assert parity.compare(folder, facts, rows, lambda rows: pytest.fail("a row was computed again")) == rows
    return parity.summary(facts, rows)


def test_nine_materials_agree_under_a_sun_and_a_world(tmp_path):
    result = measured(tmp_path, "fingerprint", 128)
    errors = {row["file"]: row["error"] for row in result["rows"]}
    assert len(errors) == 9 and max(errors.values()) < 0.01, errors


def test_textures_sharp_edges_panoramas_and_shadows_agree(tmp_path):
    result = measured(tmp_path, "test", 128)
    found = {name: group["worst"] for name, group in result["groups"].items()}
    print(found)
    assert found.keys() == LIMITS.keys()
    assert all(found[name] < limit for name, limit in LIMITS.items()), found


def test_a_wrong_picture_is_seen(tmp_path):
    """The figure itself: a tenth too bright is a tenth, and a shift of one pixel does not hide."""
    import numpy as np

    rng = np.random.default_rng(0)
    reference = rng.uniform(0.5, 1.0, (16, 16, 3))
    inside = np.ones((16, 16), bool)
    assert parity.figures(reference, reference, inside)["error"] == 0
    assert abs(parity.figures(1.1 * reference, reference, inside)["error"] - 0.1) < 0.003
    assert parity.figures(np.roll(reference, 1, 0), reference, inside)["error"] > 0.1
