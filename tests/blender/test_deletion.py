# SPDX-License-Identifier: GPL-3.0-or-later
"""Deleting variants: what another object, material or .blend file still uses stays."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402

_TWO = """
from addon import deletion, variants
def make(prompt):
    cube.patina.prompt = prompt
    assert bpy.ops.patina.generate() == {"FINISHED"}, running.status
    return variants.current(cube).run
def folder(run):
    return variants.folder_of(variants.find(cube, run))
"""


def test_a_duplicate_keeps_the_files_and_the_last_one_takes_them_along(tmp_path):
    run_scenario(
        tmp_path,
        _TWO
        + """
first, second = make("red"), make("blue")
files = folder(first)
bpy.ops.object.duplicate()
copy = bpy.context.object
assert copy != cube and bpy.ops.patina.variant_delete(run=first) == {"FINISHED"}
assert variants.find(copy, first) is None and variants.find(cube, first) is not None
assert variants.has_maps(variants.find(cube, first)) and len(images.find(first)) == 4
bpy.context.view_layer.objects.active = cube
assert bpy.ops.patina.variant_clean() == {"FINISHED"}
assert [v.run for v in cube.patina.variants] == [second] and not files.exists() and not images.find(first)
""",
    )


def test_an_asset_and_a_material_of_ones_own_keep_the_files(tmp_path):
    run_scenario(
        tmp_path,
        _TWO
        + """
first = make("red")
made = variants.find(cube, first).material
assert bpy.ops.patina.mark_asset() == {"FINISHED"}
second = make("blue")
tweaked = variants.find(cube, second).material.copy()
tweaked.name = "Tweaked"
del tweaked["patina_run"]
wire = bpy.data.objects.new("Wire", bpy.data.curves.new("Wire", "CURVE"))
bpy.context.scene.collection.objects.link(wire)
wire.data.materials.append(tweaked)
third = make("green")
files = [folder(first), folder(second)]
assert bpy.ops.patina.variant_clean() == {"FINISHED"}
assert [v.run for v in cube.patina.variants] == [third], "the lines go"
assert all(images.map_file(place, "base_color").is_file() for place in files)
assert made.asset_data is not None and all(node.image for node in tweaked.node_tree.nodes if node.type == "TEX_IMAGE")
assert len(images.find(first)) == len(images.find(second)) == 4
""",
        limit=90,
    )


def test_maps_of_another_file_stay(tmp_path):
    run_scenario(
        tmp_path,
        _TWO
        + """
(tmp / "lib").mkdir(); (tmp / "proj").mkdir()
bpy.ops.wm.save_as_mainfile(filepath=str(tmp / "lib" / "v1.blend"))
cube = bpy.data.objects["Cube"]
first, second = make("red"), make("blue")
files = folder(first)
bpy.ops.wm.save_mainfile()

# A later version beside it uses the same files.
bpy.ops.wm.save_as_mainfile(filepath=str(tmp / "lib" / "v2.blend"))
cube = bpy.data.objects["Cube"]
third = make("green")
own = folder(third)
make("white")
assert bpy.ops.patina.variant_clean() == {"FINISHED"} and len(cube.patina.variants) == 1
assert images.map_file(files, "normal").is_file(), "v1.blend shows them"
assert not own.exists(), "of this version alone"

for link in (True, False):
    bpy.ops.wm.read_homefile(use_empty=True)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp / "proj" / "v1.blend"))  # of the same name, elsewhere
    with bpy.data.libraries.load(str(tmp / "lib" / "v1.blend"), link=link) as (there, here):
        here.objects = ["Cube"]
    cube = bpy.data.objects["Cube"]
    bpy.context.scene.collection.objects.link(cube)
    bpy.context.view_layer.objects.active = cube
    if link:
        try:
            bpy.ops.patina.variant_delete(run=first); raise AssertionError("changed a linked object")
        except RuntimeError as error:
            assert "linked from v1.blend" in str(error), error
        assert bpy.ops.patina.variant_clean() == {"FINISHED"} and len(cube.patina.variants) == 2
    else:
        assert bpy.ops.patina.variant_delete(run=first) == {"FINISHED"} and len(cube.patina.variants) == 1
    assert images.map_file(files, "normal").is_file()

bpy.ops.wm.open_mainfile(filepath=str(tmp / "lib" / "v1.blend"))
cube = bpy.data.objects["Cube"]
bpy.context.view_layer.objects.active = cube
assert bpy.ops.patina.variant_delete(run=first) == {"FINISHED"} and not files.exists()
""",
        limit=120,
    )
