# SPDX-License-Identifier: GPL-3.0-or-later
"""The packed extension in a real Blender ($BLENDER or on PATH), headless: install, the command, background Generate."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import fake_backend

REPO = Path(__file__).resolve().parents[2]
BLENDER = os.environ.get("BLENDER") or shutil.which("blender")

pytestmark = pytest.mark.skipif(not BLENDER, reason="no blender found: set $BLENDER")

_FAKE = """
from pathlib import Path
from bl_ext.user_default.patina.addon import session
session.current().package_root = Path({root!r})
"""


def environment(folder: Path) -> dict[str, str]:
    """For a Blender whose user's files are in `folder`."""
    return {
        "BLENDER_USER_RESOURCES": str(folder / "user"),
        "PATINA_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "PWD": str(folder),
    }


def _blender(tmp_path: Path, *arguments: str, limit: float = 120.0) -> subprocess.CompletedProcess:
    own = {**os.environ, **environment(tmp_path)}
    return subprocess.run([BLENDER, *arguments], env=own, cwd=tmp_path, capture_output=True, text=True, timeout=limit)


@pytest.fixture(scope="session")
def fresh_user(tmp_path_factory):
    """The folder of a fresh user's Blender that has the extension."""
    tmp_path = tmp_path_factory.mktemp("fresh")
    (tmp_path / "user").mkdir()
    command = [sys.executable, "build.py", "package"]
    packed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert packed.returncode == 0, packed.stdout + packed.stderr
    newest = max((REPO / "dist").glob("patina-*.zip"), key=lambda file: file.stat().st_mtime)
    zip_file = tmp_path / newest.name
    shutil.copy(newest, zip_file)
    done = _blender(tmp_path, "--command", "extension", "validate", str(zip_file))
    assert done.returncode == 0, done.stdout + done.stderr
    done = _blender(tmp_path, "--command", "extension", "install-file", "-r", "user_default", "-e", str(zip_file))
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "user"


@pytest.fixture
def installed(tmp_path, fresh_user):
    """The folder with a fresh user's Blender that has the extension, and a fake backend in `root`."""
    shutil.copytree(fresh_user, tmp_path / "user")
    fake_backend.install(tmp_path / "root")
    (tmp_path / "fake.py").write_text(_FAKE.format(root=str(tmp_path / "root")))
    return tmp_path


def test_the_command_textures_an_object_and_writes_only_what_it_is_told(installed):
    made = _blender(
        installed, "-b", "--python-exit-code", "3", "--python-expr",
        "import bpy; bpy.context.scene.patina.texture_size = '512';"
        "bpy.ops.wm.save_as_mainfile(filepath='in.blend')",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    before = (installed / "in.blend").read_bytes()
    run = ("-b", "in.blend", "--python", "fake.py", "-c", "patina", "run")
    done = _blender(installed, *run, "--object", "Cube", "--prompt", "red", "--out", "maps")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p.name for p in (installed / "maps").iterdir()} >= {
        "base_color.png", "metallic.png", "roughness.png", "normal.png", "report.json"
    }  # fmt: skip
    assert (installed / "in.blend").read_bytes() == before and not (installed / "patina").exists()
    done = _blender(installed, *run, "--prompt", "red", "--save-as", "out.blend")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (installed / "patina" / "Cube" / "0001" / "normal.png").is_file()
    look = _blender(
        installed, "-b", "out.blend", "--python-exit-code", "3", "--python-expr",
        "import bpy; m = bpy.data.objects['Cube'].material_slots[0].material; assert m['patina_prompt'] == 'red';"
        "i = [n.image for n in m.node_tree.nodes if n.type == 'TEX_IMAGE'];"
        "assert len(i) == 4 and all(x.filepath.startswith('//patina/') and x.size[0] == 512 for x in i)",
    )  # fmt: skip
    assert look.returncode == 0, look.stdout + look.stderr
    for arguments, sentence in (
        (("--prompt", "red"), "Nothing would be kept"),
        (("--object", "Nobody", "--prompt", "red", "--out", "x"), "no mesh object"),
        (("--prompt", "failed", "--out", "x"), "Choose a smaller texture size"),
        (("--prompt", " ", "--out", "x"), "Type a prompt"),
    ):
        done = _blender(installed, *run, *arguments)
        assert done.returncode != 0 and sentence in done.stderr, (arguments, done.stdout, done.stderr)


def test_generate_in_background_and_an_undo_of_it(installed):
    script = installed / "scenario.py"
    script.write_text(
        (installed / "fake.py").read_text()
        + """
import bpy
cube = bpy.data.objects["Cube"]
old = cube.material_slots[0].material.name
cube.patina.prompt = "red"
bpy.context.scene.patina.texture_size = "512"
bpy.ops.ed.undo_push(message="before")
assert bpy.ops.patina.generate() == {"FINISHED"}
bpy.ops.ed.undo_push(message="Generate")
assert "patina_run" in bpy.data.objects["Cube"].material_slots[0].material
bpy.ops.ed.undo()
cube = bpy.data.objects["Cube"]
assert cube.material_slots[0].material.name == old and not len(cube.patina.kept_slots)
assert not [image for image in bpy.data.images if "patina_run" in image]
bpy.ops.ed.redo()
images = [image for image in bpy.data.images if "patina_run" in image]
assert len(images) == 4 and all(image.size[0] == 512 for image in images)
print("scenario ended")
"""
    )
    done = _blender(installed, "-b", "--python-exit-code", "3", "--python", "scenario.py")
    assert done.returncode == 0 and "scenario ended" in done.stdout, done.stdout + done.stderr
