# SPDX-License-Identifier: GPL-3.0-or-later
"""A run inside bpy against a fake backend: result, failures, undo, saving, deletion. Each in a process of its own."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402


def test_a_run_leaves_a_readable_material_with_provenance(tmp_path):
    run_scenario(
        tmp_path,
        """
        old = cube.material_slots[0].material
        cube.patina.seed = 7
        cube.patina.prompt = "red glass"
        assert bpy.ops.patina.generate() == {"FINISHED"}
        made = cube.material_slots[0].material
        assert made is not old and made["patina_prompt"] == "red glass" and made["patina_seed"] == 7
        assert "texture_size" in made["patina_settings"]
        nodes = {node.label: node for node in made.node_tree.nodes}
        assert nodes["UVs"].uv_map == "UVMap"
        for label, data in (("Base Color", False), ("Metallic", True), ("Roughness", True), ("Normal", True)):
            image = nodes[label].image
            assert tuple(image.size) == (512, 512) and image.packed_file is None
            assert image.colorspace_settings.is_data == data, label
            assert Path(bpy.path.abspath(image.filepath)).is_file()
            assert nodes[label].inputs["Vector"].links[0].from_node == nodes["UVs"]
        shader = nodes["Principled"]
        for name in ("Base Color", "Metallic", "Roughness"):
            assert shader.inputs[name].links[0].from_node == nodes[name]
        assert shader.inputs["Normal"].links[0].from_node == nodes["Normal Map"]
        assert nodes["Normal Map"].inputs["Color"].links[0].from_node == nodes["Normal"]
        places = [tuple(node.location) for node in made.node_tree.nodes]
        assert len(set(places)) == len(places), "nodes lie on each other"
        pixels = np.empty(512 * 512 * 4, np.float32)
        nodes["Base Color"].image.pixels.foreach_get(pixels)
        assert abs(pixels[0] - 1.0) < 0.01 and pixels[2] < 0.1
        assert "glass" in running.status.warnings
        assert bpy.ops.patina.revert() == {"FINISHED"}
        assert cube.material_slots[0].material is old and not material.can_restore(cube)
        """,
    )


@pytest.mark.parametrize(
    ("prompt", "sentence", "limit_s"),
    [
        ("slow killed", "SIGKILL", 4.0),
        ("rubbish", "does not understand", 9.0),
        ("outside", "leads out of the job folder", 9.0),
        ("failed", "Choose a smaller texture size", 4.0),
        ("refused", "No material word", 4.0),
    ],
)
def test_a_failing_backend_is_told_and_the_old_material_is_back(tmp_path, prompt, sentence, limit_s):
    run_scenario(
        tmp_path,
        f"""
        old = cube.material_slots[0].material
        before = time.monotonic()
        text = generate_fails(cube, {prompt!r})
        assert time.monotonic() - before < {limit_s}, time.monotonic() - before
        assert {sentence!r} in text, text
        assert running.ended.output.exists() == running.ended.shown != ({prompt!r} == "refused")
        assert running.status.level == "ERROR" and cube.material_slots[0].material is old
        assert bpy.context.window_manager.patina.message == running.status.message
        cube.patina.prompt = "fine again"
        assert bpy.ops.patina.generate() == {{"FINISHED"}}
        """,
    )


def test_a_stopped_backend_is_told_and_ended(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import jobs, worker
        jobs._SILENT_GIVE_UP_S = worker.STUCK_AFTER_S = 1.5
        text = generate_fails(cube, "slow stopped")
        assert "did not react" in text, text
        assert running._worker.poll() is not None
        """,
    )


def test_cancel_keeps_the_partial_maps(tmp_path):
    run_scenario(
        tmp_path,
        """
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 3)
        assert not bpy.ops.patina.retry_smaller.poll(), "it would end the backend under the run"
        assert bpy.ops.patina.cancel() == {"FINISHED"} and not bpy.ops.patina.cancel.poll()
        tick_until(lambda: not running.busy)
        assert "Cancelled" in running.status.message
        image = images.find(cube.material_slots[0].material["patina_run"])["base_color"]
        assert tuple(image.size) == (512, 512)
        start(cube, "slow silent")  # deaf in the start phase: the escalation ends it
        tick_until(lambda: running.status.stage != "")
        running.cancel()
        tick_until(lambda: not running.busy)
        assert "Cancelled" in running.status.message
        """,
    )


def test_a_deaf_backend_is_terminated_then_killed(tmp_path):
    run_scenario(
        tmp_path,
        """
        start(cube, "deaf")
        tick_until(lambda: running.status.step >= 4)
        time.sleep(0.3)
        running.cancel()
        tick_until(lambda: not running.busy, 9.0)
        assert "Cancelled" in running.status.message and running._worker.poll() is not None
        """,
    )


def test_a_flood_of_events_never_makes_a_long_tick(tmp_path):
    run_scenario(
        tmp_path,
        """
        start(cube, "flood")
        longest = 0.0
        while running.busy:
            began = time.process_time()
            running.tick()
            longest = max(longest, time.process_time() - began)
            time.sleep(0.01)
        assert running.status.message == "The maps are done.", running.status
        assert longest < 0.05, longest
        """,
    )


def test_deleted_renamed_and_undone_mid_run(tmp_path):
    run_scenario(
        tmp_path,
        """
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 2)
        cube.name = "Renamed"
        tick_until(lambda: running.status.step >= 5)
        assert placing.attached_images(running.job.place), "a rename must not detach"
        bpy.data.materials.remove(cube.material_slots[0].material)
        for image in list(images.find(running.job.place.run).values()):
            bpy.data.images.remove(image)
        tick_until(lambda: "Apply" in running.status.note)
        tick_until(lambda: not running.busy)
        assert running.status.waiting_result and bpy.ops.patina.apply.poll()
        assert bpy.ops.patina.apply() == {"FINISHED"}
        assert material.is_on(cube, cube.material_slots[0].material["patina_run"])
        assert tuple(images.find(cube.material_slots[0].material["patina_run"])["normal"].size) == (512, 512)
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 2)
        bpy.data.objects.remove(cube)
        tick_until(lambda: not running.busy)
        assert "done" in running.status.message and not bpy.ops.patina.apply.poll()
        """,
    )


def test_another_file_mid_run_detaches_and_the_same_file_attaches_again(tmp_path):
    run_scenario(
        tmp_path,
        """
        file = str(tmp / "a.blend")
        bpy.ops.wm.save_as_mainfile(filepath=file)
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 2)
        bpy.ops.wm.save_mainfile()
        bpy.ops.wm.read_homefile(use_empty=False)
        tick_until(lambda: "Apply" in running.status.note)
        assert not material.can_restore(bpy.data.objects["Cube"])
        bpy.ops.wm.open_mainfile(filepath=file)
        tick_until(lambda: not running.busy)
        cube = bpy.data.objects["Cube"]
        assert running.status.message == "The maps are done.", running.status
        image = images.find(cube.material_slots[0].material["patina_run"])["base_color"]
        assert image.filepath.startswith("//patina/Cube/0001"), image.filepath
        assert tuple(image.size) == (512, 512)
        """,
    )


def test_maps_of_an_unsaved_file_follow_it_when_it_is_saved(tmp_path):
    run_scenario(
        tmp_path,
        """
        cube.patina.prompt = "x"
        bpy.ops.patina.generate()
        run = cube.material_slots[0].material["patina_run"]
        assert "unsaved" in images.find(run)["normal"].filepath
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 2)
        (tmp / "projekt ä").mkdir()
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp / "projekt ä" / "b.blend"))
        tick_until(lambda: not running.busy)
        newest = cube.material_slots[0].material["patina_run"]
        for image in images.find(newest).values():
            assert image.filepath.startswith("//patina/Cube/000"), image.filepath
            assert Path(bpy.path.abspath(image.filepath)).is_file() and tuple(image.size) == (512, 512)
        bpy.ops.wm.open_mainfile(filepath=str(tmp / "projekt ä" / "b.blend"))
        assert all(tuple(image.size) == (512, 512) for image in images.find(newest).values())
        assert bpy.context.window_manager.patina.busy is False
        import os
        markers = list(generate.unsaved_root().glob("*/*/moved"))
        assert len(markers) == 2, "both runs of the file have followed it"
        os.utime(markers[0], (1, 1))
        addon.unregister(); addon.register()
        assert not markers[0].parent.exists() and markers[1].exists()
        """,
    )


def test_refusals_change_nothing(tmp_path):
    run_scenario(
        tmp_path,
        """
        def state():
            return (len(bpy.data.images), len(bpy.data.materials), len(bpy.data.meshes), len(bpy.data.objects),
                    [layer.name for layer in cube.data.uv_layers], cube.material_slots[0].material)
        before = state()
        cube.patina.prompt = "   "
        assert not bpy.ops.patina.generate.poll()
        cube.data.vertices[0].co.x = float("nan")
        assert "NaN" in generate_fails(cube, "x") and state() == before
        cube.data.vertices[0].co.x = -1
        cube.scale.y = 0
        bpy.context.view_layer.update()
        assert "scaled to zero" in generate_fails(cube, "x") and state() == before
        cube.scale.y = 1
        cube.data.uv_layers.remove(cube.data.uv_layers[0])
        for index in range(8):
            cube.data.uv_layers.new(name=f"full{index}", do_init=False)
        before = state()
        assert "no room for a new UV layer" in generate_fails(cube, "x") and state() == before
        lamp = bpy.data.objects["Light"]
        bpy.context.view_layer.objects.active = lamp
        assert not bpy.ops.patina.generate.poll()
        bpy.context.view_layer.objects.active = cube
        bpy.ops.object.mode_set(mode="EDIT")
        assert not bpy.ops.patina.generate.poll()
        """,
    )


def test_a_full_disk_is_told(tmp_path):
    run_scenario(
        tmp_path,
        """
        import errno
        def full(source, target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real, images.replace_file = images.replace_file, full
        text = generate_fails(cube, "x")
        assert "No space left" in text and "Free some space" in text, text
        images.replace_file = real
        cube.patina.prompt = "x"
        assert bpy.ops.patina.generate() == {"FINISHED"}
        """,
    )


def test_a_run_that_fails_leaves_the_maps_that_were_in_its_output_folder(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import command
        out = tmp / "maps"
        def patina(prompt):
            return command._execute(["run", "--object", "Cube", "--prompt", prompt, "--out", str(out)])
        assert patina("red") == 0
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        assert {f"{name}.png" for name in protocol.MAP_NAMES} <= before.keys()
        assert patina("failed") == 1 and patina("killed") == 1
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert not list((generate.unsaved_root() / "Cube").iterdir()), "nothing is left elsewhere"
        """,
        limit=150,
    )
