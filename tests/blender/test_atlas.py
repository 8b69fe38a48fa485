# SPDX-License-Identifier: GPL-3.0-or-later
"""One set of maps for several objects: a new UV layer each, one mesh in the job, one material; undo returns all."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402

_THREE = """
import untouched
from addon import uv_check, variants
bpy.ops.mesh.primitive_uv_sphere_add(segments=16, ring_count=8, location=(2.5, 0.5, 0))
ball = bpy.context.object
ball.name = "Ball"
ball.scale, ball.rotation_euler = (0.5, 0.5, 0.5), (0.3, 0.2, 0.1)
mirror = ball.modifiers.new("s", "SUBSURF"); mirror.levels = 1
twin = bpy.data.objects.new("Twin", cube.data)  # shares the mesh of the cube
bpy.context.scene.collection.objects.link(twin)
twin.location = (0, 3, 0)
cube.location, cube.rotation_euler, cube.scale = (0.2, 0, 0), (0, 0, 0.5), (1, 1.2, 0.8)
ball.data.uv_layers[0].name = "Own"
bpy.data.objects["Light"].select_set(False)
for obj in (cube, ball, twin): obj.select_set(True)
bpy.context.view_layer.objects.active = cube
bpy.context.view_layer.update()
cube.patina.prompt = "red"
old = {obj.name: [place.material for place in obj.material_slots] for obj in (cube, ball, twin)}
ours = ("Shared Atlas",)
def uv_state():
    return {mesh.name: [(l.name, l.active_render, [tuple(c.vector) for c in l.uv]) for l in mesh.uv_layers
            if l.name not in ours] for mesh in bpy.data.meshes}
"""


def test_several_objects_share_one_atlas(tmp_path):
    run_scenario(
        tmp_path,
        _THREE
        + """
from addon import interrupted
interrupted.took = lambda folder: None  # the job folder stays to be looked at
before, uvs_before = untouched.fingerprint(ours), uv_state()
bpy.ops.ed.undo_push(message="before")
assert bpy.ops.patina.generate_atlas() == {"FINISHED"}, running.status
assert running.status.message == "The maps are done." and "Shared Atlas on 3 objects" in running.status.warnings
# Materials and slots are what was asked for (asserted below); nothing else of the objects and meshes changes.
assert untouched.difference(before, untouched.fingerprint(ours)) == []
assert uv_state() == uvs_before
assert all(obj.data.uv_layers.active.name != "Shared Atlas" for obj in (cube, ball))
runs = {place.material["patina_run"] for obj in (cube, ball, twin) for place in obj.material_slots}
materials = {place.material for obj in (cube, ball, twin) for place in obj.material_slots}
assert len(runs) == len(materials) == 1 and len(images.find(runs.copy().pop())) == 4
assert all(len(obj.patina.variants) == 1 and obj.patina.variants[0].shared for obj in (cube, ball, twin))

with np.load(running.ended.folder.mesh) as stored:
    arrays = {name: stored[name] for name in stored.files}
with mesh_io.evaluated(bpy.context, ball) as shown:
    of_ball = len(mesh_io.read(ball, shown, "Shared Atlas", None)["uvs"])
assert len(arrays["uvs"]) == 12 + of_ball, "the twin's mesh is the cube's"
edges = arrays["positions"][:, 1:] - arrays["positions"][:, :1]
area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2
assert uv_check.usability(arrays["uvs"], area).usable, "nothing lies over anything"
across = arrays["uvs"][:, 1:] - arrays["uvs"][:, :1]
room = np.abs(across[:, 0, 0] * across[:, 1, 1] - across[:, 0, 1] * across[:, 1, 0]) / 2
density = [room[part].sum() / area[part].sum() for part in (slice(0, 12), slice(12, None))]
print("texture a surface", density, "used", room.sum())
assert 0.5 < density[0] / density[1] < 2 and room.sum() > 0.25
# As they stand, seen in the frame of the first: its rotation is gone, its scale is in the mesh.
import mathutils
center = arrays["positions"][12:].reshape(-1, 3)
center = (center.min(0) + center.max(0)) / 2
wanted = cube.matrix_world.to_quaternion().inverted() @ (ball.location - cube.location)
assert np.abs(center - np.array(wanted)).max() < 0.03, (center, wanted)
assert np.allclose(np.linalg.norm(arrays["normals"], axis=-1), 1, atol=1e-4)

bpy.ops.ed.undo_push(message="after")
bpy.ops.ed.undo()
cube, ball, twin = (bpy.data.objects[name] for name in ("Cube", "Ball", "Twin"))
assert {obj.name: [place.material for place in obj.material_slots] for obj in (cube, ball, twin)} == {
    "Cube": [bpy.data.materials["Material"]], "Ball": [], "Twin": [bpy.data.materials["Material"]]}
assert untouched.difference(before, untouched.fingerprint()) == [] and not ball.patina.variants
bpy.ops.ed.redo()
cube, ball, twin = (bpy.data.objects[name] for name in ("Cube", "Ball", "Twin"))

# Each object shows and takes off for itself; the maps go when none shows them.
run = variants.current(ball).run
context = bpy.context.temp_override(object=ball, active_object=ball)
bpy.context.view_layer.objects.active = ball
assert bpy.ops.patina.revert() == {"FINISHED"} and not material.is_on(ball, run) and material.is_on(cube, run)
ball.data.uv_layers.remove(ball.data.uv_layers["Shared Atlas"])
made = variants.find(ball, run)
assert bpy.ops.patina.variant_show(run=run) == {"FINISHED"} and material.is_on(ball, run)
bpy.ops.patina.revert()
try:
    ball.patina.prompt = "red"; bpy.ops.patina.refine(run=run); raise AssertionError("refined one object of several")
except RuntimeError as error:
    assert "atlas of several objects" in str(error), error
try:
    bpy.ops.patina.variant_delete(run=run); raise AssertionError("deleted what others show")
except RuntimeError as error:
    assert "is on" in str(error), error
assert bpy.ops.patina.variant_show(run=run) == {"FINISHED"}
assert bpy.ops.patina.more_seeds(count=1) == {"FINISHED"}
again = variants.current(ball).run
assert again != run and all(material.is_on(obj, again) for obj in (cube, ball, twin))
folder = variants.folder_of(variants.find(ball, run))
assert (folder / "uvs.npy").is_file() and (folder / "uvs-1.npy").is_file()
assert bpy.ops.patina.variant_delete(run=run) == {"FINISHED"}
assert not folder.exists() and all(len(obj.patina.variants) == 1 for obj in (cube, ball, twin))
""",
        limit=280,
    )


def test_an_atlas_that_fails_or_is_left_leaves_nothing_behind(tmp_path):
    run_scenario(
        tmp_path,
        _THREE
        + """
before = untouched.fingerprint()
def fails(sentence):
    try:
        bpy.ops.patina.generate_atlas(); raise AssertionError("not refused: " + sentence)
    except RuntimeError as error:
        assert sentence in str(error), error
cube.patina.prompt = "failed"
fails("not enough memory")
assert not cube.patina.variants and not ball.patina.variants
assert [place.material for place in twin.material_slots] == old["Twin"]
# The layers stay after a run that failed in the backend, as those of a single object do.
for mesh in (cube.data, ball.data): mesh.uv_layers.remove(mesh.uv_layers["Shared Atlas"])
cube.patina.prompt = "red"
import random
while len(ball.data.uv_layers) < 8: ball.data.uv_layers.new(name=f"l{random.random()}")
before = untouched.fingerprint()
fails("Delete one of the eight")
assert untouched.difference(before, untouched.fingerprint()) == []
for layer in [l.name for l in ball.data.uv_layers if l.name.startswith("l")]:
    ball.data.uv_layers.remove(ball.data.uv_layers[layer])

# Paused, forgotten by this session, and found again in its folder: all objects are resumed.
cube.patina.prompt = "slow"
from addon import atlas
atlas.begin(bpy.context, cube, running, [ball, twin])
run = running.job.place.run
tick_until(lambda: running.status.can_pause and running.status.step > 2)
running.pause()
tick_until(lambda: not running.busy)
(left,) = running.left
assert [member.object_name for member in left.place.others] == ["Ball", "Twin"], left.place
assert bpy.ops.patina.resume(run=run) == {"FINISHED"} and running.status.message == "The maps are done."

# Far apart they are set side by side; a reference picture cannot mean that.
ball.location = (500, 0, 0)
bpy.context.view_layer.update()
cube.patina.prompt = "red"
from addon import interrupted
interrupted.took = lambda folder: None
assert bpy.ops.patina.generate_atlas() == {"FINISHED"}
assert "side by side" in running.status.warnings
positions = np.load(running.ended.folder.mesh)["positions"].reshape(-1, 3)
assert (positions.max(0) - positions.min(0)).max() < 10
cube.patina.reference.image = bpy.data.images.new("picture", 64, 64)
fails("too far apart for one reference")
ball.select_set(False); twin.select_set(False)
assert not bpy.ops.patina.generate_atlas.poll()
""",
        limit=280,
    )


def test_a_mirrored_object_is_not_painted_inside_out_and_layers_are_used_again(tmp_path):
    run_scenario(
        tmp_path,
        _THREE
        + """
from addon import atlas
ball.modifiers.clear()
ball.scale = (-0.5, 0.5, 0.5)
bpy.context.view_layer.update()
for _ in range(2):
    atlas.begin(bpy.context, cube, running, [ball])
    with np.load(running.job.folder.mesh) as stored:
        arrays = {name: stored[name].astype(np.float64) for name in stored.files}
    tick_until(lambda: not running.busy)
    assert [layer.name for layer in ball.data.uv_layers] == ["Own", "Shared Atlas"], "an atlas adds one layer, once"
edges, uv_edges = (arrays[name][:, 1:] - arrays[name][:, :1] for name in ("positions", "uvs"))
winding = np.cross(edges[:, 0], edges[:, 1])
normal, tangent = arrays["normals"].mean(1), arrays["tangents"].mean(1)
(u1, v1), (u2, v2) = uv_edges[:, 0].T, uv_edges[:, 1].T
upwards = (edges[:, 1] * u1[:, None] - edges[:, 0] * u2[:, None]) * np.sign(u1 * v2 - v1 * u2)[:, None]
bitangent = np.cross(normal, tangent[:, :3]) * tangent[:, 3:]
for part in (slice(0, 12), slice(12, None)):
    assert ((winding * normal).sum(1)[part] > 0).all(), "faces look outwards"
    assert ((upwards * bitangent).sum(1)[part] > 0).mean() > 0.99, "green is up in the image"
""",
        limit=120,
    )
