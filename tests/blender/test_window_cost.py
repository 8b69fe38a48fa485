# SPDX-License-Identifier: GPL-3.0-or-later
"""What the panels cost a real Blender: under a millisecond a redraw, and nothing at all while they are closed."""

import json
import time

from . import window
from .test_real_program import BLENDER, environment, fresh_user, installed  # noqa: F401  (fixtures)
from .test_window import _FAST, _generate, pytestmark  # noqa: F401

_MEASURE = """
import time
costs, drawn = {}, [0]
def measured(name, draw):
    def timed(self, context):
        began = time.thread_time()  # of this thread alone: other programs do not count
        draw(self, context)
        costs.setdefault(name, []).append(1e3 * (time.thread_time() - began))
        drawn[0] += 1
    return timed
def wrap():
    for name in dir(bpy.types):
        cls = getattr(bpy.types, name)
        if name.startswith("PATINA_PT_"):
            cls.draw = measured(name, cls.draw)
def report():
    from bl_ext.user_default.patina.addon import session
    medians = {name: sorted(values)[len(values) // 2] for name, values in costs.items()}
    ticking = bpy.app.timers.is_registered(session._on_timer)
    write(STATE + ".costs", {"drawn": drawn[0], "medians": medians, "ticking": ticking})
    return 0.3
bpy.app.timers.register(wrap, first_interval=2.0)
bpy.app.timers.register(report, first_interval=3.0, persistent=True)
"""


def test_a_redraw_costs_less_than_a_millisecond_and_a_closed_panel_nothing(installed):  # noqa: F811
    fake = (installed / "fake.py").read_text() + _FAST + _MEASURE
    with window.opened(BLENDER, "cube", extra=fake, environment=environment(installed)) as opened:

        def told():
            return json.loads(opened.state.with_name(opened.state.name + ".costs").read_text())

        _generate(opened, "red")
        opened.wait(lambda said: not said["busy"] and said["message"], 90)
        x, y, width, height = opened.told()["sidebar"]
        for down in range(60, 400, 9):  # each button under the mouse redraws the sidebar
            opened.point((x + width // 2, window.SCREEN[1] - y - height + down))
            time.sleep(0.1)
        time.sleep(1)
        seen = told()
        print(seen)
        assert {"PATINA_PT_main", "PATINA_PT_variants", "PATINA_PT_refine"} <= seen["medians"].keys()
        assert sum(seen["medians"].values()) < 1.0, seen
        assert not seen["ticking"], "a timer runs though nothing is to do"
        opened.point(window.NOWHERE)
        opened.key("n")  # closes the sidebar
        time.sleep(2)
        before = told()["drawn"]
        for down in range(0, 200, 20):
            opened.point((window.NOWHERE[0], window.NOWHERE[1] - down))
            time.sleep(0.2)
        time.sleep(1)
        assert told()["drawn"] == before and not told()["ticking"]
