# SPDX-License-Identifier: GPL-3.0-or-later
"""The panel in a real Blender at other scales, in a narrow sidebar and in its languages: all is drawn, no word is cut.

Its pictures are left in pytest's folder, for a person to look at.
"""

import shutil
import time

import pytest

from . import window
from .harness import PATIENCE
from .test_real_program import BLENDER, environment, fresh_user, installed  # noqa: F401  (fixtures)

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        not BLENDER or not all(shutil.which(tool) for tool in window.TOOLS),
        reason="needs $BLENDER, Xvfb, xdotool and ImageMagick",
    ),
]

PANELS = ("preview", "variants", "refine", "export", "reference", "lighting", "advanced")

_FULL = """
obj.patina.limits.region, obj.patina.limits.lock_normal = "FACES", True
obj.patina.reference.image = bpy.data.images.new("copied", 24, 12)
obj.data.uv_layers.new(name="Lightmap")
obj.data.materials.append(bpy.data.materials.new("Eyes"))
bpy.context.scene.patina.light.source = "FOLDER"
"""

# Labels take 40 % of what the panel leaves of the sidebar, values the rest, of which a menu's arrow takes some.
_MEASURED = """
import blf
from bpy.app.translations import pgettext_iface
from bl_ext.user_default.patina.addon import drawing
side, scene = sidebar()[2], bpy.context.scene
scale = bpy.context.preferences.system.ui_scale
blf.size(0, bpy.context.preferences.ui_styles[0].widget.points * scale)
inside = side.width - 54 * scale
cut = []
def measured(group, names, texts={}):
    for name in names:
        prop = group.bl_rna.properties[name]
        label = pgettext_iface(texts.get(name, prop.name), prop.translation_context)
        if blf.dimensions(0, label)[0] > 0.4 * inside - 4 * scale: cut.append(label)
        for item in prop.enum_items if prop.type == "ENUM" else ():
            shown = pgettext_iface(item.name, prop.translation_context)
            if blf.dimensions(0, shown)[0] > 0.6 * inside - 24 * scale: cut.append(shown)
measured(scene.patina, ("texture_size", "pattern_scale", "model", "guidance", "steps", "views", "render_size"))
measured(obj.patina, ("seed", "cover"))
measured(obj.patina.limits, ("strength", "region", "border"))
measured(scene.patina_export, ("template", "normals", "file_format", "folder"))
measured(scene.patina.light, ("source", "folder"))
for name in ("draft", "standard", "high"):
    prop = scene.patina.bl_rna.properties["quality"]
    shown = pgettext_iface(prop.enum_items[name].name, prop.translation_context)
    if blf.dimensions(0, shown)[0] > (inside - 24 * scale) / 3 - 3 * scale: cut.append(shown)
assert not cut, cut
"""


def _do(opened, code):
    problem = opened.do(code, 60 * PATIENCE)
    assert not problem, problem


def _run(opened, prompt):
    _do(opened, f"obj.patina.prompt = {prompt!r}; bpy.ops.patina.generate()")


def _ended(opened, count):
    opened.wait(lambda said: not said["busy"] and len(said["variants"]) == count, 60 * PATIENCE)


def _picture(opened, file):
    time.sleep(1.5)
    x, y, width, height = opened.told()["sidebar"]
    opened.picture(file, f"{width}x{height}+{x}+{window.SCREEN[1] - y - height}")


@pytest.mark.parametrize(
    ("scale", "wide", "languages"),
    [(1.0, None, ("en_US", "ru_RU", "zh_HANS", "ko_KR")), (1.0, 250, ("en_US",)), (2.0, None, ("en_US", "ru_RU"))],
)
def test_all_is_drawn_and_no_word_is_cut(installed, tmp_path, scale, wide, languages):  # noqa: F811
    fake = (installed / "fake.py").read_text() + "bpy.context.scene.patina.texture_size = '512'\n" + window.OBEY
    with window.opened(BLENDER, "cube", extra=fake, environment=environment(installed), scale=scale) as opened:
        if wide:
            opened.make_wide(wide)
        for count, prompt in enumerate(("red", "polished gold with many scratches"), 1):
            _run(opened, prompt)
            _ended(opened, count)
        _do(opened, _FULL)
        for language in languages:
            _do(opened, f"bpy.context.preferences.view.language = {language!r}")
            _do(opened, _MEASURED)
            for panel in PANELS:
                _do(opened, f"only({panel!r}); drawn.clear()")
                _picture(opened, tmp_path / f"{language}-{panel}.png")
                _do(opened, f"assert drawn == {{{panel!r}}}, drawn")
        _do(opened, "only(); bpy.context.scene.patina.light.source = 'NEUTRAL'; bpy.context.view_layer.update()")
        _run(opened, "endless red")
        opened.wait(lambda said: said["step"] > 5, 60 * PATIENCE)
        _picture(opened, tmp_path / "running.png")
        _do(opened, "bpy.ops.patina.pause()")
        _ended(opened, 3)
        _picture(opened, tmp_path / "paused.png")
        _run(opened, "failed red")
        opened.wait(lambda said: not said["busy"] and said["level"] == "ERROR", 60 * PATIENCE)
        _picture(opened, tmp_path / "failed.png")
        assert not opened.errors()
