# SPDX-License-Identifier: GPL-3.0-or-later
"""Light, reference, atlas and baking in a real Blender: headless, and with its window for what needs a 3D view."""

import os
import shutil
import subprocess
import sys

import pytest

from .test_real_program import BLENDER, _blender, fresh_user, installed  # noqa: F401  (fixtures)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BLENDER, reason="no blender found: set $BLENDER")]

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

_WINDOW = """
import bpy, os, sys, traceback
import numpy as np
from bl_ext.user_default.patina.addon import panels, reference, reference_operators, export_operators
bpy.context.preferences.view.show_splash = False
drawn = set()
def redraw_open(module, name):
    "Sub-panels that are closed at first, open, so that they are drawn."
    cls = getattr(module, name)
    bpy.utils.unregister_class(cls)
    cls.bl_options, own = set(), cls.draw
    def draw(self, context):
        own(self, context)
        drawn.add(name)
    cls.draw = draw
    bpy.utils.register_class(cls)
for module, name in ((panels, "PATINA_PT_lighting"), (panels, "PATINA_PT_advanced"),
                     (reference_operators, "PATINA_PT_reference")):
    redraw_open(module, name)
def work():
    try:
        window = bpy.context.window_manager.windows[0]
        area = next(area for area in window.screen.areas if area.type == "VIEW_3D")
        region = next(region for region in area.regions if region.type == "WINDOW")
        space, cube = area.spaces.active, bpy.data.objects["Cube"]
        space.show_region_ui = True
        with bpy.context.temp_override(window=window, area=area, region=region, object=cube, active_object=cube):
            assert bpy.ops.patina.reference_view.poll()
            assert bpy.ops.patina.reference_view() == {"FINISHED"}
            around, above = reference.angles(cube.patina.reference)
            eye = space.region_3d.view_matrix.inverted().translation - cube.location
            eye.normalize()
            assert abs(above - np.degrees(np.arcsin(eye.z))) < 0.2, (above, eye)
            assert abs(around - np.degrees(np.arctan2(eye.x, -eye.y))) < 0.2, (around, eye)
            bpy.context.scene.render.resolution_x = 500
            space.region_3d.view_perspective = "CAMERA"
            assert bpy.ops.patina.reference_view() == {"FINISHED"}
            assert abs(cube.patina.reference.aspect - 500 / 1080) < 1e-3
            kinds = [a.ui_type for a in window.screen.areas]
            made = bpy.data.images.new("copied", 24, 12)
            made.pixels.foreach_set(np.tile(np.float32([1, 0.5, 0, 1]), 24 * 12))
            with reference_operators._image_editor(bpy.context):
                bpy.context.space_data.image = made
                print("copy", bpy.ops.image.clipboard_copy.poll())
                copied = bpy.ops.image.clipboard_copy.poll() and bpy.ops.image.clipboard_copy() == {"FINISHED"}
            try:
                result = bpy.ops.patina.reference_paste()
                assert tuple(cube.patina.reference.image.size) == (24, 12), tuple(cube.patina.reference.image.size)
                print("pasted", result)
            except RuntimeError as error:
                assert "Copy a picture first" in str(error), error
                print("not pasted:", str(error).strip().splitlines()[-1])
            assert [a.ui_type for a in window.screen.areas] == kinds
            cube.patina.reference.image = made
        bpy.app.timers.register(done, first_interval=6.0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(3)
def to_the_front():
    "A sidebar that was not drawn yet has no tabs to choose from; before 5 none can be chosen."
    area = next(area for area in bpy.context.window_manager.windows[0].screen.areas if area.type == "VIEW_3D")
    side = next(region for region in area.regions if region.type == "UI")
    if bpy.app.version >= (5, 0) and side.active_panel_category != "Patina":
        try: side.active_panel_category = "Patina"
        except TypeError: pass
    area.tag_redraw()
    return 0.5
bpy.app.timers.register(to_the_front, first_interval=4.0)
def done():
    print("drawn", sorted(drawn), flush=True)
    print("scenario ended", flush=True)
    bpy.ops.wm.quit_blender()
bpy.app.timers.register(work, first_interval=3.0)
"""


def test_headless_in_the_real_program(installed):  # noqa: F811
    (installed / "scenario.py").write_text((installed / "fake.py").read_text() + _HEADLESS)
    done = _blender(installed, "-b", "--python-exit-code", "3", "--python", "scenario.py", limit=280.0)
    print([line for line in done.stdout.splitlines() if line.startswith("world")])
    assert done.returncode == 0 and "scenario ended" in done.stdout, done.stdout[-3000:] + done.stderr


@pytest.mark.skipif(not shutil.which("xvfb-run"), reason="needs xvfb-run")
def test_a_3d_view_and_the_clipboard_in_the_window(installed):  # noqa: F811
    (installed / "scenario.py").write_text((installed / "fake.py").read_text() + _WINDOW)
    environment = {
        **os.environ,
        "BLENDER_USER_RESOURCES": str(installed / "user"),
        "PATINA_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    screen = ["xvfb-run", "-a", "-s", "-screen 0 1600x1200x24", BLENDER, "--window-geometry", "0", "0", "1600", "1200"]
    done = subprocess.run(
        [*screen, "--python", "scenario.py"],
        env=environment,
        cwd=installed,
        capture_output=True,
        text=True,
        timeout=240,
    )
    print([line for line in done.stdout.splitlines() if "pasted" in line or "copy" in line])
    assert "scenario ended" in done.stdout, done.stdout[-3000:] + done.stderr[-6000:]
    assert "Traceback" not in done.stderr, done.stderr[-6000:]
    for panel in ("PATINA_PT_lighting", "PATINA_PT_advanced", "PATINA_PT_reference"):
        assert panel in done.stdout, "not drawn"
