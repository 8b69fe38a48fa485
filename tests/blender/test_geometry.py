# SPDX-License-Identifier: GPL-3.0-or-later
"""What an object may look like: UVs of every kind, modifiers, n-gons, scale, slots, shared and linked data."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402

_HELPERS = """
def fingerprint(mesh):
    positions = np.empty(len(mesh.vertices) * 3, np.float32); mesh.vertices.foreach_get("co", positions)
    layers = []
    for layer in mesh.uv_layers:
        if layer.name.startswith("Patina"): continue
        uvs = np.empty(len(mesh.loops) * 2, np.float32); layer.uv.foreach_get("vector", uvs)
        layers.append((layer.name, layer.active_render, uvs.tobytes()))
    return positions.tobytes(), layers, mesh.uv_layers.active.name if mesh.uv_layers.active else None

def arrays_of(obj):
    start(obj, "red")
    with np.load(running.job.folder.mesh, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name, (shape, dtype) in protocol.MESH_ARRAYS.items():
        assert arrays[name].dtype == dtype and arrays[name].shape[1:] == shape, name
        assert np.isfinite(arrays[name].astype(float)).all(), name
    lengths = np.linalg.norm(arrays["normals"], axis=-1), np.linalg.norm(arrays["tangents"][..., :3], axis=-1)
    assert all(np.allclose(length, 1, atol=1e-4) for length in lengths)
    tick_until(lambda: not running.busy)
    assert running.status.message == "The maps are done.", running.status
    return arrays
"""


def run(tmp_path, body):
    import textwrap

    return run_scenario(tmp_path, _HELPERS + textwrap.dedent(body))


def test_usable_uvs_are_left_alone(tmp_path):
    run(
        tmp_path,
        """
        before = fingerprint(cube.data)
        arrays = arrays_of(cube)
        assert len(arrays["uvs"]) == 12 and fingerprint(cube.data) == before and len(cube.data.uv_layers) == 1
        """,
    )


@pytest.mark.parametrize("spoil", ["overlap", "outside", "collapsed", "nan", "none"])
def test_unusable_uvs_get_a_new_layer_and_stay_as_they_are(tmp_path, spoil):
    run(
        tmp_path,
        f"""
        spoil = {spoil!r}
        layer = cube.data.uv_layers[0]
        uvs = np.empty(48, np.float32); layer.uv.foreach_get("vector", uvs)
        uvs = uvs.reshape(24, 2)
        if spoil == "overlap": uvs[4:8] = uvs[0:4]
        if spoil == "outside": uvs = uvs * 3
        if spoil == "collapsed": uvs[4:8] = 0.5
        if spoil == "nan": uvs[3] = float("nan")
        layer.uv.foreach_set("vector", uvs.ravel())
        if spoil == "none": cube.data.uv_layers.remove(layer)
        other = bpy.data.objects.new("Other", bpy.data.meshes.new("m"))
        bpy.context.scene.collection.objects.link(other); other.select_set(True); cube.select_set(False)
        cube.data.polygons[2].hide = True
        before, selected = fingerprint(cube.data), [p.select for p in cube.data.polygons]
        meshes = len(bpy.data.meshes), len(bpy.data.objects)
        arrays = arrays_of(cube)
        after = fingerprint(cube.data)
        assert after[:2] == before[:2] and (spoil == "none" or after[2] == before[2])
        assert "Patina" in cube.data.uv_layers and "New UV layer" in running.status.warnings
        if spoil != "none": assert not cube.data.uv_layers["Patina"].active_render
        assert [p.select for p in cube.data.polygons] == selected and cube.data.polygons[2].hide
        assert (len(bpy.data.meshes), len(bpy.data.objects)) == meshes
        assert other.select_get() and not cube.select_get() and bpy.context.view_layer.objects.active == cube
        made = cube.material_slots[0].material
        assert {{n.uv_map for n in made.node_tree.nodes if n.bl_idname == "ShaderNodeUVMap"}} == {{"Patina"}}
        assert arrays["uvs"].min() >= 0 and arrays["uvs"].max() <= 1
        """,
    )


def test_whole_tiles_and_mirrored_halves_are_usable(tmp_path):
    run(
        tmp_path,
        """
        layer = cube.data.uv_layers[0]
        uvs = np.empty(48, np.float32); layer.uv.foreach_get("vector", uvs)
        layer.uv.foreach_set("vector", (uvs.reshape(24, 2) + [3, -2]).astype(np.float32).ravel())
        arrays = arrays_of(cube)
        assert len(cube.data.uv_layers) == 1 and arrays["uvs"].min() >= 0 and arrays["uvs"].max() <= 1
        mirror = cube.modifiers.new("m", "MIRROR"); mirror.use_clip = False
        for vertex in cube.data.vertices: vertex.co.x += 2
        arrays = arrays_of(cube)
        assert len(arrays["uvs"]) == 24 and len(cube.data.uv_layers) == 1
        assert sorted(set(np.sign(arrays["tangents"][..., 3].ravel()))) == [-1, 1]
        cube.modifiers.clear(); cube.modifiers.new("a", "ARRAY").count = 3
        assert len(arrays_of(cube)["uvs"]) == 36 and "share one texture" in running.status.warnings
        """,
    )


def test_modifiers_parents_and_scale(tmp_path):
    run(
        tmp_path,
        """
        bpy.ops.mesh.primitive_monkey_add()
        monkey = bpy.context.object
        modifier = monkey.modifiers.new("s", "SUBSURF"); modifier.levels = 2
        parent = bpy.data.objects.new("Parent", None); bpy.context.scene.collection.objects.link(parent)
        monkey.parent = parent; parent.scale = (1, 2, 1); monkey.scale = (3, 3, 3); parent.rotation_euler.z = 1
        bpy.context.view_layer.update()
        arrays = arrays_of(monkey)
        assert len(arrays["positions"]) == 15_744  # 2 levels of 468 quads and 32 triangles
        flat = arrays["positions"].reshape(-1, 3)
        plain = np.array([v.co for v in monkey.data.vertices])
        size, base = flat.max(0) - flat.min(0), plain.max(0) - plain.min(0)
        assert np.allclose(size / base, [3, 6, 3], rtol=0.12), size / base
        """,
    )


def test_ngons_zero_area_faces_and_loose_parts(tmp_path):
    run(
        tmp_path,
        """
        bpy.ops.mesh.primitive_cylinder_add(vertices=32)
        cylinder = bpy.context.object
        import bmesh
        bm = bmesh.new(); bm.from_mesh(cylinder.data)
        a, b, c = (bm.verts.new((2, 0, 0)) for _ in range(3)); bm.faces.new((a, b, c))
        bm.verts.new((5, 5, 5)); bm.edges.new((bm.verts.new((4, 0, 0)), bm.verts.new((4, 1, 0))))
        bm.to_mesh(cylinder.data)
        arrays = arrays_of(cylinder)
        assert len(arrays["positions"]) == 32 * 2 + 30 * 2 + 1
        # the tangents must be Blender's own: compare with those of a triangulated copy
        copy = cylinder.data.copy(); bm = bmesh.new(); bm.from_mesh(copy)
        bmesh.ops.triangulate(bm, faces=bm.faces[:]); bm.to_mesh(copy)
        copy.calc_tangents(uvmap=copy.uv_layers[0].name)
        table = {}
        def key(position, uv):
            return tuple(int(round(float(value) * 1000)) for value in (*position, *uv))
        for loop in copy.loops:
            where = key(copy.vertices[loop.vertex_index].co, copy.uv_layers[0].uv[loop.index].vector)
            table.setdefault(where, []).append(loop.tangent[:])
        positions, uvs, tangents = (arrays[name].reshape(-1, arrays[name].shape[-1]) for name in
                                    ("positions", "uvs", "tangents"))
        found = [table.get(key(p, uv)) for p, uv in zip(positions, uvs)]
        good = [max(np.dot(t[:3], n) for n in near) > 0.99 for t, near in zip(tangents, found) if near]
        assert len(good) > 300 and sum(good) >= len(good) - 3, (len(good), sum(good))
        """,
    )


def test_slots_shared_and_linked_data(tmp_path):
    run(
        tmp_path,
        """
        first, second = bpy.data.materials.new("first"), bpy.data.materials.new("second")
        cube.data.materials.clear(); cube.data.materials.append(first); cube.data.materials.append(second)
        cube.data.polygons[0].material_index = 1
        cube.active_material_index = 1; cube.patina.cover = "SLOT"
        arrays = arrays_of(cube)
        assert arrays["face_mask"].sum() == 2 and (arrays["material_slot"][arrays["face_mask"]] == 1).all()
        assert cube.material_slots[0].material is first and "patina_run" in cube.material_slots[1].material
        bpy.ops.patina.revert()
        cube.patina.cover = "OBJECT"
        arrays_of(cube)
        assert all("patina_run" in slot.material for slot in cube.material_slots)
        bpy.ops.patina.revert()
        assert [slot.material for slot in cube.material_slots] == [first, second]
        twin = bpy.data.objects.new("Twin", cube.data); bpy.context.scene.collection.objects.link(twin)
        arrays_of(cube)
        assert [slot.material for slot in twin.material_slots] == [first, second]
        assert {slot.link for slot in cube.material_slots} == {"OBJECT"}
        bpy.context.view_layer.objects.active = cube
        bpy.ops.patina.revert()
        assert [slot.material for slot in cube.material_slots] == [first, second]
        assert {slot.link for slot in cube.material_slots} == {"DATA"}
        bpy.data.objects.remove(twin); cube.data.materials.clear()
        arrays_of(cube)
        assert len(cube.material_slots) == 1
        bpy.ops.patina.revert()
        assert not cube.material_slots
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp / "library.blend"))
        bpy.ops.wm.read_homefile(use_empty=True)
        with bpy.data.libraries.load(str(tmp / "library.blend"), link=True) as (source, target):
            target.objects = ["Cube"]
        linked = target.objects[0]; bpy.context.scene.collection.objects.link(linked)
        bpy.context.view_layer.objects.active = linked
        assert "linked" in mesh_io.refusal(linked) and not bpy.ops.patina.generate.poll()
        """,
    )


def test_a_million_triangles(tmp_path):
    run(
        tmp_path,
        """
        bpy.ops.mesh.primitive_grid_add(x_subdivisions=708, y_subdivisions=708)
        grid = bpy.context.object
        grid.patina.prompt = "red"
        began = time.monotonic()
        generate.begin(bpy.context, grid, running)
        print("seconds", time.monotonic() - began)
        tick_until(lambda: not running.busy)
        assert running.status.message == "The maps are done."
        """,
    )


def test_a_uv_layer_that_is_gone_is_said(tmp_path):
    run(
        tmp_path,
        """
        from addon import variants
        def refused(run, sentence):
            try:
                bpy.ops.patina.variant_show(run=run); raise AssertionError("shown without its UVs")
            except RuntimeError as error:
                assert sentence in str(error), error
            assert not material.is_on(cube, run)
        cube.patina.prompt = "red"
        assert bpy.ops.patina.generate() == {"FINISHED"}
        run = variants.current(cube).run
        bpy.ops.patina.revert()
        uv_layers = cube.data.uv_layers
        uv_layers.remove(uv_layers[0])
        assert not uv_layers
        refused(run, "is gone, so the maps no longer fit")

        assert bpy.ops.patina.generate() == {"FINISHED"}
        run = variants.current(cube).run
        bpy.ops.patina.revert()
        uv_layers.remove(uv_layers["Patina"])
        for number in range(8): uv_layers.new(name=str(number))
        assert len(uv_layers) == 8
        refused(run, "no room for the UV layer Patina. Delete one of the eight.")
        uv_layers.remove(uv_layers["7"])
        assert bpy.ops.patina.variant_show(run=run) == {"FINISHED"} and "Patina" in uv_layers
        """,
    )
