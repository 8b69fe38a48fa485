# SPDX-License-Identifier: GPL-3.0-or-later
"""Install Backend for real from a folder of wheels, no index in reach, into a path with spaces and other scripts.

In the real Blender ($BLENDER) when there is one, else in bpy. About 290 MB of wheels come from `pip download`, or from
the folder that $PATINA_WHEELS names; some 1.4 GB of disk are needed and given back.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("bpy")

from .test_real_program import BLENDER, REPO  # noqa: E402

pytestmark = [pytest.mark.real, pytest.mark.slow]

_SCENARIO = """
import faulthandler; faulthandler.dump_traceback_later(1150, exit=True)
import os, sys, time
from pathlib import Path
import bpy
import addon_utils  # bpy, the module, brings its folder
name = "bl_ext.user_default.patina"
assert addon_utils.enable(name, default_set=True) is not None
stored = bpy.context.preferences.addons[name].preferences
stored.python, stored.wheels, stored.data_folder = PYTHON, WHEELS, DATA
from bl_ext.user_default.patina.addon import environment, session
running = session.current()
running.look_around()
assert not running.ready and not bpy.ops.patina.doctor.poll()
stored.wheels = ""
assert bpy.app.online_access or not bpy.ops.patina.install_backend.poll()
stored.wheels = WHEELS
began = time.monotonic()
assert bpy.ops.patina.install_backend() == {"FINISHED"}
took = time.monotonic() - began
assert running.ready and not bpy.ops.patina.install_backend.poll()
assert Path(environment.environment_python(Path(DATA) / "backend-env")).is_relative_to(DATA)
size = sum(p.lstat().st_size for p in Path(DATA).rglob("*") if p.is_file() and not p.is_symlink())
began = time.monotonic()
assert bpy.ops.patina.doctor() == {"FINISHED"}
lines = running.task.lines
assert len(lines) > 10 and all(line.startswith("ok") for line in lines), lines
print("\\n".join(lines))
print(f"INSTALLED in {took:.0f} s, {size / 1e6:.0f} MB, doctor {time.monotonic() - began:.0f} s", flush=True)
bpy.context.scene.patina.texture_size = "512"
bpy.context.scene.patina.steps = 8
cube = bpy.data.objects["Cube"]
cube.patina.prompt = "rusty iron"
bpy.context.view_layer.objects.active = cube
began = time.monotonic()
assert bpy.ops.patina.generate() == {"FINISHED"}, running.status
images = [image for image in bpy.data.images if "patina_run" in image]
assert len(images) == 4 and all(image.size[0] == 512 for image in images)
print(f"TEXTURED in {time.monotonic() - began:.0f} s", flush=True)
began = time.monotonic()
assert bpy.ops.patina.remove_backend() == {"FINISHED"}
assert not list(Path(DATA).glob("backend-env*/")) and not running.ready
print(f"REMOVED in {time.monotonic() - began:.0f} s", flush=True)
addon_utils.disable(name)
print("scenario ended", flush=True)
"""


def _wheels(folder: Path) -> None:
    """All wheels that the backend needs on this computer, in `folder`."""
    ready = os.environ.get("PATINA_WHEELS")
    if ready:
        folder.symlink_to(Path(ready).resolve())
        return
    backend = REPO / "backend"
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "-d", str(folder)]
    command += ["-r", str(backend / "requirements.txt"), "-c", str(backend / "constraints.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, f"pip download: {done.stderr[-2000:]}"


def _command(script: Path) -> list[str]:
    if BLENDER:
        return [
            BLENDER,
            "-b",
            "--offline-mode",
            "--factory-startup",
            "--python-exit-code",
            "3",
            "--python",
            str(script),
        ]
    return [sys.executable, "-u", str(script)]


def test_from_wheels_into_a_folder_with_spaces_and_other_letters(tmp_path):
    home = tmp_path / "Mein Rechner äöü 机器"
    home.mkdir()
    packed = subprocess.run([sys.executable, "build.py", "package"], cwd=REPO, capture_output=True, text=True)
    assert packed.returncode == 0, packed.stderr
    newest = max((REPO / "dist").glob("patina-*.zip"), key=lambda file: file.stat().st_mtime)
    with zipfile.ZipFile(newest) as archive:
        archive.extractall(home / "user" / "extensions" / "user_default" / "patina")
    wheels, data = home / "Räder 轮子", home / "Daten für Patina"
    _wheels(wheels)
    values = {"PYTHON": sys._base_executable, "WHEELS": str(wheels), "DATA": str(data)}
    script = tmp_path / "scenario.py"
    script.write_text("".join(f"{k} = {v!r}\n" for k, v in values.items()) + _SCENARIO, "utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PATINA_"))}
    environment |= {
        "BLENDER_USER_RESOURCES": str(home / "user"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/nothing",  # whoever asks it fails
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            _command(script), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0 and "scenario ended" in done.stdout, done.stdout + done.stderr[-4000:]
        told = ("INSTALLED", "TEXTURED", "REMOVED")
        print(*(line for line in done.stdout.splitlines() if line.startswith(told)), sep="\n")
    finally:
        shutil.rmtree(home, ignore_errors=True)
