# SPDX-License-Identifier: GPL-3.0-or-later
"""Variants, refinements and their limits inside bpy against the fake backend."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402


def test_runs_are_kept_shown_pinned_and_deleted(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import variants
        old = cube.material_slots[0].material
        def make(prompt, seed):
            cube.patina.prompt, cube.patina.seed = prompt, seed
            assert bpy.ops.patina.generate() == {"FINISHED"}
            return variants.current(cube).run
        first, second = make("red", 1), make("slow blue", 2)
        assert [v.run for v in cube.patina.variants] == [first, second]
        assert len(cube.patina.kept_slots) == 1, "what was there before Patina is kept once"
        folder = variants.folder_of(variants.find(cube, first))
        assert (folder / "picture.png").is_file() and (folder / "report.json").is_file()
        running.look_around()
        assert first in running.pictures._read and running.pictures.bytes[first] > 1000, running.pictures.bytes

        assert bpy.ops.patina.variant_show(run=first) == {"FINISHED"}
        assert material.is_on(cube, first) and not material.is_on(cube, second)
        cube.patina.prompt = ""
        bpy.context.scene.patina.quality = "high"
        assert bpy.ops.patina.variant_use_settings(run=second) == {"FINISHED"}
        assert cube.patina.prompt == "slow blue" and cube.patina.seed == 2
        assert bpy.context.scene.patina.quality == "draft"

        def stays(run, sentence):
            try:
                bpy.ops.patina.variant_delete(run=run)
                raise AssertionError("deleted what must stay")
            except RuntimeError as error:
                assert sentence in str(error), error
        bpy.ops.patina.variant_pin(run=second)
        stays(second, "pinned")
        bpy.ops.patina.variant_pin(run=second)
        other = bpy.data.objects.new("Other", cube.data.copy())
        bpy.context.scene.collection.objects.link(other)
        other.data.materials[0] = variants.find(cube, second).material
        stays(second, "is on Other")
        bpy.data.objects.remove(other)
        gone = variants.folder_of(variants.find(cube, second))
        (gone / "notes.txt").write_text("the user's own")
        assert bpy.ops.patina.variant_delete(run=second) == {"FINISHED"}
        assert [p.name for p in gone.iterdir()] == ["notes.txt"] and not images.find(second)
        assert [v.run for v in cube.patina.variants] == [first] and material.is_on(cube, first)

        third, fourth = make("green", 3), make("white", 4)
        assert bpy.ops.patina.variant_delete(run=fourth) == {"FINISHED"} and material.is_on(cube, third)
        assert bpy.ops.patina.variant_delete(run=third) == {"FINISHED"} and material.is_on(cube, first)

        assert bpy.ops.patina.revert() == {"FINISHED"}
        assert cube.material_slots[0].material is old and not material.can_restore(cube)
        assert bpy.ops.patina.variant_show(run=first) == {"FINISHED"} and material.is_on(cube, first)
        file = str(tmp / "a.blend")
        bpy.ops.wm.save_as_mainfile(filepath=file)
        bpy.ops.wm.open_mainfile(filepath=file)
        cube = bpy.data.objects["Cube"]
        kept = cube.patina.variants[0]
        assert kept.run == first and variants.folder_of(kept) == tmp / "patina" / "Cube" / "0001"
        assert {p.name for p in variants.folder_of(kept).iterdir()} >= {"normal.png", "picture.png", "report.json"}
        bpy.ops.patina.revert(); bpy.data.materials.remove(kept.material)
        for image in list(images.find(first).values()): bpy.data.images.remove(image)
        bpy.context.view_layer.objects.active = cube
        assert bpy.ops.patina.variant_show(run=first) == {"FINISHED"}, "made again from its files"
        assert tuple(images.find(first)["normal"].size) == (512, 512)
        """,
        limit=150,
    )


def test_a_failed_run_leaves_the_variant_that_was_there(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import variants
        cube.patina.prompt = "red"
        bpy.ops.patina.generate()
        first = variants.current(cube).run
        generate_fails(cube, "failed")
        assert material.is_on(cube, first) and len(cube.patina.variants) == 1
        """,
        limit=150,
    )


def test_more_seeds_wait_in_a_queue_and_cancel_takes_it_apart(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import variants
        cube.patina.prompt = "red"
        bpy.ops.patina.generate()
        first = variants.current(cube).run
        assert bpy.ops.patina.more_seeds(count=4) == {"FINISHED"}
        seeds = [v.seed for v in cube.patina.variants]
        assert len(seeds) == 5 == len(set(seeds)), seeds
        assert all(variants.has_maps(v) and (variants.folder_of(v) / "report.json").is_file()
                   for v in cube.patina.variants)
        bpy.ops.patina.variant_show(run=first)
        for number in range(3):
            cube.patina.prompt = "slow"
            generate.begin(bpy.context, cube, running, show=number == 0, seed=number)
        tick_until(lambda: running.status.step > 2)
        bpy.ops.patina.variant_show(run=first)
        try:
            bpy.ops.patina.variant_delete(run=running.job.place.run); raise AssertionError("deleted what is being made")
        except RuntimeError as error:
            assert "being made" in str(error), error
        assert running.status.queued == 2 == len(running.waiting) and len(cube.patina.variants) == 8
        jobs_before = set((generate.preferences.data_folder() / "jobs").iterdir())
        waiting = [job.output for job in running.waiting]
        assert bpy.ops.patina.cancel() == {"FINISHED"}
        tick_until(lambda: not running.busy)
        assert len(cube.patina.variants) == 6 and not any(path.exists() for path in waiting)
        assert "Cancelled" in running.status.message
        """,
        limit=150,
    )


def test_several_selected_objects_are_textured_one_by_one(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import variants
        bpy.ops.mesh.primitive_uv_sphere_add(segments=8, ring_count=6)
        ball = bpy.context.object
        ball.patina.prompt = "blue"
        cube.select_set(True)
        bpy.context.view_layer.objects.active = cube
        cube.patina.prompt = "slow"
        for obj in generate.chosen_objects(bpy.context):
            generate.begin(bpy.context, obj, running)
        assert [job.place.object_name for job in (running.job, *running.waiting)] == ["Cube", "Sphere"]
        tick_until(lambda: not running.busy)
        assert variants.current(ball).prompt == "blue" and variants.current(cube).prompt == "slow"
        assert all(tuple(i.size) == (512, 512) for v in (variants.current(ball), variants.current(cube))
                   for i in images.find(v.run).values())
        start(cube, "slow")  # and one that is added while another runs
        tick_until(lambda: running.status.step > 2)
        assert not generate.refusal(running, ball)
        ball.patina.prompt = "added"
        generate.begin(bpy.context, ball, running)
        assert running.status.queued == 1 and running.status.object_name == "Cube"
        tick_until(lambda: not running.busy)
        assert variants.current(ball).prompt == "added" and variants.has_maps(variants.current(ball))
        """,
        limit=150,
    )


def test_refine_takes_maps_mask_and_locks_along(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import limits, png, variants
        cube.patina.prompt, cube.patina.seed = "red", 3
        bpy.ops.patina.generate()
        first = variants.current(cube)
        run = first.run
        within = cube.patina.limits
        within.region, within.lock_normal, within.border, within.strength = "FACES", True, 0.1, 0.7
        for face in cube.data.polygons: face.select = False
        cube.patina.prompt = "kept slow"
        def refine():
            generate.begin(bpy.context, cube, running, start=run)
            job = running.job
            return job, job.folder.read_request(), np.load(job.folder.mesh)["face_mask"]
        try:
            refine(); raise AssertionError("nothing is selected")
        except limits.LimitsProblem as error:
            assert "No face of Cube is selected" in str(error)
        assert len(cube.patina.variants) == 1 and material.is_on(cube, run)
        cube.data.polygons[2].select = True
        bpy.context.scene.patina.texture_size = "1024"
        job, request, mask = refine()
        assert mask.sum() == 2 and len(mask) == 12
        assert request.start_maps and request.locked_maps == ["normal"] and abs(request.strength - 0.7) < 1e-6
        assert request.texture_size == 512, "with a mask the maps keep their size"
        for name in protocol.MAP_NAMES:
            wanted = images.map_file(variants.folder_of(variants.find(cube, run)), name).read_bytes()
            assert (job.folder.start / f"{name}.png").read_bytes() == wanted
        tick_until(lambda: not running.busy)
        assert variants.current(cube).parent == run and len(cube.patina.variants) == 2

        group = cube.vertex_groups.new(name="top")
        group.add([v.index for v in cube.data.vertices if v.co.z > 0], 1.0, "REPLACE")
        within.region, within.vertex_group = "GROUP", "top"
        cube.modifiers.new("s", "SUBSURF").levels = 1
        job, request, mask = refine()
        height = np.load(job.folder.mesh)["positions"][..., 2].mean(1)
        assert 0 < mask.sum() < len(mask) and height[mask].min() > height[~mask].min()
        running.cancel(); tick_until(lambda: not running.busy)
        bpy.context.scene.patina.texture_size = "512"
        for name in protocol.MAP_NAMES:  # as large as they are, whatever their run was asked for
            path = images.map_file(variants.folder_of(variants.find(cube, run)), name)
            path.write_bytes(png.encode(np.full((1024, 1024, 3), 128, np.uint8)))
        assert refine()[1].texture_size == 1024
        running.cancel(); tick_until(lambda: not running.busy)
        cube.modifiers.clear()

        cube.data.materials.append(None)
        cube.data.polygons[0].material_index = 1
        cube.active_material_index = 1
        within.region = "SLOT"
        job, request, mask = refine()
        assert mask.sum() == 2
        running.cancel(); tick_until(lambda: not running.busy)

        painted = bpy.data.images.new("mask", 8, 8)
        values = np.zeros((8, 8, 4), np.float32); values[..., 3] = 1; values[0, :, :3] = 1
        painted.pixels.foreach_set(values.ravel())
        within.region, within.image = "IMAGE", painted
        job, request, mask = refine()
        back = bpy.data.images.load(str(job.folder.mask))
        rows = np.array(back.pixels).reshape(8, 8, -1)[..., 0]
        assert tuple(back.size) == (8, 8) and rows[0].min() == 1 and rows[1:].max() == 0 and mask.all()
        running.cancel(); tick_until(lambda: not running.busy)

        maps = images.find(run)
        maps["base_color"].pixels[0] = 0.0  # painted on, not saved
        within.region = "ALL"
        job, request, mask = refine()
        start = bpy.data.images.load(str(job.folder.start / "base_color.png"))
        assert start.pixels[0] == 0.0 and maps["base_color"].pixels[4] == start.pixels[4]
        running.cancel(); tick_until(lambda: not running.busy)
        cube.data.uv_layers[0].name = "Other"
        try:
            refine(); raise AssertionError("the maps do not fit")
        except variants.VariantProblem as error:
            assert "was made for the UV layer UVMap" in str(error), error
        """,
        limit=150,
    )


def test_deleting_a_variant_leaves_the_folder_alone_that_its_images_were_moved_to(tmp_path):
    run_scenario(
        tmp_path,
        """
        import shutil
        start(cube, "red"); tick_until(lambda: not running.busy)
        first = running.ended.place.run
        start(cube, "red"); tick_until(lambda: not running.busy)
        shared = tmp / "textures"; shared.mkdir()
        for image in images.find(first).values():  # as Unpack does, or Save As
            shutil.copy(bpy.path.abspath(image.filepath), shared)
            image.filepath = str(shared / Path(image.filepath).name)
        (shared / "report.json").write_text("somebody else's")
        before = sorted(path.name for path in shared.iterdir())
        assert bpy.ops.patina.variant_delete(run=first) == {"FINISHED"}
        assert sorted(path.name for path in shared.iterdir()) == before and len(before) == 5
        """,
        limit=150,
    )


def test_other_seeds_are_of_the_same_slot_and_of_the_same_start(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import variants
        cube.data.materials.append(bpy.data.materials.new("Other"))
        for face in cube.data.polygons: face.material_index = face.index % 2
        cube.active_material_index, cube.patina.cover, cube.patina.prompt = 1, "SLOT", "red"
        assert bpy.ops.patina.generate() == {"FINISHED"}
        first = variants.current(cube).run
        cube.patina.cover = "OBJECT"
        def seed():
            assert bpy.ops.patina.more_seeds(count=1) == {"FINISHED"}
            made = variants.current(cube)
            assert made.slot == 1 and cube.material_slots[0].material.name == "Material", made.slot
            return made
        assert not seed().parent
        assert bpy.ops.patina.refine(run=first) == {"FINISHED"}
        assert variants.current(cube).parent == first and seed().parent == first
        bpy.context.scene.patina.guidance = "none"
        try:
            bpy.ops.patina.refine(run=first); raise AssertionError("nothing refines")
        except RuntimeError as error:
            assert "Choose one under Advanced" in str(error), error
        """,
        limit=120,
    )
