# SPDX-License-Identifier: GPL-3.0-or-later
"""The mouse on the buttons of the installed extension in a real Blender window; the backend is the fake one."""

import os
import shutil
import signal
import time

import pytest

from . import window
from .test_real_program import BLENDER, environment, fresh_user, installed  # noqa: F401  (fixtures)

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        not BLENDER or not all(shutil.which(tool) for tool in window.TOOLS),
        reason="needs $BLENDER, Xvfb, xdotool and ImageMagick",
    ),
]


_FAST = "\nbpy.context.scene.patina.texture_size = '512'\n"


@pytest.fixture
def blender_window(installed):  # noqa: F811
    fake = (installed / "fake.py").read_text() + _FAST
    with window.opened(BLENDER, "cube", extra=fake, environment=environment(installed)) as opened:
        yield opened


def _generate(opened, prompt):
    opened.press("patina.prompt")
    opened.type(prompt)
    opened.wait(lambda said: said["prompt"] == prompt, 30)
    opened.press("patina.generate")


def _made(opened, count):
    return opened.wait(lambda said: len(said["variants"]) == count and not said["busy"], 90)


def test_generate_by_mouse(blender_window):
    _generate(blender_window, "red")
    said = blender_window.wait(lambda said: said["message"], 60)
    assert said["message"] == "The maps are done." and said["slots"] == ["Cube Patina"], said


def test_cancel_by_mouse_and_undo_and_redo_mid_run(blender_window):
    _generate(blender_window, "endless red")
    blender_window.wait(lambda said: said["step"] > 5, 60)
    blender_window.point(window.NOWHERE)
    blender_window.key("ctrl+z")
    blender_window.wait(lambda said: said["busy"] and not said["slots"], 30)
    blender_window.key("ctrl+shift+z")
    blender_window.wait(lambda said: said["busy"] and said["slots"] == ["Cube Patina"], 30)
    blender_window.press("patina.cancel", 0.85)
    said = blender_window.wait(lambda said: not said["busy"], 30)
    assert "Cancelled" in said["message"], said


def test_a_killed_backend_is_in_the_panel_at_once(blender_window):
    _generate(blender_window, "killed")
    said = blender_window.wait(lambda said: said["message"], 60)
    assert said["level"] == "ERROR" and "SIGKILL" in said["message"], said


def test_variants_are_shown_pinned_refined_and_deleted_by_mouse(blender_window):
    _generate(blender_window, "red")
    first = _made(blender_window, 1)["shown"]
    blender_window.press("patina.generate")
    second = _made(blender_window, 2)["shown"]
    assert second != first
    blender_window.press(f'patina.variant_show(run="{first}")', 0.75)
    blender_window.wait(lambda said: said["shown"] == first, 30)
    blender_window.press(f'patina.variant_pin(run="{first}")', 0.9)
    blender_window.wait(lambda said: [v[3] for v in said["variants"]] == [True, False], 30)
    blender_window.press("patina.refine")
    third = _made(blender_window, 3)["shown"]
    assert third not in (first, second)
    blender_window.press("patina.variant_clean", 0.9)
    time.sleep(1)
    blender_window.key("Return")
    said = blender_window.wait(lambda said: len(said["variants"]) == 2, 30)
    assert {v[1] for v in said["variants"]} == {first, third} and said["shown"] == third
    blender_window.press("patina.variant_delete", 0.9)
    time.sleep(1)
    blender_window.key("Return")
    said = blender_window.wait(lambda said: len(said["variants"]) == 1, 30)
    assert said["shown"] == first and said["level"] != "ERROR", said


def test_pause_resume_a_killed_blender_and_resume_again_by_mouse(installed):  # noqa: F811
    fake, blend = (installed / "fake.py").read_text() + _FAST, installed / "a.blend"
    saved = f"bpy.app.timers.register(lambda: bpy.ops.wm.save_as_mainfile(filepath={str(blend)!r}) and None, "
    saved += "first_interval=2.0)\n"
    backend = f"""
def note():
    from bl_ext.user_default.patina.addon import session
    worker = session.current()._worker
    open({str(installed / "backend.pid")!r}, "w").write(str(worker.pid if worker else 0))
    return 0.2
bpy.app.timers.register(note)
"""
    with window.opened(BLENDER, "cube", extra=fake + saved + backend, environment=environment(installed)) as opened:
        opened.wait(lambda said: said["file"], 30)
        _generate(opened, "endless red")
        opened.wait(lambda said: said["step"] > 5, 60)
        opened.press("patina.pause", 0.54)
        said = opened.wait(lambda said: not said["busy"], 60)
        assert "Paused." in said["message"], said
        opened.press("patina.resume", 0.3)
        opened.wait(lambda said: said["busy"] and said["step"] > 5, 60)
        for process in (opened.process.pid, int((installed / "backend.pid").read_text())):
            os.kill(process, signal.SIGKILL)
        opened.process.wait(20)
    fake = fake.replace("from pathlib", "import bpy\nfrom pathlib")
    with window.opened(BLENDER, "cube", extra=fake, environment=environment(installed), file=blend) as opened:
        assert not opened.told()["busy"] and opened.told()["file"] == str(blend)
        opened.press("patina.resume", 0.3)
        opened.wait(lambda said: said["busy"] and said["step"] > 5 and said["slots"] == ["Cube Patina"], 60)
        opened.press("patina.cancel", 0.85)
        said = opened.wait(lambda said: not said["busy"], 60)
        assert "Cancelled" in said["message"], said
