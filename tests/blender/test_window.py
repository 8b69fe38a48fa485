# SPDX-License-Identifier: GPL-3.0-or-later
"""The mouse on the buttons of the installed extension in a real Blender window; the backend is the fake one."""

import os
import shutil
import sys

import pytest

from . import window
from .test_real_program import BLENDER, installed  # noqa: F401  (a fixture)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not BLENDER or not all(shutil.which(tool) for tool in window.TOOLS),
        reason="needs $BLENDER, Xvfb, xdotool and ImageMagick",
    ),
]


@pytest.fixture
def blender_window(installed):  # noqa: F811
    environment = {
        "BLENDER_USER_RESOURCES": str(installed / "user"),
        "PATINA_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "PWD": str(installed),
    }
    fake = (installed / "fake.py").read_text() + "\nbpy.context.scene.patina.texture_size = '512'\n"
    with window.opened(BLENDER, "cube", extra=fake, environment={**os.environ, **environment}) as opened:
        yield opened


def _generate(opened, prompt):
    opened.click(window.PROMPT)
    opened.type(prompt)
    opened.wait(lambda said: said["prompt"] == prompt, 20)
    opened.click(window.GENERATE)


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
    blender_window.click(window.CANCEL)
    said = blender_window.wait(lambda said: not said["busy"], 30)
    assert "Cancelled" in said["message"], said


def test_a_killed_backend_is_in_the_panel_at_once(blender_window):
    _generate(blender_window, "killed")
    said = blender_window.wait(lambda said: said["message"], 60)
    assert said["level"] == "ERROR" and "SIGKILL" in said["message"], said
