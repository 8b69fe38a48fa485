# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a scenario of this folder in a process of its own with bpy, the add-on and the fake backend."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PATIENCE = float(os.environ.get("PATINA_PATIENCE", 1))  # on a busy computer: how many times longer all may take

_PRELUDE = """
import faulthandler; faulthandler.dump_traceback_later({limit} - 5, exit=True)
import sys, time
from pathlib import Path
sys.path[:0] = [{repo!r}, {here!r}]
tmp = Path({tmp!r})
import bpy, addon, fake_backend
import numpy as np
addon.register()
from addon import generate, images, material, mesh_io, placing, protocol, session, settings, status, unwrap, uv_check
running = session.current()
running.package_root = fake_backend.install(tmp / "root")
cube = bpy.data.objects["Cube"]
bpy.context.scene.patina.texture_size = "512"

def tick_until(condition, limit=15.0):
    end = time.monotonic() + limit * {patience}
    while not condition():
        assert time.monotonic() < end, f"not within {{limit}} s: {{running.status}}"
        running.tick()
        time.sleep(0.02)

def start(obj, prompt):
    obj.patina.prompt = prompt
    generate.begin(bpy.context, obj, running)

def generate_fails(obj, prompt):
    obj.patina.prompt = prompt
    bpy.context.view_layer.objects.active = obj
    try:
        bpy.ops.patina.generate()
    except RuntimeError as error:
        return str(error)
    raise AssertionError("Generate did not fail")
"""


def run_scenario(tmp_path: Path, body: str, limit: float = 60.0) -> str:
    """Run Python code after the prelude above; returns what it printed. Fails with its output if it fails."""
    script = tmp_path / "scenario.py"
    limit *= PATIENCE
    places = {"repo": str(REPO), "here": str(Path(__file__).parent), "tmp": str(tmp_path)}
    prelude = _PRELUDE.format(limit=limit, patience=PATIENCE, **places)
    script.write_text(prelude + textwrap.dedent(body) + "\naddon.unregister()\nprint('scenario ended')\n")
    environment = {
        **os.environ,
        "BLENDER_USER_RESOURCES": str(tmp_path / "user"),
        "PATINA_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-u", str(script)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert done.returncode == 0 and "scenario ended" in done.stdout, f"{done.stdout}\n{done.stderr[-6000:]}"
    return done.stdout
