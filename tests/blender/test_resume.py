# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that were paused, or whose Blender went away, are found again and gone on with."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402


def test_pause_frees_the_process_and_resume_goes_on(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import variants
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 5)
        process, run = running._worker, running.job.place.run
        assert bpy.ops.patina.pause() == {"FINISHED"} and not bpy.ops.patina.pause.poll()
        tick_until(lambda: not running.busy)
        end = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < end: time.sleep(0.05)
        assert process.poll() is not None, "a paused run must not keep its memory"
        assert "Paused." in running.status.message and running.status.level == "INFO"
        assert [left.ending for left in running.left] == ["paused"] and running.left[0].fraction > 0
        assert bpy.ops.patina.resume(run=run) == {"FINISHED"}
        assert running.status.message == "The maps are done." and not running.left, running.status
        assert len(cube.patina.variants) == 1 and tuple(images.find(run)["normal"].size) == (512, 512)
        folder = protocol.JobFolder(generate.preferences.data_folder() / "jobs" / run)
        assert len(folder.attempts()) == 2 and not folder.previews.exists(), "thinned"
        """,
        limit=180,
    )


def test_after_a_crash_the_file_opened_again_resumes(tmp_path):
    run_scenario(
        tmp_path,
        """
        import os
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp / "a.blend"))
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 3)
        print("scenario ended", flush=True)
        os.kill(running._worker.pid, 9)  # with it, or the fake one would work on to its end
        os._exit(0)
        """,
        limit=180,
    )
    run_scenario(
        tmp_path,
        """
        from addon import interrupted, variants
        running.look_around()
        deadline = time.monotonic() + 20
        while not running.left and time.monotonic() < deadline:  # its backend may live a moment longer
            time.sleep(0.2); running.look_around()
        left = running.left[0]
        assert left.ending == "interrupted" and left.place.object_name == "Cube"
        try:
            bpy.ops.patina.resume(run=left.place.run)
            raise AssertionError("resumed in another file")
        except RuntimeError as error:
            assert "Open that file first" in str(error), error
        bpy.ops.wm.open_mainfile(filepath=str(tmp / "a.blend"))
        cube = bpy.data.objects["Cube"]
        assert not cube.patina.variants, "it was not saved"
        running.look_around()
        assert bpy.ops.patina.resume(run=left.place.run) == {"FINISHED"}
        assert variants.current(cube).run == left.place.run and running.status.message == "The maps are done."
        assert tuple(images.find(left.place.run)["normal"].size) == (512, 512) and not running.left

        # a job that came to its end without anybody taking its maps
        start(cube, "red")
        run, folder, output = running.job.place.run, running.job.folder, running.job.output
        place = (folder.path / interrupted.PLACE).read_bytes()
        tick_until(lambda: not running.busy)
        run_again = protocol.JobFolder(folder.path)
        for name in protocol.MAP_NAMES:  # as if Blender had died before it took them
            (run_again.maps).mkdir(exist_ok=True)
            images.map_file(output, name).replace(run_again.maps / f"{name}.png")
        (folder.path / interrupted.PLACE).write_bytes(place)
        images.write_plain(output)
        running.look_around()
        assert [one.ending for one in running.left] == ["done"]
        assert bpy.ops.patina.resume(run=run) == {"FINISHED"} and not running.busy
        assert tuple(images.find(run)["normal"].size) == (512, 512) and not running.left

        start(cube, "slow")
        tick_until(lambda: running.status.step >= 3)
        run = running.job.place.run
        bpy.ops.patina.pause(); tick_until(lambda: not running.busy)
        bpy.ops.patina.discard(run=run)
        assert not running.left and not (generate.preferences.data_folder() / "jobs" / run).exists()
        assert variants.find(cube, run) is not None, "what it has shown stays"

        import os
        jobs_folder = generate.preferences.data_folder() / "jobs"
        made = (("old-done", 2, False), ("new-done", 0, False), ("paused", 20, True), ("lost", 31, True))
        for name, age, marked in made:
            (jobs_folder / name).mkdir()
            if marked: (jobs_folder / name / interrupted.PLACE).touch()
            os.utime(jobs_folder / name, (time.time() - age * 86400,) * 2)
        interrupted.thin(jobs_folder)
        kept = {p.name for p in jobs_folder.iterdir()} & {name for name, _, _ in made}
        assert kept == {"new-done", "paused"}, kept
        """,
        limit=180,
    )


def test_a_run_paused_in_an_unsaved_file_leaves_its_maps_beside_the_file_saved_since(tmp_path):
    run_scenario(
        tmp_path,
        """
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 3)
        run = running.job.place.run
        assert bpy.ops.patina.pause() == {"FINISHED"}
        tick_until(lambda: not running.busy)
        (tmp / "project").mkdir()
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp / "project" / "a.blend"))
        assert bpy.ops.patina.resume(run=run) == {"FINISHED"} and running.status.message == "The maps are done."
        for image in images.find(run).values():
            file = Path(bpy.path.abspath(image.filepath))
            assert file.is_relative_to(tmp / "project") and tuple(image.size) == (512, 512), file
        """,
        limit=180,
    )


def test_what_waits_behind_a_paused_run_is_found_again_and_a_pausing_run_can_be_cancelled(tmp_path):
    run_scenario(
        tmp_path,
        """
        bpy.ops.mesh.primitive_uv_sphere_add(segments=16, ring_count=8, location=(3, 0, 0))
        ball = bpy.context.object
        start(cube, "slow"); start(ball, "red")
        tick_until(lambda: running.status.step >= 3)
        assert bpy.ops.patina.pause() == {"FINISHED"} and bpy.ops.patina.cancel.poll(), "a step may take long"
        tick_until(lambda: not running.busy)
        assert sorted((left.place.object_name, left.ending) for left in running.left) == [
            ("Cube", "paused"), (ball.name, "interrupted")], running.left
        (waited,) = [left for left in running.left if left.ending == "interrupted"]
        assert bpy.ops.patina.resume(run=waited.place.run) == {"FINISHED"}
        assert running.status.message == "The maps are done." and material.is_on(ball, waited.place.run)
        """,
        limit=180,
    )
