# SPDX-License-Identifier: GPL-3.0-or-later
"""An artist's day with the installed extension in a real Blender: by mouse with the real backend; a batch at night."""

import json
import os
import shutil
import signal
import struct
import time

import numpy as np
import pytest

from . import window
from .harness import PATIENCE
from .test_real_program import BLENDER, _blender, environment, fresh_user, installed  # noqa: F401  (fixtures)

Image = pytest.importorskip("PIL.Image")

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not BLENDER, reason="no blender found: set $BLENDER"),
]

_SETTINGS = """
bpy.context.scene.patina.texture_size, bpy.context.scene.patina.views = "512", 2
def steps(count):
    bpy.context.scene.patina.steps = count
def keep_texels(obj, file):
    import numpy as np
    from bl_ext.user_default.patina.addon import images, variants
    found = images.find(variants.current(obj).run)
    np.savez(file, **{name: np.rint(images.texels(image) * 255).astype(int) for name, image in found.items()})
"""
_ONE_FACE = """
keep_texels(obj, "{folder}/before.npz")
for face in obj.data.polygons:
    face.select = face.index == 3
within = obj.patina.limits
within.region, within.strength, within.lock_roughness = "FACES", 1.0, True
obj.patina.prompt = "blue plastic"
steps(200)
only("refine")
corners = [tuple(obj.data.uv_layers[0].uv[loop].vector) for loop in obj.data.polygons[3].loop_indices]
open("{folder}/corners.json", "w").write(json.dumps(corners))
bpy.ops.wm.save_as_mainfile(filepath="{folder}/day.blend")
"""
_TWO_SLOTS = """
keep_texels(obj, "{folder}/after.npz")
obj.data.materials.append(bpy.data.materials.new("Eyes"))
obj.data.polygons[0].material_index = 1
obj.patina.prompt, obj.patina.cover, obj.patina.limits.region = "red plastic", "EACH", "ALL"
obj.active_material_index = 0
steps(8)
only()
"""
_EXPORT = """
made = [slot.material["patina_run"] for slot in obj.material_slots]
assert len(set(made)) == 2, made
obj.active_material_index = 0
keep_texels(obj, "{folder}/slot.npz")
bpy.context.scene.patina_export.template = "GLTF"
bpy.context.scene.patina_export.folder = "{folder}/out"
only("export")
"""


def _do(opened, code):
    problem = opened.do(code, 60 * PATIENCE)
    assert not problem, problem


def _made(opened, count):
    said = opened.wait(lambda said: len(said["variants"]) == count and not said["busy"], 240 * PATIENCE)
    assert said["level"] != "ERROR" and said["message"] == "The maps are done.", said


def _file(path, limit=30.0):
    end = time.monotonic() + limit * PATIENCE
    while not path.is_file() or not path.stat().st_size:
        assert time.monotonic() < end, f"{path} is not written"
        time.sleep(0.2)
    return path


def _only_one_face_changed(folder):
    before, after = np.load(folder / "before.npz"), np.load(folder / "after.npz")
    corners = np.array(json.loads((folder / "corners.json").read_text()))
    low, high = corners.min(0) * 512, corners.max(0) * 512
    rows, columns = np.mgrid[0:512, 0:512]
    height = 511 - rows
    near = (columns >= low[0] - 6) & (columns < high[0] + 6) & (height >= low[1] - 6) & (height < high[1] + 6)
    assert (after["roughness"] == before["roughness"]).all(), "it is locked"
    for name in ("base_color", "metallic", "normal"):
        changed = (after[name] != before[name]).any(-1)
        assert not changed[~near].any(), f"{name}: {changed[~near].sum()} texels outside of the face changed"
    inside = (columns > low[0] + 8) & (columns < high[0] - 8) & (height > low[1] + 8) & (height < high[1] - 8)
    changed = (after["base_color"] != before["base_color"]).any(-1)
    assert changed[inside].mean() > 0.9
    blue = after["base_color"][inside][:, 2].mean() - before["base_color"][inside][:, 2].mean()
    print(f"outside 0 of {(~near).sum()} texels changed, inside {changed[inside].mean():.1%}; blue {blue:+.0f}")
    assert blue > 20


def _exported(folder):
    maps = np.load(folder / "slot.npz")
    files = {path.stem.rpartition("_")[2]: np.array(Image.open(path)) for path in (folder / "out").glob("*.png")}
    packed = files["occlusionRoughnessMetallic"]
    for channel, name in ((1, "roughness"), (2, "metallic")):
        assert np.abs(packed[..., channel].astype(int) - maps[name][..., 0]).max() <= 1, name
    assert np.abs(files["baseColor"][..., :3].astype(int) - maps["base_color"][..., :3]).max() <= 1
    content = next((folder / "out").glob("*.glb")).read_bytes()
    magic, _, length = struct.unpack("<4sII", content[:12])
    told = json.loads(content[20 : 20 + struct.unpack("<I", content[12:16])[0]])
    assert magic == b"glTF" and length == len(content)
    assert len(told["materials"]) == 2 and all("normalTexture" in made for made in told["materials"])


@pytest.mark.skipif(not all(shutil.which(tool) for tool in window.TOOLS), reason="needs Xvfb, xdotool, ImageMagick")
def test_a_day_with_the_real_backend_by_mouse(installed):  # noqa: F811
    extra, blend = window.OBEY + _SETTINGS, installed / "day.blend"
    pid = "from bl_ext.user_default.patina.addon import session\n"
    pid += f"open({str(installed / 'pid')!r}, 'w').write(str(session.current()._worker.pid))"
    with window.opened(BLENDER, "cube", extra=extra, environment=environment(installed)) as opened:
        _do(opened, "only(); steps(24)")
        opened.press("patina.prompt")
        opened.type("polished gold")
        opened.wait(lambda said: said["prompt"] == "polished gold", 30 * PATIENCE)
        opened.press("patina.generate")
        _made(opened, 1)
        _do(opened, _ONE_FACE.format(folder=installed))
        opened.press("patina.refine")
        opened.wait(lambda said: said["busy"] and said["step"] >= 4, 240 * PATIENCE)
        opened.press("patina.pause", 0.54)
        said = opened.wait(lambda said: not said["busy"], 60 * PATIENCE)
        assert "Paused." in said["message"], said
        _do(opened, "only()")
        opened.press("patina.resume", 0.3)
        opened.wait(lambda said: said["busy"] and said["step"] > 4, 240 * PATIENCE)
        _do(opened, pid)
        for process in (opened.process.pid, int((installed / "pid").read_text())):
            os.kill(process, signal.SIGKILL)
        opened.process.wait(20)
    with window.opened(BLENDER, "cube", extra=extra, environment=environment(installed), file=blend) as opened:
        _do(opened, "only()")
        opened.press("patina.resume", 0.3)
        _made(opened, 2)
        _do(opened, _TWO_SLOTS.format(folder=installed))
        _only_one_face_changed(installed)
        opened.press("patina.generate")
        _made(opened, 4)
        _do(opened, _EXPORT.format(folder=installed))
        opened.press("patina.export_maps")
        _file(installed / "out" / "Cube_normal.png")
        opened.press("patina.export_glb", 0.3)
        _file(installed / "out" / "Cube.glb")
        assert not opened.errors()
    _exported(installed)


_LIST = """
[defaults]
texture_size = 512
out = "made/{object}"
[[job]]
objects = "Chair.[0-7]"
prompt = "red"
[[job]]
objects = ["Chair.8", "Chair.9"]
prompt = "failed"
"""


def test_ten_at_night_of_which_two_fail(installed):  # noqa: F811
    chairs = (
        "import bpy\nfor number in range(10):\n    bpy.ops.mesh.primitive_cube_add(size=1 + number / 10)\n"
        "    bpy.context.object.name = f'Chair.{number}'\nbpy.ops.wm.save_as_mainfile(filepath='in.blend')"
    )
    done = _blender(installed, "-b", "--python-exit-code", "3", "--python-expr", chairs)
    assert done.returncode == 0, done.stdout + done.stderr
    (installed / "list.toml").write_text(_LIST)
    batch = ("-b", "in.blend", "--python", "fake.py", "-c", "patina", "batch", "list.toml")
    limit = 180 * PATIENCE
    done = _blender(installed, *batch, "--retries", "0", "--save-as", "out.blend", limit=limit)
    assert done.returncode == 1, done.stdout + done.stderr
    told = json.loads((installed / "list.batch" / "report.json").read_text())
    assert told["counts"] == {"done": 8, "skipped": 0, "failed": 2, "running": 0, "waiting": 0}, told["counts"]
    failed = [row for row in told["items"] if row["state"] == "failed"]
    assert {row["object_name"] for row in failed} == {"Chair.8", "Chair.9"}
    assert all("Choose a smaller texture size" in row["message"] for row in failed)
    assert sorted(path.name for path in (installed / "made").iterdir()) == [f"Chair.{number}" for number in range(8)]
    look = (
        "import bpy; made = [bpy.data.objects[f'Chair.{n}'].material_slots for n in range(10)];"
        "assert [bool(s) and 'patina_run' in s[0].material for s in made] == [True] * 8 + [False] * 2, made"
    )
    done = _blender(installed, "-b", "out.blend", "--python-exit-code", "3", "--python-expr", look)
    assert done.returncode == 0, done.stdout + done.stderr

    (installed / "list.toml").write_text(_LIST.replace('"failed"', '"red"'))  # in the morning they are put right
    done = _blender(installed, *batch, limit=limit)
    told = json.loads((installed / "list.batch" / "report.json").read_text())
    assert done.returncode == 0 and told["counts"]["done"] == 2 and told["counts"]["skipped"] == 8, told["counts"]
    assert len(list((installed / "made").glob("Chair.*/normal.png"))) == 10
