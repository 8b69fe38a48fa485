# SPDX-License-Identifier: GPL-3.0-or-later
"""The light of a run and its reference picture, from the panel's settings into the job folder; all else untouched."""

import numpy as np
import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402

_WATCHED = """
import untouched
def job_of(call=bpy.ops.patina.generate):
    before = untouched.fingerprint()
    assert call() == {"FINISHED"}, running.status
    assert untouched.difference(before, untouched.fingerprint()) == ["object Cube"] or not untouched.difference(
        before, untouched.fingerprint()), untouched.difference(before, untouched.fingerprint())
    folder = running.ended.folder
    return folder, folder.read_request()
def refused(sentence, call=bpy.ops.patina.generate):
    before = untouched.fingerprint()
    try:
        call(); raise AssertionError("not refused: " + sentence)
    except RuntimeError as error:
        assert sentence in str(error), error
    assert untouched.difference(before, untouched.fingerprint()) == []
cube.patina.prompt = "red"
from addon import interrupted, reference, world_light
interrupted.took = lambda folder: None  # the job folder stays to be looked at
"""


def test_the_scenes_world_and_folders_of_panoramas_become_light(tmp_path):
    run_scenario(
        tmp_path,
        _WATCHED
        + """
light = bpy.context.scene.patina.light
assert light.source == "NEUTRAL" and job_of()[1].panoramas == ""

# A world that lights with a picture and shows the camera something else.
picture = np.full((64, 128, 4), 0.1, np.float32)
picture[30:34, 62:66, :3] = 5, 0, 0  # the middle of a panorama is +X
picture[30:34, 30:34, :3] = 0, 5, 0  # a quarter to the left +Y
picture[60:64, :, :3] = 0, 0, 5  # the top +Z
image = bpy.data.images.new("env", 128, 64, float_buffer=True)
image.pixels.foreach_set(picture.ravel()); image.pack()
world = bpy.context.scene.world
world.use_nodes = True
nodes, links = world.node_tree.nodes, world.node_tree.links
nodes.clear()
shown, lit, mixed = (nodes.new("ShaderNode" + kind) for kind in ("Background", "Background", "MixShader"))
env, turn, where = (nodes.new("ShaderNode" + kind) for kind in ("TexEnvironment", "Mapping", "TexCoord"))
env.image, lit.inputs["Strength"].default_value, shown.inputs["Color"].default_value = image, 2.0, (1, 0, 1, 1)
links.new(where.outputs["Generated"], turn.inputs["Vector"]); links.new(turn.outputs[0], env.inputs[0])
links.new(env.outputs[0], lit.inputs[0])
links.new(nodes.new("ShaderNodeLightPath").outputs["Is Camera Ray"], mixed.inputs[0])
links.new(lit.outputs[0], mixed.inputs[1]); links.new(shown.outputs[0], mixed.inputs[2])
links.new(mixed.outputs[0], nodes.new("ShaderNodeOutputWorld").inputs[0])
turn.inputs["Rotation"].default_value = (0, 0, np.pi / 2)

scene = bpy.context.scene
scene.render.resolution_x, scene.render.resolution_y, scene.render.engine = 32, 24, "CYCLES"
scene.cycles.samples = 1
bpy.ops.render.render()
def last_render():
    bpy.data.images["Render Result"].save_render(str(tmp / "r.png"), scene=scene)
    return (tmp / "r.png").read_bytes()
rendered = last_render()
kinds = (bpy.data.worlds, bpy.data.cameras, bpy.data.scenes, bpy.data.objects, bpy.data.meshes)
counted = [len(kind) for kind in kinds]
light.source = "WORLD"
cube.patina.seed = 5
folder, request = job_of()
assert [len(kind) for kind in kinds] == counted and last_render() == rendered, "nothing is left, nothing is lost"
assert request.panoramas == "lights" and [p.name for p in folder.lights.iterdir()] == ["world.exr"]
print("world", folder.lights / "world.exr")

hdris = tmp / "hdris ä"; hdris.mkdir()
light.source = "FOLDER"
for value, sentence in (("", "Choose the folder"), (str(tmp / "nowhere"), "There is no folder"),
                        (str(hdris), "no .hdr or .exr"), ("//hdris", "not saved yet")):
    light.folder = value
    refused(sentence)
(hdris / "a.hdr").write_bytes(b"")
light.folder = str(hdris)
folder, request = job_of()
assert request.panoramas == str(hdris)
light.source = "NEUTRAL"
assert bpy.ops.patina.variant_use_settings() == {"FINISHED"}
assert light.source == "FOLDER" and light.folder == str(hdris)
scene.world, light.source = None, "WORLD"
refused("no world")
""",
        limit=280,
    )
    exr = pytest.importorskip("OpenEXR")
    (path,) = tmp_path.rglob("world.exr")
    with exr.File(str(path)) as file:
        seen = file.channels()["RGB"].pixels
    assert seen.shape == (256, 512, 3)
    # Turned by a quarter: what lay at +Y is where the coordinates turned by +90 degrees say, that is at +X.
    assert np.allclose(seen[128, 256], [0, 10, 0], atol=0.05) and np.allclose(seen[3, 100], [0, 0, 10], atol=0.05)
    assert np.allclose(seen[128, 384], [10, 0, 0], atol=0.05) and np.allclose(seen[200, 30], 0.2, atol=0.01)


def test_a_reference_is_seen_by_a_camera_that_looks_at_the_middle(tmp_path):
    run_scenario(
        tmp_path,
        _WATCHED
        + """
import mathutils
scene = bpy.context.scene
scene.render.resolution_x, scene.render.resolution_y = 640, 360
cube.location, cube.rotation_euler, cube.scale = (1, 2, -0.5), (0.2, -0.3, 0.8), (1.0, 0.5, 2.0)
camera = scene.camera
camera.location = (7, -6, 5)
camera.data.lens, camera.data.shift_x = 40, 0.1
camera.rotation_euler = (cube.location - camera.location).to_track_quat("-Z", "Y").to_euler()
camera.rotation_euler.rotate_axis("Z", 0.4)  # a roll
camera.rotation_euler.rotate_axis("Y", 0.08)  # and not straight at it
bpy.context.view_layer.update()

def picture_of(window, view, width, height):
    "Green, with a red dot at each corner of the cube; where the dots are is known exactly."
    y, x = np.mgrid[0:height, 0:width]
    made = np.tile(np.float32([0.1, 0.6, 0.2, 1]), (height, width, 1))
    for corner in cube.bound_box:
        clip = window @ view @ np.append(np.array(cube.matrix_world @ mathutils.Vector(corner)), 1)
        across, down = (clip[0] / clip[3] + 1) / 2 * width - 0.5, (1 - clip[1] / clip[3]) / 2 * height - 0.5
        made[np.hypot(x - across, y - down) < 5] = 1, 0, 0, 1
    image = bpy.data.images.new("seen", width, height, alpha=True)
    image.pixels.foreach_set(np.ascontiguousarray(made[::-1]).ravel())
    return image

def dots_are_where_the_view_says(folder, request, off):
    "The corners in the frame of the mesh, seen as backend/cameras.py sees them."
    stored = np.load(folder.mesh)["positions"].reshape(-1, 3)
    center = (stored.min(0) + stored.max(0)) / 2
    radius = np.linalg.norm(stored - center, axis=1).max()
    view = request.reference_view
    a, e = np.radians(view["azimuth_deg"]), np.radians(view["elevation_deg"])
    back = np.array([np.cos(e) * np.sin(a), -np.cos(e) * np.cos(a), np.sin(e)])
    right = np.cross([0, 0, 1], back); right /= np.linalg.norm(right)
    up = np.cross(back, right)
    loaded = bpy.data.images.load(str(folder.reference))
    loaded.colorspace_settings.is_data = True
    pixels = np.array(loaded.pixels).reshape(512, 512, 4)[::-1]
    seen = 0
    for corner in np.unique(stored.round(4), axis=0):
        from_eye = (corner - center) / radius - back * view["distance"]
        depth = -(from_eye @ back) * np.tan(np.radians(view["fov_deg"] / 2))
        across = (from_eye @ right / depth + 1) * 256 - 0.5
        down = (1 - from_eye @ up / depth) * 256 - 0.5
        assert 0 < across < 512 and 0 < down < 512
        red = pixels[..., 0] - pixels[..., 1] > 0.4
        y, x = np.nonzero(red)
        distance = np.hypot(x - across, y - down).min()
        assert distance < off, (distance, corner)
        seen += 1
    assert seen == 8 and 20 < red.sum() < 30000, red.sum()
    return pixels

before = untouched.fingerprint()
window, view, aspect = reference.camera_matrices(bpy.context, camera)
reference.keep_view(cube, window, view, aspect)
cube.patina.reference.image = picture_of(window, view, 640, 360)
assert untouched.difference(before, untouched.fingerprint()) == []
folder, request = job_of()
pixels = dots_are_where_the_view_says(folder, request, 4.0)
assert request.reference == "reference.png" and 0.3 < pixels[..., 3].mean() <= 1

# A picture that is narrower than the view fills its height.
whole = reference.pixels(cube.patina.reference.image)
narrow = bpy.data.images.new("narrow", 400, 360, alpha=True)
narrow.pixels.foreach_set(np.ascontiguousarray(whole[::-1, 120:520]).ravel())
assert (whole[..., 0] > 0.9).sum() == (whole[:, 120:520, 0] > 0.9).sum(), "all dots are in it"
cube.patina.reference.image = narrow
dots_are_where_the_view_says(*job_of(), 4.0)

# What the object does afterwards takes the view along; a parallel view is taken for a far one.
cube.location, cube.rotation_euler = (5, 5, 5), (1, 1, 1)
folder, again = job_of()
assert all(abs(again.reference_view[k] - v) < 1e-3 for k, v in request.reference_view.items())
camera.data.type, camera.data.ortho_scale, camera.data.shift_x = "ORTHO", 7.0, 0.0
camera.location = (12, 0, 9)
camera.rotation_euler = (cube.location - camera.location).to_track_quat("-Z", "Y").to_euler()
bpy.context.view_layer.update()
window, view, aspect = reference.camera_matrices(bpy.context, camera)
reference.keep_view(cube, window, view, aspect)
cube.patina.reference.image = picture_of(window, view, 640, 360)
folder, request = job_of()
assert request.reference_view["distance"] == 60
dots_are_where_the_view_says(folder, request, 9.0)

# Without a view it shows the front, whole, in a square.
assert bpy.ops.patina.reference_front() == {"FINISHED"}
folder, request = job_of()
loaded = bpy.data.images.load(str(folder.reference))
alpha = np.array(loaded.pixels).reshape(loaded.size[1], loaded.size[0], 4)[..., 3]
assert request.reference_view == {} and loaded.size[0] == loaded.size[1] == 512
assert (alpha[256] == 1).all() and (alpha[10] == 0).all() and abs(alpha.mean() - 360 / 640) < 0.01

camera.data.type, camera.location = "PERSP", cube.location
bpy.context.view_layer.update()
reference.keep_view(cube, *reference.camera_matrices(bpy.context, camera))
refused("too near")
camera.location = cube.location + mathutils.Vector((0, 0, 20)); camera.rotation_euler = (np.pi, 0, 0)
bpy.context.view_layer.update()
reference.keep_view(cube, *reference.camera_matrices(bpy.context, camera))
refused("not in the reference's view")
cube.patina.reference.image = None
assert job_of()[1].reference == ""
""",
        limit=280,
    )


def test_the_last_render_is_taken_with_its_camera(tmp_path):
    run_scenario(
        tmp_path,
        _WATCHED
        + """
scene = bpy.context.scene
refused("no render yet", bpy.ops.patina.reference_render)
scene.render.resolution_x, scene.render.resolution_y, scene.render.engine = 160, 120, "CYCLES"
scene.cycles.samples = 2
files = scene.render.image_settings
files.file_format, files.color_mode, files.color_depth = "OPEN_EXR", "RGB", "32"
bpy.ops.render.render()
before = untouched.fingerprint()
assert bpy.ops.patina.reference_render() == {"FINISHED"}
assert untouched.difference(before, untouched.fingerprint()) == []
kept = cube.patina.reference
assert tuple(kept.image.size) == (160, 120) and kept.image.packed_file is not None
around, above = reference.angles(kept)
towards = scene.camera.matrix_world.translation.normalized()
assert abs(above - np.degrees(np.arcsin(towards.z))) < 0.1
assert abs(around - np.degrees(np.arctan2(towards.x, -towards.y))) < 0.1
assert abs(job_of()[1].reference_view["azimuth_deg"] - around) < 0.01
refused("window only", bpy.ops.patina.reference_paste)
assert not bpy.ops.patina.reference_view.poll()

bpy.ops.ed.undo_push(message="before")
assert bpy.ops.patina.reference_front() == {"FINISHED"}
assert reference.angles(cube.patina.reference) is None
bpy.ops.ed.undo_push(message="after")
bpy.ops.ed.undo()
assert reference.angles(bpy.data.objects["Cube"].patina.reference) is not None
""",
        limit=280,
    )


def test_a_fine_picture_is_filtered_also_where_it_shows_a_part_of_the_object(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import reference
        noise = np.random.default_rng(0).random((2048, 2048, 1), np.float32)
        picture = np.concatenate([np.repeat(noise, 3, 2), np.ones_like(noise)], axis=2)
        at = 2 * (np.arange(512) + 0.5) / 512 - 1
        for reach in (1.0, 1.5):  # the whole object, and a close-up
            x, y = np.broadcast_arrays(reach * at[None, :], -reach * at[:, None])
            inside = (abs(x) <= 1) & (abs(y) <= 1)
            found = reference._sampled(picture, np.where(inside, x, 0.0), np.where(inside, y, 0.0))
            assert found[inside][:, 0].std() < 0.12, (reach, found[inside][:, 0].std())
        """,
    )
