# SPDX-License-Identifier: GPL-3.0-or-later
"""Presets, slots, UDIM tiles, and what is done beside runs: installing, the doctor, models."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402


def test_presets_tell_what_they_change(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import presets
        how = bpy.context.scene.patina
        lines = presets.changes(bpy.context.scene, presets.BUILT_IN["Hero Asset"])
        assert any("draft → high" in line for line in lines) and any("512 → 4096" in line for line in lines), lines
        for name in presets.BUILT_IN:
            assert bpy.ops.patina.preset_apply(name=name) == {"FINISHED"}
            assert presets.changes(bpy.context.scene, presets.BUILT_IN[name]) == []
        how.pattern_scale, how.steps = 3.0, 77
        assert bpy.ops.patina.preset_save(name="Mine") == {"FINISHED"}
        how.pattern_scale, how.steps = 1.0, 0
        assert bpy.ops.patina.preset_apply(name="Mine") == {"FINISHED"}
        assert how.pattern_scale == 3.0 and how.steps == 77
        assert bpy.ops.patina.preset_remove(name="Mine") == {"FINISHED"} and presets.users() == {}
        (generate.preferences.data_folder() / "presets.json").write_text('{"Broken": {"quality": "best"}}')
        for name, sentence in (("Broken", "quality cannot be used"), ("Nowhere", "Nowhere")):
            try:
                bpy.ops.patina.preset_apply(name=name); raise AssertionError(name)
            except RuntimeError as error:
                assert sentence in str(error), error
        """,
        limit=150,
    )


def test_control_start_and_method_reach_the_request_and_come_back(tmp_path):
    run_scenario(
        tmp_path,
        """
        how, scene = bpy.context.scene.patina, bpy.context.scene
        cube.patina.prompt = "red"
        def of(request):
            return request.control, request.control_kind, request.control_strength, request.start, request.guidance
        plain = settings.request_for(cube, scene, "cpu")
        assert of(plain) == ("", "", 1.0, "uniform", "clamped"), of(plain)
        how.control, how.control_kind, how.control_strength = "/nets/depth", "depth", 0.5
        how.start, how.guidance = "four_views", "none"
        made = settings.request_for(cube, scene, "cpu")
        assert of(made) == ("/nets/depth", "depth", 0.5, "four_views", "none"), of(made)
        how.control_kind = "auto"
        assert settings.request_for(cube, scene, "cpu").control_kind == "", "what the folder is called says it"
        how.guidance = "csd"
        assert settings.request_for(cube, scene, "cpu", refine=True).start == "uniform", "from maps"
        how.guidance = "none"
        def refused():
            try:
                settings.request_for(cube, scene, "cpu")
            except settings.SettingsProblem as problem:
                return str(problem)
        how.second_stage = "built-in"
        assert "nothing that Stage 2 goes on by" in refused()
        how.second_stage = ""
        cube.patina.reference.image = bpy.data.images.new("seen", 16, 16)
        assert "nothing follows the reference picture" in refused()
        cube.patina.reference.image = None
        assert refused() is None
        settings.take_over(plain, cube, scene)
        assert of(settings.request_for(cube, scene, "cpu")) == of(plain)
        settings.take_over(made, cube, scene)
        assert of(settings.request_for(cube, scene, "cpu")) == of(made)
        """,
    )


def test_one_set_of_maps_for_each_slot(tmp_path):
    run_scenario(
        tmp_path,
        """
        for _ in range(2): cube.data.materials.append(None)
        cube.data.polygons[0].material_index = 2
        cube.patina.cover, cube.patina.prompt = "EACH", "red"
        assert bpy.ops.patina.generate() == {"FINISHED"}
        assert [v.slot for v in cube.patina.variants] == [0, 2], "slot 1 has no faces"
        runs = [place.material and place.material.get("patina_run") for place in cube.material_slots]
        assert runs == [cube.patina.variants[0].run, None, cube.patina.variants[1].run], runs
        assert bpy.ops.patina.revert() == {"FINISHED"}
        assert [place.material and place.material.name for place in cube.material_slots] == ["Material", None, None]
        """,
        limit=150,
    )


def test_udim_tiles_are_refused_with_the_reason(tmp_path):
    run_scenario(
        tmp_path,
        """
        tiled = bpy.data.images.new("tiles", 8, 8, tiled=True)
        node = cube.material_slots[0].material.node_tree.nodes.new("ShaderNodeTexImage")
        node.image = tiled
        layer = cube.data.uv_layers[0]
        for face in cube.data.polygons:  # each face fills a tile of its own
            for corner, uv in zip(face.loop_indices, ((0, 0), (1, 0), (1, 1), (0, 1))):
                layer.uv[corner].vector = (uv[0] + face.index, uv[1])
        cube.data.update()
        text = generate_fails(cube, "red")
        assert "UDIM tiles 1001, 1002, 1003, 1004, 1005, 1006" in text, text
        node.image = None  # without tiled images it is a layout that Patina unwraps anew
        cube.patina.prompt = "red"
        assert bpy.ops.patina.generate() == {"FINISHED"}
        assert [l.name for l in cube.data.uv_layers] == ["UVMap", "Patina"]
        """,
        limit=150,
    )


def test_doctor_models_and_install_are_tasks_that_end(tmp_path):
    run_scenario(
        tmp_path,
        """
        from addon import environment, jobs, tasks
        source = running.package_root / "backend" / "__main__.py"
        model = '[{"id": "a/b", "licence": "free", "use": "", "gigabytes": 2, "here": true, "problem": ""}]'
        lines = ["import sys", "if sys.argv[1] == 'doctor':", "    print('ok  Python  3.11')",
                 "    print('!!  device  none'); sys.exit(1)", "print('a warning', file=sys.stderr)",
                 f"print({model!r})", "print('[W of a library] bye', file=sys.stderr)"]
        source.write_text(chr(10).join(lines))
        running.look_around()
        assert running.ready
        try:
            bpy.ops.patina.doctor(); raise AssertionError("a problem was not told")
        except RuntimeError as error:
            assert "device  none" in str(error)
        assert [line[:2] for line in running.task.lines] == ["ok", "!!"]
        assert bpy.ops.patina.list_models() == {"FINISHED"}
        assert running.models[0]["id"] == "a/b"
        assert settings._known_models(None, None, "a/") == ["a/b"]
        source.write_text("print('nothing to tell')")
        try:
            bpy.ops.patina.list_models(); raise AssertionError("no list, and no word")
        except RuntimeError as error:
            assert "did not tell which models" in str(error), error
        source.write_text(chr(10).join(lines))
        assert not bpy.ops.patina.install_backend.poll(), "it is installed"

        # for real, but from a folder that cannot serve
        import os
        named = os.environ.pop("PATINA_PYTHON")
        wheels = tmp / "wheels ä"; wheels.mkdir()
        jobs.preferences.preferred_python = lambda: Path(sys.executable)
        jobs.preferences.wheels = lambda: wheels
        running.look_around()
        assert not running.ready and not bpy.ops.patina.doctor.poll()
        try:
            bpy.ops.patina.install_backend(); raise AssertionError("installed from nothing")
        except RuntimeError as error:
            assert "There are no wheels" in str(error), error
        (jobs.preferences.data_folder() / "backend-env").mkdir()
        other = jobs.preferences.data_folder() / "worker" / "1-1" / "alive"
        other.parent.mkdir(parents=True)
        other.touch()
        for refused in (bpy.ops.patina.remove_backend, bpy.ops.patina.repair_backend):
            try:
                refused(); raise AssertionError("changed under another Blender")
            except RuntimeError as error:
                assert "Another Blender is using" in str(error), error
        other.unlink()
        assert not running.ready and bpy.ops.patina.remove_backend() == {"FINISHED"}
        assert not (jobs.preferences.data_folder() / "backend-env").exists()
        os.environ["PATINA_PYTHON"] = named
        """,
        limit=150,
    )


@pytest.mark.slow
def test_a_folder_that_lacks_a_wheel_is_told(tmp_path):
    run_scenario(
        tmp_path,
        """
        import os
        from addon import jobs
        del os.environ["PATINA_PYTHON"]
        wheels = tmp / "wheels ä"; wheels.mkdir()
        (wheels / "no-1-py3-none-any.whl").write_bytes(b"")
        jobs.preferences.preferred_python = lambda: Path(sys.executable)
        jobs.preferences.wheels = lambda: wheels
        running.look_around()
        try:
            bpy.ops.patina.install_backend(); raise AssertionError("installed from nothing")
        except RuntimeError as error:
            assert "could not be installed from" in str(error) and "ERROR" in str(error), error
        assert not running.ready
        """,
        limit=300,
    )


def test_out_of_memory_offers_a_smaller_try(tmp_path):
    run_scenario(
        tmp_path,
        """
        bpy.context.scene.patina.texture_size, bpy.context.scene.patina.quality = "2048", "high"
        generate_fails(cube, "failed")
        assert running.status.fix == "smaller"
        process = running._worker
        cube.patina.prompt = "red"
        other = bpy.data.objects.new("Other", cube.data.copy())
        bpy.context.scene.collection.objects.link(other)
        other.patina.prompt = "blue"
        bpy.context.view_layer.objects.active = other
        assert bpy.ops.patina.retry_smaller() == {"FINISHED"}
        assert process.poll() is not None, "its memory is free"
        assert bpy.context.scene.patina.texture_size == "1024" and bpy.context.scene.patina.quality == "draft"
        assert cube.patina.variants and not other.patina.variants, "the run that failed, whatever is selected now"
        assert running.status.fix == "" and running.status.message == "The maps are done."
        """,
        limit=150,
    )


def test_paths_of_the_preferences_do_not_follow_the_open_file(tmp_path):
    run_scenario(
        tmp_path,
        """
        import os
        from addon import preferences
        entry = bpy.context.preferences.addons.new()
        entry.module = addon.EXTENSION
        stored, usual = entry.preferences, preferences.data_folder()
        paths = {"data_folder": preferences.data_folder, "wheels": preferences.wheels,
                 "python": preferences.preferred_python}
        for name in paths: setattr(stored, name, "//data")
        assert preferences.data_folder() == usual and not os.path.exists("data"), "no .blend, no such place"
        assert preferences.wheels() is None and preferences.preferred_python() is None

        class Layout:
            labels = []
            def __getattr__(self, _name): return lambda *_args, text="", **_options: self.labels.append(text) or self
        class Shown:
            layout, device, python, data_folder, wheels = Layout(), "auto", "//data", str(tmp), ""
        preferences.PATINA_preferences.draw(Shown, None)
        assert sum("begins with //" in text for text in Layout.labels) == 1

        (tmp / "a").mkdir()
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp / "a" / "file.blend"))
        for name in paths: setattr(stored, name, "//../data")
        for read in paths.values(): assert read() == tmp / "data", read()
        assert stored.data_folder == str(tmp / "data")
        bpy.context.preferences.addons.remove(entry)
        """,
    )
