# SPDX-License-Identifier: GPL-3.0-or-later
"""The manual's pictures, one a feature, from a real Blender with the installed extension and the real backend.

    BLENDER=blender-5.2 BLENDER_USER_RESOURCES=DIR PATINA_PYTHON=PYTHON python -m docs.manual_pictures [NAME ...]

Without names all are made anew (some minutes); with names only those, each with what it needs before it. To add one,
write a line into PICTURES: its name, what must be there already (names of STAGES), what is done in Blender, how much
of the screen is shown. The code runs in Blender with `obj` (Suzanne), `scene`, `only(panels)` and `sidebar()`.
Needs what tests/blender/window.py needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tests.blender import window

HERE = Path(__file__).resolve().parent
LIMIT_S = 900.0  # for one run of the backend
COLORS = "80"
MONOSPACED = "DejaVuSansMono.ttf"
AREA_MIDDLE = (740, 420)
BATCH = "batch"  # a terminal's picture
AREA_CROP = "1124x700+180+76"

_INSIDE = """
scene = bpy.context.scene
scene.patina.texture_size, scene.patina.steps = "512", 60
stored = bpy.context.preferences.addons["bl_ext.user_default.patina"].preferences
stored.data_folder = STATE + "-data"  # no run of another time is left there
def look():  # Suzanne in the middle of what is shown of the 3D view
    sidebar()[1].spaces.active.region_3d.view_location = (-0.5, -0.27, 0)
bpy.app.timers.register(look, first_interval=2.0)
"""

# Where the processor draws, Material Preview takes minutes for each picture; this shows the base color at once.
_SOLID = """
def textured():
    sidebar()[1].spaces.active.shading.color_type = "TEXTURE"
bpy.app.timers.register(textured, first_interval=1.5)
"""
_SHADING_HELP = "SOLID: with the base color, at once; MATERIAL: Material Preview, for computers with a graphics card"

# What a picture may build upon: the code that begins it. A stage is over when no run is under way.
STAGES = {
    "iron": "obj.patina.prompt = 'rusty iron'; bpy.ops.patina.generate()",
    "gold": "obj.patina.prompt = 'polished gold'; bpy.ops.patina.generate()",
    "unknown": "obj.patina.prompt = 'a lovely thing'; bpy.ops.patina.generate()",
    "cover": """
obj.patina.prompt = 'red brick'
for face in obj.data.polygons:
    face.select = face.center.z > 0.1
obj.patina.limits.region, obj.patina.limits.strength = 'FACES', 1.0
obj.patina.limits.border, obj.patina.limits.lock_normal = 0.05, True
bpy.ops.patina.refine()
""",
}
_PREFERENCES = """
area = sidebar()[1]
area.type = 'PREFERENCES'
bpy.context.preferences.active_section = 'ADDONS'
bpy.context.window_manager.addon_search = 'Patina'
bpy.ops.preferences.addon_expand(module='bl_ext.user_default.patina')
"""


@dataclass(frozen=True)
class Picture:
    """One picture. `code` runs in Blender before it; `press` is clicked after that; `at_step`: of the run begun."""

    name: str
    needs: tuple[str, ...] = ()
    code: str = ""
    then: str = ""  # runs in Blender when what `code` began is over
    press: str = ""
    share: float = 0.5  # where `press` is, see Window.find
    mouse: tuple[int, int] | None = None  # where it stays, from the sidebar's upper left corner; None: out of the way
    at_step: int = 0
    view: bool = False  # the 3D view too, not the sidebar alone
    area: bool = False  # what the preferences show, scrolled to their end
    height: int = 700  # pixels of the sidebar that are shown
    after: str = ""  # puts things back


PICTURES = (
    Picture("first", code="only(); obj.patina.prompt = 'rusty iron'", view=True),
    Picture("running", code="only('preview'); " + STAGES["iron"], at_step=30, view=True),
    Picture("done", ("iron",), "only('preview')", view=True),
    Picture("advanced", code="only('advanced')", height=660),
    Picture("presets", code="only(); bpy.ops.wm.call_menu(name='PATINA_MT_presets')", mouse=(-120, 90), view=True),
    Picture("variants", ("iron", "gold"), "only('variants'); obj.patina.variants[0].pinned = True"),
    Picture("refine", ("iron", "cover"), "only('refine')", view=True),
    Picture("export", ("iron",), "only('export')", height=640),
    Picture(
        "bake",
        ("iron",),
        "only('export'); obj.data.uv_layers.new(name='Lightmap'); obj.data.uv_layers.new(name='UVMap 2')",
        height=700,
        after="""
for name in ('Lightmap', 'UVMap 2'):
    obj.data.uv_layers.remove(obj.data.uv_layers[name])
""",
    ),
    Picture(
        "reference",
        ("iron",),
        """
only('reference')
import numpy as np
drawn_by_hand = bpy.data.images.new('sketch', 96, 96)
across, down = np.mgrid[0:96, 0:96] / 95
drawn_by_hand.pixels.foreach_set(np.stack([across, 0.4 + 0 * across, down, 1 + 0 * across], -1).astype('f').ravel())
obj.patina.reference.image = drawn_by_hand
bpy.ops.patina.reference_view()
""",
        view=True,
        height=560,
        after="obj.patina.reference.image = None",
    ),
    Picture(
        "lighting",
        code="only('lighting'); scene.patina.light.source = 'WORLD'",
        height=480,
        after="scene.patina.light.source = 'NEUTRAL'",
    ),
    Picture(
        "several",
        code="""
only()
bpy.ops.mesh.primitive_torus_add(location=(3, 0, 0))
bpy.ops.mesh.primitive_cylinder_add(location=(-3, 0, 0))
for item in bpy.context.scene.objects:
    item.select_set(True)
bpy.context.view_layer.objects.active = obj
""",
        view=True,
        after="""
for item in list(bpy.context.scene.objects):
    if item != obj:
        bpy.data.objects.remove(item)
""",
    ),
    Picture(
        "slots",
        code="""
only()
obj.data.materials.append(bpy.data.materials.new('Eyes'))
obj.data.materials.append(bpy.data.materials.new('Skin'))
""",
        height=480,
    ),
    Picture(
        "language",
        code="only(); bpy.context.preferences.view.language = 'zh_HANS'",
        height=480,
        after="bpy.context.preferences.view.language = 'en_US'",
    ),
    Picture(
        "doctor",
        code=_PREFERENCES + "bpy.ops.patina.list_models()",
        then="bpy.ops.patina.doctor()",
        area=True,
        after="sidebar()[1].type = 'VIEW_3D'",
    ),
    Picture("error", ("unknown",), "only()", height=620),
    Picture(
        "pause",
        code="only(); scene.patina.steps = 400; obj.patina.prompt = 'oak'; bpy.ops.patina.generate()",
        at_step=20,
        press="patina.pause",
        share=0.54,
        height=560,
        after="scene.patina.steps = 60",
    ),
)


_CHAIRS = """
import bpy
bpy.data.objects.remove(bpy.data.objects["Cube"])
for number, name in enumerate(("Stool", "Table")):
    bpy.ops.mesh.primitive_cylinder_add(location=(3 * number, 0, 0))
    bpy.context.object.name = name
bpy.ops.wm.save_as_mainfile(filepath="scene.blend")
"""
_JOBS = """
[defaults]
texture_size = 512
steps = 60
out = "textures/{object}"
[[job]]
objects = ["Stool", "Table"]
prompt = "oak"
[[job]]
objects = "Lamp*"
prompt = "polished gold"
"""


def _batch(blender: str, file: Path) -> None:
    """The picture of a terminal with a batch that ran just now."""
    with tempfile.TemporaryDirectory(prefix="patina-batch-") as folder:
        Path(folder, "jobs.toml").write_text(_JOBS)
        subprocess.run([blender, "-b", "--python-expr", _CHAIRS], cwd=folder, check=True, capture_output=True)
        lines = []
        for words in ("-b scene.blend -c patina batch jobs.toml --retries 0", "-b -c patina status jobs.toml"):
            done = subprocess.run(
                [blender, *words.split()], cwd=folder, capture_output=True, text=True, timeout=LIMIT_S
            )
            lines += [f"$ blender {words}", *(done.stdout + done.stderr).splitlines(), f"$ echo $?\n{done.returncode}"]
        shown = "\n".join(line.replace(folder, "~") for line in lines if _is_told(line))
    said = "\n".join(_folded(shown))
    font = ImageFont.truetype(MONOSPACED, 13)
    _, _, width, height = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((12, 10), said, font)
    picture = Image.new("L", (int(width) + 14, int(height) + 12), 29)
    ImageDraw.Draw(picture).multiline_text((12, 10), said, 216, font)
    picture.save(file)


def _is_told(line: str) -> bool:
    """Not what Blender says of itself."""
    return bool(line.strip()) and "file-systems" not in line and not line.startswith("Blender ")


def _folded(text: str) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, 110) or [""]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [BATCH, *(picture.name for picture in PICTURES)]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--out", type=Path, default=HERE / "manual")
    parser.add_argument("--shading", choices=("SOLID", "MATERIAL"), default="SOLID", help=_SHADING_HELP)
    options = parser.parse_args()
    unknown = set(options.names) - set(known)
    blender = os.environ.get("BLENDER") or shutil.which("blender")
    if unknown or not blender:
        print(f"There is no picture {', '.join(unknown)}." if unknown else "Set $BLENDER.", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.names or BATCH in options.names:
        _batch(blender, options.out / f"{BATCH}.png")
    if options.names == [BATCH]:
        return 0
    inside = window.OBEY + _INSIDE + (_SOLID if options.shading == "SOLID" else "")
    with window.opened(blender, "monkey", options.shading, inside) as blender_window:
        made: set[str] = set()
        for picture in PICTURES:
            if options.names and picture.name not in options.names:
                continue
            for stage in picture.needs:
                if stage not in made:
                    _do(blender_window, STAGES[stage])
                    _end_of_run(blender_window)
                    made.add(stage)
            _take(blender_window, picture, options.out / f"{picture.name}.png")
            made |= {stage for stage, code in STAGES.items() if code in picture.code}
    return 0


def _take(blender_window: window.Window, picture: Picture, file: Path) -> None:
    x, y, width, height = blender_window.told()["sidebar"]
    top = window.SCREEN[1] - y - height
    if picture.mouse:
        blender_window.point((x + picture.mouse[0], top + picture.mouse[1]))
        time.sleep(1.0)
    if picture.code:
        _do(blender_window, picture.code)
    if picture.then:
        _end_of_task(blender_window)
        _do(blender_window, picture.then)
        _end_of_task(blender_window)
    if picture.at_step:
        blender_window.wait(lambda said: said["busy"] and said["step"] >= picture.at_step, LIMIT_S)
    if picture.press:
        blender_window.press(picture.press, picture.share)
    elif not picture.mouse:
        blender_window.point(window.NOWHERE)
    if picture.at_step and not picture.press:
        time.sleep(1.0)
    else:
        if picture.at_step:
            _end_of_run(blender_window)
        if picture.area:
            blender_window.scroll(AREA_MIDDLE, 60)
        _settled(blender_window, file)
    left = x - 560 if picture.view else x
    crop = f"{x + width - left}x{min(picture.height, height)}+{left}+{top}" if not picture.area else AREA_CROP
    blender_window.picture(file, crop)
    quantised = ["convert", str(file), "+dither", "-colors", COLORS, "-strip", f"PNG8:{file}"]
    subprocess.run(quantised, check=True, timeout=60)
    print(f"{file}  {file.stat().st_size / 1e3:.0f} kB", flush=True)
    if picture.mouse:
        blender_window.key("Escape")  # closes a menu
    _end_of_run(blender_window)
    if picture.after:
        _do(blender_window, picture.after)


def _do(blender_window: window.Window, code: str) -> None:
    """Run code in Blender. Raises RuntimeError with what went wrong there."""
    problem = blender_window.do(code, 300.0)
    if problem:
        raise RuntimeError(problem)


def _end_of_run(blender_window: window.Window) -> None:
    time.sleep(1.0)
    blender_window.wait(lambda said: not said["busy"], LIMIT_S)


def _end_of_task(blender_window: window.Window) -> None:
    end = time.monotonic() + LIMIT_S
    ended = "from bl_ext.user_default.patina.addon import session\nassert session.current().task.finished"
    while blender_window.do(ended, 60.0):
        if time.monotonic() > end:
            raise TimeoutError("the task does not end")
        time.sleep(1.0)


def _settled(blender_window: window.Window, file: Path, limit: float = 240.0) -> None:
    """Wait until the screen does not change any more: shaders are made, textures are read."""
    end, before, plain = time.monotonic() + limit, b"", file.with_suffix(".ppm")  # which holds no date
    time.sleep(2.0)
    while time.monotonic() < end:
        time.sleep(4.0)
        blender_window.picture(plain)
        now = plain.read_bytes()
        plain.unlink()
        if now == before:
            return
        before = now


if __name__ == "__main__":
    sys.exit(main())
