# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Blender with its window on a virtual screen, driven by the mouse: what a person sees and does.

    python -m tests.blender.window --prompt "rusty iron" --out docs      # the README's pictures of the panel

No place in pixels is written down for a button: `press` moves the mouse down the sidebar until Blender says that the
wanted one is under it, so that a panel may grow, and the interface may have any scale.

Needs $BLENDER with the extension installed (BLENDER_USER_RESOURCES), Xvfb, xdotool and ImageMagick's import.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SCREEN = (1600, 900)
TOOLS = ("Xvfb", "xdotool", "import", "convert")
NOWHERE = (440, 770)  # in the 3D view, where nothing is
PICTURE_CROP = "880x640+440+84"
_STEP = 9  # pixels at an interface scale of 1: less than half a button's height
_WHEEL = 6  # clicks to scroll by

_INSIDE = """
import bpy, json, os
bpy.context.preferences.view.show_splash = False
bpy.context.preferences.view.ui_scale = {scale}
STATE = {state!r}
def sidebar():  # of the 3D view, or of the largest area where there is none
    window = bpy.context.window_manager.windows[0]
    area = max(window.screen.areas, key=lambda area: (area.type == "VIEW_3D", area.width * area.height))
    return window, area, next((region for region in area.regions if region.type == "UI"), area.regions[-1])
def prepare():
    for item in list(bpy.data.objects):
        bpy.data.objects.remove(item)
    bpy.ops.mesh.primitive_{shape}_add()
    item = bpy.context.object
    if {shape!r} == "monkey":
        item.modifiers.new("Subdivision", "SUBSURF").levels = 2
        bpy.ops.object.shade_smooth()
    for area in bpy.context.window_manager.windows[0].screen.areas:
        if area.type == "VIEW_3D":
            space = area.spaces.active
            space.show_region_ui = True
            space.shading.type = {shading!r}
            space.region_3d.view_distance = 5.5
            space.overlay.show_floor = space.overlay.show_axis_x = space.overlay.show_axis_y = False
            from mathutils import Euler, Vector
            space.region_3d.view_rotation = Euler((1.25, 0, 0.5)).to_quaternion()
            space.region_3d.view_location = Vector((0.5, 0.3, 0))
    bpy.ops.ed.undo_push(message="prepared")
    bpy.app.timers.register(start, first_interval=0.2)
def start():
    bpy.app.timers.register(tell, persistent=True)
    bpy.app.timers.register(answer, persistent=True)
def write(path, said):
    with open(path + ".part", "w") as file:
        json.dump(said, file)
    os.replace(path + ".part", path)
times = [0]
def tell():
    times[0] += 1
    run, item = bpy.context.window_manager.patina, bpy.context.view_layer.objects.active
    slots = [slot.material.name for slot in item.material_slots if slot.material] if item else []
    variants = [[v.name, v.run, v.seed, v.pinned] for v in item.patina.variants] if item else []
    shown = slots and item.material_slots[0].material.get("patina_run")
    region = sidebar()[2]
    tab = getattr(region, "active_panel_category", "")
    if times[0] in (5, 8, 11) and tab != "Patina":
        try:
            region.active_panel_category = "Patina"
            region.tag_redraw()
        except (AttributeError, TypeError):
            pass  # where it cannot be set (4.3, 5.2) it is clicked
    write(STATE, {{
        "busy": run.busy, "step": run.step, "message": run.message, "level": run.level, "hint": run.hint,
        "slots": slots, "prompt": item.patina.prompt if item else None, "version": bpy.app.version[0],
        "variants": variants, "shown": shown, "tab": tab, "file": bpy.data.filepath,
        "sidebar": [region.x, region.y, region.width, region.height],
        "scale": bpy.context.preferences.system.ui_scale, "times": times[0],
    }})
    return 0.2
def answer():  # what is under the mouse
    if os.path.exists(STATE + ".ask"):
        window, area, region = sidebar()
        found, manager = "", bpy.context.window_manager
        with bpy.context.temp_override(window=window, area=area, region=region):
            for ask in (bpy.ops.ui.copy_python_command_button, bpy.ops.ui.copy_data_path_button):
                if not found and ask.poll():
                    manager.clipboard = ""
                    ask(full_path=True) if ask is bpy.ops.ui.copy_data_path_button else ask()
                    found = manager.clipboard
        number = open(STATE + ".ask").read()
        os.remove(STATE + ".ask")
        write(STATE + ".answer", [number, found])
    return 0.03
bpy.app.timers.register(prepare, first_interval=0.5)
"""

# An `extra` that has Blender run what `Window.do` is given, with `obj` (the active object), `only(panels)` to choose
# sub-panels, and `drawn`, the names of those that were drawn to their end.
OBEY = """
import traceback
drawn = set()
def noting(name, draw):
    def noted(self, context):
        draw(self, context)
        drawn.add(name)
    return noted
panels = {name.removeprefix("PATINA_PT_"): getattr(bpy.types, name) for name in dir(bpy.types)
          if name.startswith("PATINA_PT_") and name != "PATINA_PT_main"}
there = set(panels)
for name, cls in panels.items():
    cls.draw = noting(name, cls.draw)
def only(*shown):  # of the sub-panels, all of them open
    for name, cls in panels.items():
        if name in there:
            bpy.utils.unregister_class(cls)
            there.remove(name)
        if name in shown:
            cls.bl_options, cls.bl_idname = set(), f"PATINA_PT_{name}_open"  # anew, or it stays closed
            bpy.utils.register_class(cls)
            there.add(name)
kinds = []
def do():
    if os.path.exists(STATE + ".do"):
        code = open(STATE + ".do").read()
        os.remove(STATE + ".do")
        win, area, _ = sidebar()
        view = next(region for region in area.regions if region.type == "WINDOW")
        said = ""
        try:
            with bpy.context.temp_override(window=win, screen=win.screen, area=area, region=view):
                exec(code, {**globals(), "obj": win.view_layer.objects.active})
        except Exception:
            said = traceback.format_exc()
        write(STATE + ".did", said)
        for area in win.screen.areas:
            area.tag_redraw()
    return 0.1
bpy.app.timers.register(do, first_interval=1.0, persistent=True)
"""

# While the shaders of Material Preview are made, clicks are lost: so it comes after the prompt.
_SHADE_LATER = """
def shade_later():
    item = bpy.context.view_layer.objects.active
    if not item or not item.patina.prompt:
        return 0.5
    for area in bpy.context.window_manager.windows[0].screen.areas:
        if area.type == "VIEW_3D":
            area.spaces.active.shading.type = "MATERIAL"
bpy.app.timers.register(shade_later, first_interval=3.0)
"""


class Window:
    """One running Blender and its screen."""

    def __init__(self, display: str, state: Path, process: subprocess.Popen) -> None:
        self.state, self.process, self._asked = state, process, 0
        self.display = display
        self._environment = {**os.environ, "DISPLAY": display}
        # One process that obeys line by line: to start one for each move of the mouse takes longer than the move.
        self._hand = subprocess.Popen(["xdotool", "-"], stdin=subprocess.PIPE, text=True, env=self._environment)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._hand.stdin.close()
        _end(self._hand)

    def told(self) -> dict:
        """What Blender last said of itself; empty before it has said anything."""
        try:
            return json.loads(self.state.read_text())
        except (OSError, ValueError):
            return {}

    def errors(self) -> str:
        """What Blender printed since its start, from the first traceback on; empty where there is none."""
        printed = (self.state.parent / "log.txt").read_text(errors="replace")
        return printed[printed.index("Traceback") :] if "Traceback" in printed else ""

    def wait(self, condition, limit: float) -> dict:
        """Wait until `condition(told)`; raises TimeoutError with what Blender said last."""
        end = time.monotonic() + limit
        while not (said := self.told()) or not condition(said):
            if time.monotonic() > end or self.process.poll() is not None:
                raise TimeoutError(f"Blender (exit {self.process.poll()}) said last: {said}")
            time.sleep(0.2)
        return said

    def under(self) -> str:
        """The operator call or the property that is under the mouse; empty if none is."""
        self._asked += 1
        question, told = Path(f"{self.state}.ask"), Path(f"{self.state}.answer")
        question.with_suffix(".new").write_text(str(self._asked))
        question.with_suffix(".new").replace(question)
        end = time.monotonic() + 30.0
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                number, found = json.loads(told.read_text())
                if number == str(self._asked):
                    return found
            time.sleep(0.02)
        raise TimeoutError(f"Blender (exit {self.process.poll()}) does not say what is under the mouse")

    def find(self, wanted: str, share: float = 0.5) -> tuple[int, int]:
        """Where in the sidebar the button is whose call or property holds `wanted`; LookupError tells what there is.

        `share`: how far to the right to look for it, of the sidebar's width.
        """
        seen: list[str] = []
        for scroll in range(6):
            x, y, width, height = self.told()["sidebar"]
            scale = self.told()["scale"]
            across = int(x + (width - 22 * scale) * share)
            for down in range(int(24 * scale), height, int(_STEP * scale)):
                place = (across, SCREEN[1] - y - height + down)
                self.point(place)
                time.sleep(0.06)
                found = self.under()
                if wanted in found:
                    time.sleep(0.3)  # Blender may have told what was under the mouse before it came here
                    if wanted in self.under():
                        return place[0], place[1] + int(4 * scale)
                if found and found not in seen:
                    seen.append(found)
            if scroll == 0:
                self._do("xdotool", "click", "--repeat", "60", "--delay", "15", "4")  # once more from the top
            else:
                self._do("xdotool", "click", "--repeat", str(_WHEEL), "--delay", "60", "5")
            time.sleep(1.0)
        raise LookupError(f"{wanted} is not in the sidebar. Seen: {seen}")

    def press(self, wanted: str, share: float = 0.5) -> None:
        self.click(self.find(wanted, share))

    def open_tab(self) -> None:
        """Bring the tab Patina to the front: where Blender cannot be told to, by the mouse."""
        said = self.wait(lambda said: said["times"] > 13, 120)
        if said["tab"] == "Patina":
            return
        x, y, width, height = said["sidebar"]
        scale = said["scale"]
        for down in range(int(20 * scale), height, int(26 * scale)):
            place = (int(x + width - 9 * scale), SCREEN[1] - y - height + down)
            for _ in range(2):  # a click on the tab that is in front closes the sidebar (5.2), a second one opens it
                self.click(place)
                times = self.told()["times"]
                said = self.wait(lambda said, times=times: said["times"] > times + 2, 60)
                if said["sidebar"][2] >= width:
                    break
            if said["tab"] == "Patina":
                return
        raise LookupError(f"no tab Patina: {self.told()}")

    def do(self, code: str, limit: float) -> str:
        """Have Blender run code, where OBEY is in `extra`; its error, or an empty string."""
        order, answer = Path(f"{self.state}.do"), Path(f"{self.state}.did")
        answer.unlink(missing_ok=True)
        order.with_suffix(".new").write_text(code)
        order.with_suffix(".new").replace(order)
        end = time.monotonic() + limit
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                return json.loads(answer.read_text())
            time.sleep(0.05)
        raise TimeoutError(f"Blender (exit {self.process.poll()}) did not run: {code}")

    def click(self, place: tuple[int, int]) -> None:
        self.point(place)
        time.sleep(0.6)
        self._do("xdotool", "mousemove_relative", "2", "1")
        time.sleep(0.6)
        self._do("xdotool", "mousedown", "1")
        time.sleep(0.15)
        self._do("xdotool", "mouseup", "1")
        time.sleep(0.5)

    def make_wide(self, pixels: int) -> None:
        """Drag the sidebar's left edge. It can be taken beside a panel only, not where the 3D view shows."""
        for down, beside in itertools.product((120, 60, 24), (7, 3, 0, 10)):
            x, y, width, height = self.told()["sidebar"]
            across, place = x + beside, SCREEN[1] - y - height + int(down * self.told()["scale"])
            self.point((across - 12, place))
            self.point((across, place))
            time.sleep(0.6)
            self._do("xdotool", "mousedown", "1")
            time.sleep(0.3)
            for step in range(1, 21):
                self.point((across + round((width - pixels) * step / 20), place))
                time.sleep(0.05)
            self._do("xdotool", "mouseup", "1")
            with contextlib.suppress(TimeoutError):
                self.wait(lambda said: abs(said["sidebar"][2] - pixels) < 8, 3)
                return
        raise LookupError(f"the sidebar stays as wide as it is: {self.told()}")

    def scroll(self, place: tuple[int, int], clicks: int) -> None:
        """Turn the mouse's wheel downwards over a place."""
        self.point(place)
        time.sleep(0.5)
        self._do("xdotool", "click", "--repeat", str(clicks), "--delay", "30", "5")
        time.sleep(clicks * 0.03 + 1.0)

    def point(self, place: tuple[int, int]) -> None:
        self._do("xdotool", "mousemove", *map(str, place))

    def type(self, text: str) -> None:
        self._do("xdotool", "key", "ctrl+a")
        time.sleep(1.0)  # the hand obeys in its own time, this one at once
        self._do("xdotool", "type", "--delay", "60", text)
        time.sleep(0.3)
        self._do("xdotool", "key", "Return")

    def key(self, name: str) -> None:
        self._do("xdotool", "key", name)

    def picture(self, file: Path, crop: str | None = None) -> None:
        self._do("import", "-window", "root", *(["-crop", crop, "+repage"] if crop else []), str(file))

    def _do(self, *command: str) -> None:
        if command[:1] == ("xdotool",) and "type" not in command:
            self._hand.stdin.write(" ".join(command[1:]) + "\n")
            self._hand.stdin.flush()
            return
        subprocess.run(command, env=self._environment, check=True, timeout=20, capture_output=True)


@contextlib.contextmanager
def opened(
    blender: str,
    shape: str,
    shading: str = "SOLID",
    extra: str = "",
    environment: dict[str, str] | None = None,
    scale: float = 1.0,
    file: Path | None = None,
) -> Iterator[Window]:
    """Blender with a `shape` (cube, monkey) and the tab Patina in front; everything ended when the block ends.

    `scale`: of the interface. With a `file` that .blend is opened and nothing is added to it.
    """
    with tempfile.TemporaryDirectory(prefix="patina-window-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        display = f":{80 + os.getpid() % 900}"
        screen = subprocess.Popen(
            ["Xvfb", display, "-screen", "0", f"{SCREEN[0]}x{SCREEN[1]}x24"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(_end, screen)
        time.sleep(1.5)
        script, state = folder / "inside.py", folder / "state.json"
        inside = _INSIDE.format(state=str(state), shape=shape, shading=shading, scale=scale)
        if file is not None:
            inside = inside.replace("register(prepare,", "register(start,")
        script.write_text(inside + extra)
        geometry = ("--window-geometry", "0", "0", *map(str, SCREEN))
        with open(folder / "log.txt", "w") as log:
            process = subprocess.Popen(
                [blender, *([str(file)] if file else []), *geometry, "--python", str(script)],
                env={**os.environ, **(environment or {}), "DISPLAY": display},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        stack.callback(_end, process)
        window = Window(display, state, process)
        stack.callback(window.close)
        window.wait(lambda said: True, 90.0)
        time.sleep(3.0)
        window.open_tab()
        yield window


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, 15) if os.getpgid(process.pid) == process.pid else process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="rusty iron")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    blender = os.environ.get("BLENDER") or shutil.which("blender")
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if not blender or missing:
        print(f"Needed: {', '.join(missing) or 'a Blender in $BLENDER'}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with opened(blender, "monkey", "SOLID", _SHADE_LATER) as window:
        window.press("patina.prompt")
        window.type(options.prompt)
        window.wait(lambda said: said["prompt"] == options.prompt, 60)
        window.point(NOWHERE)
        time.sleep(40)  # EEVEE's shaders on a software renderer
        window.picture(options.out / "panel_before.png", PICTURE_CROP)
        window.press("patina.generate")
        window.point(NOWHERE)
        window.wait(lambda said: said["busy"] and said["step"] >= 100, 300)
        time.sleep(2)
        window.picture(options.out / "panel_during.png", PICTURE_CROP)
        said = window.wait(lambda said: not said["busy"], 600)
        time.sleep(4)
        window.picture(options.out / "panel_after.png", PICTURE_CROP)
        print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
