# SPDX-License-Identifier: GPL-3.0-or-later
"""The packed extension in a real Blender ($BLENDER or on PATH), headless: install, the command, background Generate,
and the static repository with an update from it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import fake_backend
from .harness import PATIENCE

REPO = Path(__file__).resolve().parents[2]
BLENDER = os.environ.get("BLENDER") or shutil.which("blender")

pytestmark = [pytest.mark.real, pytest.mark.skipif(not BLENDER, reason="no blender found: set $BLENDER")]

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
    own, limit = {**os.environ, **environment(tmp_path)}, limit * PATIENCE
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


_CLASSIC = """
import sys
import bpy
name, prompt, target = sys.argv[sys.argv.index("--") + 1:]
bpy.context.view_layer.objects.active = bpy.data.objects[name]
bpy.data.objects[name].patina.prompt = prompt
bpy.context.scene.patina.texture_size = "512"
assert bpy.ops.patina.generate() == {"FINISHED"}
bpy.ops.wm.save_as_mainfile(filepath=target)
print("scenario ended")
"""


def test_the_classic_way_with_a_script_of_ones_own(installed):
    (installed / "texture.py").write_text(_CLASSIC)
    save = "import bpy; bpy.data.objects['Cube'].name = 'Würfel'; bpy.ops.wm.save_as_mainfile(filepath='in.blend')"
    assert _blender(installed, "-b", "--python-expr", save).returncode == 0
    before = (installed / "in.blend").read_bytes()
    run = ("-b", "in.blend", "--python-exit-code", "3", "--python", "fake.py", "--python", "texture.py", "--")
    done = _blender(installed, *run, "Würfel", "red", str(installed / "out.blend"))
    assert done.returncode == 0 and "scenario ended" in done.stdout, done.stdout + done.stderr
    assert (installed / "in.blend").read_bytes() == before
    look = _blender(
        installed, "-b", "out.blend", "--python-exit-code", "3", "--python-expr",
        "import bpy; m = bpy.data.objects['Würfel'].material_slots[0].material; assert m['patina_prompt'] == 'red';"
        "i = [n.image for n in m.node_tree.nodes if n.type == 'TEX_IMAGE'];"
        "assert len(i) == 4 and all(x.size[0] == 512 and x.has_data for x in i)",
    )  # fmt: skip
    assert look.returncode == 0, look.stdout + look.stderr
    done = _blender(installed, *run, "Würfel", "failed", str(installed / "never.blend"))
    assert done.returncode == 3 and "Choose a smaller texture size" in done.stdout + done.stderr, done.stdout
    assert not (installed / "never.blend").exists()


def _interrupted(folder: Path, number: int, sign: str, *arguments: str) -> tuple[int, str]:
    """Start Blender, send it a signal as soon as it has said `sign`; its exit code and all it said."""
    log = folder / "said.txt"
    with open(log, "wb") as said:
        process = subprocess.Popen(
            [BLENDER, *arguments], env={**os.environ, **environment(folder)}, cwd=folder, stdout=said, stderr=said
        )
    end = time.monotonic() + 60 * PATIENCE
    try:
        while sign not in log.read_text("utf-8", "replace"):
            assert process.poll() is None and time.monotonic() < end, log.read_text("utf-8", "replace")
            time.sleep(0.05)
        process.send_signal(number)
        return process.wait(30 * PATIENCE), log.read_text("utf-8", "replace")
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_batch_a_run_and_a_script(installed, number):
    (installed / "list.toml").write_text(
        '[[job]]\nobjects = "Cube"\nprompt = "endless"\ntexture_size = 512\nout = "made"\n'
    )
    start = ("-b", "--python-exit-code", "3", "--python", "fake.py")
    code, said = _interrupted(installed, number, "started", *start, "-c", "patina", "batch", "list.toml")
    assert code == 128 + number and "Patina: Interrupted. To go on: patina batch list.toml" in said, said
    assert not (installed / "made").exists() and "Traceback" not in said
    run = ("-c", "patina", "run", "--prompt", "endless", "--save-as", "never.blend")
    code, said = _interrupted(installed, number, "Texturing", *start, *run)
    assert code == 128 + number and "Patina: Cancelled" in said and "Traceback" not in said, said
    (installed / "texture.py").write_text(_CLASSIC)
    script = ("--python", "texture.py", "--", "Cube", "endless", str(installed / "never.blend"))
    code, said = _interrupted(installed, number, "Texturing", *start, *script)
    assert code == 3 and "Error: Cancelled" in said and "scenario ended" not in said, said
    assert not (installed / "never.blend").exists()


def _put_into_repository(tree: Path, repository: Path) -> None:
    command = [sys.executable, "build.py", "package", "--repository", str(repository)]
    packed = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=240)
    assert packed.returncode == 0, packed.stdout + packed.stderr


def test_a_static_repository_updates_what_came_from_it(tmp_path):
    repository, older = tmp_path / "on the server", tmp_path / "older"
    (tmp_path / "user").mkdir()
    older.mkdir()
    for name in ("build.py", "LICENSE", "README.md"):
        shutil.copy(REPO / name, older / name)
    for name in ("addon", "backend"):
        (older / name).symlink_to(REPO / name)
    manifest = (REPO / "blender_manifest.toml").read_text("utf-8")
    version = re.search(r'(?m)^version = "(.+)"$', manifest)[1]
    (older / "blender_manifest.toml").write_text(
        manifest.replace(f'version = "{version}"', 'version = "0.0.1"'), "utf-8"
    )
    _put_into_repository(older, repository)
    address = (repository / "index.json").as_uri()

    def extension(*words: str) -> str:
        done = _blender(tmp_path, "--online-mode", "--command", "extension", *words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def look(expression: str) -> None:
        done = _blender(tmp_path, "-b", "--python-exit-code", "3", "--python-expr", expression)
        assert done.returncode == 0, done.stdout + done.stderr

    extension("repo-add", "--name", "Patina", "--url", address, "patina_server")
    extension("sync")
    extension("install", "--enable", "patina_server.patina")
    name = "bl_ext.patina_server.patina"
    look(
        f"import bpy; from {name}.addon import protocol; from pathlib import Path;"
        "manifest = Path(protocol.__file__).parents[1] / 'blender_manifest.toml';"
        "assert 'version = \"0.0.1\"' in manifest.read_text();"
        f"bpy.context.preferences.addons['{name}'].preferences.wheels = '/my/wheels';"
        f"kept = Path(bpy.utils.extension_path_user('{name}', create=True), 'kept'); kept.write_text('mine');"
        "bpy.ops.wm.save_userpref()"
    )
    _put_into_repository(REPO, repository)
    assert len(list(repository.glob("patina-*.zip"))) == 2
    extension("sync")
    extension("update")
    look(
        f"import bpy; from {name}.addon import protocol; from pathlib import Path;"
        "manifest = Path(protocol.__file__).parents[1] / 'blender_manifest.toml';"
        f"assert 'version = \"{version}\"' in manifest.read_text(), manifest.read_text();"
        f"assert bpy.context.preferences.addons['{name}'].preferences.wheels == '/my/wheels';"
        f"assert Path(bpy.utils.extension_path_user('{name}'), 'kept').read_text() == 'mine'"
    )
    fake_backend.install(tmp_path / "root")
    fake = _FAKE.replace("bl_ext.user_default.patina", name)
    (tmp_path / "fake.py").write_text(fake.format(root=str(tmp_path / "root")))
    done = _blender(tmp_path, "-b", "--python", "fake.py", "-c", "patina", "run", "--prompt", "red", "--out", "maps")
    assert done.returncode == 0 and (tmp_path / "maps" / "normal.png").is_file(), done.stdout + done.stderr
