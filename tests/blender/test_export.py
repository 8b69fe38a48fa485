# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps and materials for other programs, checked by readers that are not ours; nothing else in the file changes."""

import json
import struct

import numpy as np
import pytest

pytest.importorskip("bpy")

from PIL import Image  # noqa: E402

from .harness import run_scenario  # noqa: E402

_MADE = """
from addon import export, variants
import untouched
cube.patina.prompt = "red"
assert bpy.ops.patina.generate() == {"FINISHED"}
run = variants.current(cube).run
maps = images.find(run)
noise = np.random.default_rng(0)
for name, image in maps.items():  # maps that tell rows, columns and channels apart
    values = np.ones((512, 512, 4), np.float32)
    values[..., :3] = noise.integers(0, 256, (512, 512, 3)) / 255 if name in ("base_color", "normal") else (
        noise.integers(0, 256, (512, 512, 1)) / 255)
    image.pixels.foreach_set(values.ravel())
    image.save()
shown = {name: images.texels(image) for name, image in maps.items()}
np.savez(tmp / "shown.npz", **shown)
how = bpy.context.scene.patina_export
how.folder = str(tmp / "out")
def unchanged(call):
    before = untouched.fingerprint()
    result = call()
    assert untouched.difference(before, untouched.fingerprint()) == []
    return result
"""


def test_templates_bits_and_normals(tmp_path):
    run_scenario(
        tmp_path,
        _MADE
        + """
for template in ("SEPARATE", "GLTF", "UNREAL", "UNITY"):
    how.template, how.folder = template, str(tmp / "out" / template)
    assert unchanged(bpy.ops.patina.export_maps) == {"FINISHED"}
how.template, how.file_format, how.folder = "SEPARATE", "PNG16", str(tmp / "out" / "SEPARATE")
try:
    bpy.ops.patina.export_maps(); raise AssertionError("wrote over files")
except RuntimeError as error:
    assert "exists in" in str(error)
how.folder, how.normals = str(tmp / "deep"), "DIRECTX"
assert unchanged(bpy.ops.patina.export_maps) == {"FINISHED"}
how.file_format = "OPEN_EXR"
assert unchanged(bpy.ops.patina.export_maps) == {"FINISHED"}
assert unchanged(lambda: bpy.ops.patina.export_maps.poll())
how.file_format, how.overwrite = "PNG16", True
assert unchanged(bpy.ops.patina.export_maps) == {"FINISHED"}
""",
    )
    with np.load(tmp_path / "shown.npz") as stored:
        shown = {name: np.rint(stored[name] * 255).astype(int) for name in stored.files}

    def read(name):
        return np.asarray(Image.open(tmp_path / "out" / name)).astype(int)

    assert (read("SEPARATE/Cube_base_color.png") == shown["base_color"]).all()
    assert (read("SEPARATE/Cube_roughness.png") == shown["roughness"][..., 0]).all()
    assert (read("SEPARATE/Cube_normal.png") == shown["normal"]).all()
    orm = read("GLTF/Cube_occlusionRoughnessMetallic.png")
    for made in (orm, read("UNREAL/T_Cube_ORM.png")):
        assert (made[..., 0] == 255).all()
        assert (made[..., 1] == shown["roughness"][..., 0]).all() and (made[..., 2] == shown["metallic"][..., 0]).all()
    down = read("UNREAL/T_Cube_N.png")
    assert (down[..., 1] == 255 - shown["normal"][..., 1]).all() and (down[..., 0] == shown["normal"][..., 0]).all()
    unity = read("UNITY/Cube_MetallicSmoothness.png")
    assert (unity[..., 3] == 255 - shown["roughness"][..., 0]).all()
    assert (unity[..., 0] == shown["metallic"][..., 0]).all()
    assert (read("UNITY/Cube_Normal.png") == shown["normal"]).all()

    deep = np.asarray(Image.open(tmp_path / "deep" / "Cube_roughness.png")).astype(int)
    assert (deep == shown["roughness"][..., 0] * 257).all(), "16 bits"
    assert (tmp_path / "deep" / "Cube_normal.png").read_bytes()[24] == 16
    exr = pytest.importorskip("OpenEXR")
    with exr.File(str(tmp_path / "deep" / "Cube_base_color.exr")) as file:
        channels = file.channels()
        rgb = channels["RGB"].pixels if "RGB" in channels else channels["RGBA"].pixels[..., :3]
    values = shown["base_color"] / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    assert np.abs(rgb - linear).max() < 2e-3
    assert not list((tmp_path / "out").rglob(".*")) and not list((tmp_path / "deep").glob(".*"))


def test_extra_maps_go_out_with_the_others(tmp_path):
    run_scenario(
        tmp_path,
        """
from addon import variants
import untouched
scene = bpy.context.scene
scene.patina.extra_ambient_occlusion = scene.patina.extra_height = True
cube.patina.prompt = "red"
assert bpy.ops.patina.generate() == {"FINISHED"}
variant = variants.current(cube)
folder = variants.folder_of(variant)
assert (folder / "ambient_occlusion.png").is_file() and (folder / "height.png").is_file()
how = scene.patina_export
before = untouched.fingerprint()
images_before = len(bpy.data.images)
for template in ("SEPARATE", "GLTF", "UNREAL", "UNITY"):
    how.template, how.folder = template, str(tmp / "out" / template)
    assert bpy.ops.patina.export_maps() == {"FINISHED"}
assert untouched.difference(before, untouched.fingerprint()) == [] and len(bpy.data.images) == images_before
scene.patina.extra_ambient_occlusion = False
assert bpy.ops.patina.variant_use_settings() == {"FINISHED"} and scene.patina.extra_ambient_occlusion
scene.patina.extra_ambient_occlusion = scene.patina.extra_height = False
assert bpy.ops.patina.generate() == {"FINISHED"}
bpy.ops.patina.variant_delete(run=variant.run)
assert not folder.exists(), list(folder.iterdir())
""",
        limit=150,
    )

    def read(name):
        return np.asarray(Image.open(tmp_path / "out" / name)).astype(int)

    for name in ("GLTF/Cube_occlusionRoughnessMetallic.png", "UNREAL/T_Cube_ORM.png"):
        assert (read(name)[..., 0] == 200).all() and (read(name)[..., 1] == 60).all()
    assert (read("UNITY/Cube_Occlusion.png") == 200).all() and (
        read("SEPARATE/Cube_ambient_occlusion.png") == 200
    ).all()
    for name in ("GLTF/Cube_height.png", "UNREAL/T_Cube_H.png", "UNITY/Cube_Height.png", "SEPARATE/Cube_height.png"):
        assert (read(name) == 90 * 257).all(), "16 bits"


def test_a_glb_holds_the_material_and_an_asset_its_picture(tmp_path):
    run_scenario(
        tmp_path,
        _MADE
        + """
bpy.ops.mesh.primitive_uv_sphere_add()
bpy.context.object.name = "Other"
cube.select_set(True); bpy.context.view_layer.objects.active = cube
assert unchanged(bpy.ops.patina.export_glb) == {"FINISHED"}
assert sorted(o.name for o in bpy.context.selected_objects) == ["Cube", "Other"]
made = cube.material_slots[0].material
assert unchanged(bpy.ops.patina.mark_asset) == {"FINISHED"}
assert made.asset_data is not None and made.asset_data.description == "red"
print("preview", tuple(made.preview.image_size) if made.preview else None)
assert made.preview is not None and made.preview.image_size[0] > 0
if bpy.app.version < (4, 3):  # its glTF exporter, without Patina too, crashes when bpy ends
    import os
    addon.unregister()
    print("scenario ended", flush=True)
    os._exit(0)
""",
    )
    import trimesh

    glb = (tmp_path / "out" / "Cube.glb").read_bytes()
    header = json.loads(glb[20 : 20 + struct.unpack("<I", glb[12:16])[0]])
    (surface,) = header["materials"]
    assert {"baseColorTexture", "metallicRoughnessTexture"} <= surface["pbrMetallicRoughness"].keys()
    assert "normalTexture" in surface
    scene = trimesh.load(tmp_path / "out" / "Cube.glb")
    (mesh,) = scene.geometry.values()
    assert len(mesh.faces) == 12
    with np.load(tmp_path / "shown.npz") as stored:
        shown = {name: np.rint(stored[name] * 255).astype(int) for name in stored.files}
    packed = np.asarray(mesh.visual.material.metallicRoughnessTexture.convert("RGB")).astype(int)
    assert np.abs(packed[..., 1] - shown["roughness"][..., 0]).max() <= 1
    assert np.abs(packed[..., 2] - shown["metallic"][..., 0]).max() <= 1
    colour = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")).astype(int)
    assert np.abs(colour - shown["base_color"]).max() <= 1


def test_a_glb_of_what_cannot_be_selected_is_refused_and_edit_mode_comes_back(tmp_path):
    run_scenario(
        tmp_path,
        _MADE
        + """
def refused(sentence):
    try:
        unchanged(bpy.ops.patina.export_glb); raise AssertionError("wrote a file")
    except RuntimeError as error:
        assert sentence in str(error), error
    assert not (tmp / "out" / "Cube.glb").exists()
bpy.ops.mesh.primitive_uv_sphere_add()
other = bpy.context.object
bpy.context.view_layer.objects.active = cube
cube.hide_set(True)
refused("Cube is hidden or cannot be selected")
cube.hide_set(False); cube.hide_select = True
refused("Cube is hidden or cannot be selected")
cube.hide_select = False
apart = bpy.data.collections.new("apart")
apart.objects.link(cube)
bpy.context.scene.collection.children.link(apart)
for collection in cube.users_collection:
    if collection != apart: collection.objects.unlink(cube)
bpy.context.view_layer.layer_collection.children["apart"].exclude = True
bpy.context.view_layer.update()
try:
    export.write_glb(cube, tmp / "out" / "Cube.glb", True); raise AssertionError("wrote a file")
except export.ExportProblem as error:
    assert "Cube is hidden or cannot be selected" in str(error), error
bpy.context.view_layer.layer_collection.children["apart"].exclude = False
bpy.context.view_layer.update()
other.select_set(True); cube.select_set(False)
bpy.context.view_layer.objects.active = cube

import addon_utils
addon_utils.disable("io_scene_gltf2")
refused("Enable the glTF 2.0 add-on")
addon_utils.enable("io_scene_gltf2")

cube.select_set(True); other.select_set(False)
bpy.ops.object.mode_set(mode="EDIT")
other.select_set(True)
assert (cube.mode, other.mode) == ("EDIT", "OBJECT")
assert unchanged(bpy.ops.patina.export_glb) == {"FINISHED"} and (tmp / "out" / "Cube.glb").is_file()
assert (cube.mode, other.mode) == ("EDIT", "OBJECT")
how.overwrite = True
bpy.ops.object.mode_set(mode="OBJECT")
bpy.ops.object.mode_set(mode="EDIT")
assert (cube.mode, other.mode) == ("EDIT", "EDIT")
assert unchanged(bpy.ops.patina.export_glb) == {"FINISHED"}
assert (cube.mode, other.mode) == ("EDIT", "EDIT")
bpy.ops.object.mode_set(mode="OBJECT")
if bpy.app.version < (4, 3):  # its glTF exporter, without Patina too, crashes when bpy ends
    import os
    addon.unregister()
    print("scenario ended", flush=True)
    os._exit(0)
""",
    )


def test_maps_of_different_sizes_go_out_as_large_as_the_base_color(tmp_path):
    run_scenario(
        tmp_path,
        _MADE
        + """
maps["base_color"].scale(256, 512)
maps["base_color"].save()
for template in ("SEPARATE", "GLTF", "UNREAL", "UNITY"):
    how.template, how.folder = template, str(tmp / "out" / template)
    assert unchanged(bpy.ops.patina.export_maps) == {"FINISHED"}
""",
    )
    files = sorted((tmp_path / "out").rglob("*.png"))
    assert len(files) == 4 + 3 + 3 + 3
    assert {Image.open(file).size for file in files} == {(256, 512)}
    normal = np.asarray(Image.open(tmp_path / "out" / "SEPARATE" / "Cube_normal.png")) / 255 * 2 - 1
    assert np.abs(np.linalg.norm(normal, axis=-1) - 1).max() < 0.02


def test_the_asset_is_the_material_that_is_shown(tmp_path):
    run_scenario(
        tmp_path,
        _MADE
        + """
made = cube.material_slots[0].material
copy = made.copy()
cube.material_slots[0].material = copy
assert unchanged(bpy.ops.patina.mark_asset) == {"FINISHED"}
assert copy.asset_data is not None and made.asset_data is None
copy.asset_clear()
bpy.data.materials.remove(made)
assert variants.current(cube).material is None
assert unchanged(bpy.ops.patina.mark_asset) == {"FINISHED"} and copy.asset_data is not None
""",
    )
