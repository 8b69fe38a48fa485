# SPDX-License-Identifier: GPL-3.0-or-later
"""Light, reference, atlas and baking in a real Blender: headless, and with its window for what needs a 3D view."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from . import window
from .harness import PATIENCE
from .test_real_program import BLENDER, _blender, environment, fresh_user, installed  # noqa: F401  (fixtures)

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not BLENDER, reason="no blender found: set $BLENDER"),
]

_HEADLESS = """
import bpy, numpy as np
scene, cube = bpy.context.scene, bpy.data.objects["Cube"]
scene.patina.texture_size = "512"
cube.patina.prompt = "red"
running = session.current()
from bl_ext.user_default.patina.addon import interrupted, reference, variants
interrupted.took = lambda folder: None
def generate(call=bpy.ops.patina.generate):
    assert call() == {"FINISHED"}, running.status
    return running.ended.folder, running.ended.folder.read_request()

# A sky with a sun, as no picture file has it.
world = scene.world
if world.node_tree is None: world.use_nodes = True
nodes, links = world.node_tree.nodes, world.node_tree.links
nodes.clear()
sky, back = nodes.new("ShaderNodeTexSky"), nodes.new("ShaderNodeBackground")
links.new(sky.outputs[0], back.inputs[0])
links.new(back.outputs[0], nodes.new("ShaderNodeOutputWorld").inputs[0])
scene.patina.light.source = "WORLD"
before = len(bpy.data.scenes), len(bpy.data.worlds), scene.render.filepath, scene.render.engine
folder, request = generate()
assert before == (len(bpy.data.scenes), len(bpy.data.worlds), scene.render.filepath, scene.render.engine)
image = bpy.data.images.load(str(folder.lights / "world.exr"))
pixels = np.array(image.pixels).reshape(256, 512, -1)[..., :3]
print("world", pixels[200:].mean(), pixels[:50].mean(), pixels.max())
assert request.panoramas == "lights" and pixels[150:].mean() > 2 * pixels[:100].mean() and np.isfinite(pixels).all()
scene.patina.light.source = "NEUTRAL"

scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 1, False
scene.render.resolution_x, scene.render.resolution_y = 96, 64
files = scene.render.image_settings
if hasattr(files, "media_type"): files.media_type = "MULTI_LAYER_IMAGE"
files.file_format = "OPEN_EXR_MULTILAYER"
files.color_depth = "32"
kept = [getattr(files, n) for n in ("file_format", "color_depth", "color_mode")]
bpy.ops.render.render()
assert bpy.ops.patina.reference_render() == {"FINISHED"}, running.status
assert kept == [getattr(files, n) for n in ("file_format", "color_depth", "color_mode")]
assert tuple(cube.patina.reference.image.size) == (96, 64)
folder, request = generate()
assert request.reference == "reference.png" and abs(request.reference_view["elevation_deg"] - 26.1) < 1
cube.patina.reference.image = None

bpy.ops.mesh.primitive_uv_sphere_add(location=(2.5, 0, 0))
ball = bpy.context.object
cube.select_set(True); bpy.context.view_layer.objects.active = cube
folder, request = generate(bpy.ops.patina.generate_atlas)
assert cube.material_slots[0].material == ball.material_slots[0].material
assert [l.name for l in cube.data.uv_layers] == ["UVMap", "Shared Atlas"]
assert bpy.ops.patina.bake_to_uvs(layer="UVMap") == {"FINISHED"}, running.status
assert variants.current(cube).uv_layer == "UVMap" and len(ball.patina.variants) == 1
print("scenario ended")
"""

_VIEW = """
import numpy as np
from bl_ext.user_default.patina.addon import reference
kept, space = obj.patina.reference, bpy.context.space_data
around, above = reference.angles(kept)
eye = space.region_3d.view_matrix.inverted().translation - obj.location
eye.normalize()
assert abs(above - np.degrees(np.arcsin(eye.z))) < 0.2, (above, eye)
assert abs(around - np.degrees(np.arctan2(eye.x, -eye.y))) < 0.2, (around, eye)
bpy.ops.object.camera_add(location=(4, -4, 3))
bpy.context.scene.camera = bpy.context.object
for item in (obj, bpy.data.objects["Ball"]):
    item.select_set(True)
bpy.context.view_layer.objects.active = obj
bpy.context.scene.render.resolution_x = 500
space.region_3d.view_perspective = "CAMERA"
"""
_PASTED = """
import numpy as np
image = obj.patina.reference.image
assert image is not None and tuple(image.size) == (24, 12) and image.packed_file, image
rows = np.array(image.pixels).reshape(12, 24, -1)[:, :, :3].mean(1)
assert (rows[8:].argmax(1) == 0).all() and (rows[:4].argmax(1) == 2).all(), rows
"""
_KINDS = "kinds[:] = [area.ui_type for area in bpy.context.screen.areas]"
_SAME_KINDS = "assert [area.ui_type for area in bpy.context.screen.areas] == kinds"
_BOTH = """
obj.patina.prompt, obj.patina.reference.image = "red", bpy.data.images.new("picture", 24, 12)
bpy.ops.mesh.primitive_uv_sphere_add(location=(1.5, 0, 0))
bpy.context.object.name = "Ball"
obj.select_set(True)
bpy.context.view_layer.objects.active = obj
from bl_ext.user_default.patina.addon import interrupted
interrupted.took = lambda folder: None  # the job folder stays as it is
"""
_TOGETHER = """
from bl_ext.user_default.patina.addon import session
cube, ball = bpy.data.objects["Cube"], bpy.data.objects["Ball"]
made = cube.material_slots[0].material
assert made == ball.material_slots[0].material and "Shared Atlas" in ball.data.uv_layers
request = session.current().ended.folder.read_request()
assert request.reference == "reference.png" and request.reference_view["distance"] > 1, request
"""


def test_headless_in_the_real_program(installed):  # noqa: F811
    (installed / "scenario.py").write_text((installed / "fake.py").read_text() + _HEADLESS)
    done = _blender(installed, "-b", "--python-exit-code", "3", "--python", "scenario.py", limit=280.0)
    print([line for line in done.stdout.splitlines() if line.startswith("world")])
    assert done.returncode == 0 and "scenario ended" in done.stdout, done.stdout[-3000:] + done.stderr


@pytest.fixture
def opened(installed):  # noqa: F811
    missing = [tool for tool in window.TOOLS if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    fake = (installed / "fake.py").read_text() + "bpy.context.scene.patina.texture_size = '512'\n" + window.OBEY
    with window.opened(BLENDER, "cube", extra=fake, environment=environment(installed)) as one:
        yield one
        assert not one.errors()


def _becomes_true(opened, code, limit=30.0):
    end = time.monotonic() + limit * PATIENCE
    while problem := opened.do(code, 60):
        assert time.monotonic() < end, problem
        time.sleep(0.5)


def test_reference_and_atlas_from_the_buttons(opened):
    shown = ("lighting", "advanced", "reference")
    assert not opened.do(f"only(*{shown}); {_KINDS}", 60)
    opened.press("patina.reference_paste", 0.3)
    said = opened.wait(lambda said: said["level"] == "ERROR", 30)
    assert "clipboard" in said["message"] and "from a file" in said["message"], said
    assert not opened.do(f"assert drawn >= set({shown}), drawn", 60)
    assert not opened.do(_SAME_KINDS, 60)
    opened.key("Escape")  # closes the report, which is where the mouse is
    opened.point(window.NOWHERE)
    assert not opened.do(_BOTH, 60)
    opened.press("patina.reference_view", 0.4)
    _becomes_true(opened, _VIEW)
    opened.press("patina.reference_view", 0.4)
    _becomes_true(opened, "assert abs(obj.patina.reference.aspect - 500 / 1080) < 1e-3, obj.patina.reference.aspect")
    opened.press("patina.generate_atlas")
    said = opened.wait(lambda said: len(said["variants"]) == 1 and not said["busy"], 90 * PATIENCE)
    assert said["message"] == "The maps are done.", said
    assert not opened.do(_TOGETHER, 60)


def test_a_picture_is_pasted_from_the_clipboard(opened, tmp_path):
    """Under X11 by xclip, which the real program must find too; in other places Blender reads it itself."""
    if not shutil.which("xclip") or opened.do("import shutil; assert shutil.which('xclip')", 60):
        pytest.skip("needs xclip, in the place where Blender runs as well")
    assert not opened.do(f"only('reference'); {_KINDS}", 60)
    halves = ["-size", "24x6", "xc:red", "xc:blue", "-append", str(tmp_path / "copied.png")]
    subprocess.run(["convert", *halves], check=True, timeout=60)
    place = opened.find("patina.reference_paste", 0.3)  # which uses the clipboard
    copy = ["xclip", "-quiet", "-selection", "clipboard", "-target", "image/png", "-in", str(tmp_path / "copied.png")]
    owner = subprocess.Popen(copy, env={**os.environ, "DISPLAY": opened.display}, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        opened.click(place)
        _becomes_true(opened, _PASTED + _SAME_KINDS)
        owner.send_signal(signal.SIGSTOP)  # it will not answer
        opened.click(place)
        said = opened.wait(lambda said: said["level"] == "ERROR", 30 * PATIENCE)
        assert "no picture on the clipboard" in said["message"], said
    finally:
        owner.send_signal(signal.SIGCONT)
        owner.terminate()
        owner.wait(10)
