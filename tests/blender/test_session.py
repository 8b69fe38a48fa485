# SPDX-License-Identifier: GPL-3.0-or-later
"""Around a run: building the environment, online access, rendering meanwhile, seeds, ending Blender."""

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402

_BUILD = """
import os
from addon import environment
ready = [False]
environment.environment_ready = lambda folder, recipe=None: ready[0]
class Build:
    def __init__(self, folder, pythons, wheels=None, workers=None):
        self.folder, self.pythons, self.log = folder, pythons, tmp / "l"
        self.error, self.finished, self.count = "", False, 0
        builds.append(self)
    def tick(self):
        self.count += 1
        if self.count > 5 and not hold: self.finished, ready[0], self.error = True, not fail, fail
        return self.count / 10, "Installing torch"
    def cancel(self):
        self.finished, self.error = True, "The installation was cancelled."
builds, hold, fail = [], False, ""
environment.EnvironmentBuild = Build
class Online:
    def __getattr__(self, name): return online if name == "online_access" else getattr(real, name)
real, online = bpy.app, True
class Bpy:
    def __getattr__(self, name): return Online() if name == "app" else getattr(bpy, name)
generate.bpy = Bpy()
"""


def run(tmp_path, body):
    import textwrap

    return run_scenario(tmp_path, _BUILD + textwrap.dedent(body))


def test_the_environment_is_built_first(tmp_path):
    run(
        tmp_path,
        """
        start(cube, "red")
        running.tick()
        assert running.busy and "Installing" in running.status.stage and running.status.note == "Installing torch"
        assert bpy.context.window_manager.patina.fraction > 0 or running.status.fraction > 0
        tick_until(lambda: not running.busy)
        assert running.status.message == "The maps are done." and len(builds) == 1
        """,
    )


def test_a_build_that_fails_or_is_cancelled_is_told(tmp_path):
    run(
        tmp_path,
        """
        fail = "There is no Python 3.11 to 3.13. Install one."
        text = generate_fails(cube, "red")
        assert "could not be installed" in text and "Install one" in text, text
        assert cube.material_slots[0].material.name == "Material"
        fail, hold = "", True
        start(cube, "red")
        running.tick(); running.tick()
        running.cancel()
        tick_until(lambda: not running.busy, 2.0)
        assert "Cancelled" in running.status.message and builds[-1].finished
        """,
    )


def test_generate_waits_for_an_installation_that_is_under_way(tmp_path):
    run(
        tmp_path,
        """
        from addon import tasks
        hold = True
        running.task = tasks.Install(Build(None, None))
        cube.patina.prompt = "red"
        assert generate.refusal(running, cube) == "Wait: Installing the backend"
        running.task.cancel()
        assert generate.refusal(running, cube) == ""
        """,
    )


def test_a_backend_that_cannot_even_be_killed_does_not_hold_blender_up(tmp_path):
    run(
        tmp_path,
        """
        ready[0] = True
        start(cube, "red slow")
        tick_until(lambda: running.job.attempt is not None and running.status.step > 0)
        held, log = running._worker, str(running._worker.log)
        poll, stop, asked = held.poll, held.stop, []
        held.poll, held.stop = lambda: None, lambda timeout: asked.append(timeout)
        running._give_up(running.job, "It did not react.", "Try again.")
        running.job.last_event -= 60
        tick_until(lambda: not running.busy, 2.0)
        assert asked == [0.0] and running.status.log == log
        assert "It did not react." in running.status.message, running.status.message
        del held.poll, held.stop
        held.stop()
        start(cube, "red")
        tick_until(lambda: not running.busy)
        assert running.status.message == "The maps are done." and running._worker is not held
        """,
    )


def test_without_online_access_nothing_is_downloaded(tmp_path):
    run(
        tmp_path,
        """
        online = False
        text = generate_fails(cube, "red")
        assert "may not go online" in text and not builds and "Material" == cube.material_slots[0].material.name
        ready[0] = True
        cube.patina.prompt = "red"
        assert bpy.ops.patina.generate() == {"FINISHED"}
        """,
    )


def test_nothing_is_touched_while_blender_renders(tmp_path):
    run(
        tmp_path,
        """
        from addon import jobs
        ready[0] = True
        rendering = [True]
        jobs._blender_is_rendering = lambda: rendering[0]
        start(cube, "red")
        run_id = running.job.place.run
        tick_until(lambda: running.job.outcome is not None)
        for _ in range(20): running.tick()
        assert running.busy and all(image.size[0] == 16 for image in images.find(run_id).values())
        rendering[0] = False
        tick_until(lambda: not running.busy)
        assert all(image.size[0] == 512 for image in images.find(run_id).values())
        """,
    )


def test_seeds(tmp_path):
    run(
        tmp_path,
        """
        what = cube.patina
        settings.roll_seed(cube); first = what.seed
        settings.roll_seed(cube); assert what.seed != first, "unlocked: a new one"
        what.seed = 7
        settings.roll_seed(cube); assert what.seed == 7, "typed: kept for this run"
        settings.roll_seed(cube); assert what.seed != 7, "and rolled for the next"
        what.seed_locked = True; what.seed = 9
        settings.roll_seed(cube); settings.roll_seed(cube); assert what.seed == 9
        """,
    )


def test_the_process_ends_with_the_addon(tmp_path):
    run(
        tmp_path,
        """
        ready[0] = True
        start(cube, "endless")
        tick_until(lambda: running.status.step > 1)
        process = running._worker
        addon.unregister()
        assert process.poll() is not None
        addon.register()
        assert not session.current().busy
        """,
    )


def test_packed_and_painted_images(tmp_path):
    run(
        tmp_path,
        """
        ready[0] = True
        start(cube, "slow")
        tick_until(lambda: running.status.step >= 2)
        maps = images.find(running.job.place.run)
        maps["metallic"].pack()
        tick_until(lambda: running.status.step >= 10)
        assert maps["metallic"].packed_file is not None
        maps["base_color"].pixels[0] = 0.123
        assert maps["base_color"].is_dirty
        tick_until(lambda: "painted" in running.status.note)
        tick_until(lambda: not running.busy)
        assert abs(maps["base_color"].pixels[0] - 0.123) < 0.01, "painted pixels are the user's"
        assert bpy.ops.patina.apply() == {"FINISHED"}
        assert abs(maps["base_color"].pixels[0] - 0.123) < 0.01 and len(images.find(running_run())) == 4
        """.replace("running_run()", 'cube.material_slots[0].material["patina_run"]'),
    )
