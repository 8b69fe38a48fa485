# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of settings by name: some built in, others the user's own; what one changes is told before it is applied."""

# ruff: noqa: F722, F821

import json

import bpy
from bpy.app.translations import pgettext_iface as _
from bpy.props import StringProperty

from . import preferences, protocol

_STORED = (
    "quality", "texture_size", "pattern_scale", "model", "second_stage", "control", "control_kind",
    "control_strength", "start", "guidance", "guidance_scale", "steps", "views", "render_size",
)  # fmt: skip
_AS_QUALITY_SAYS = {
    "start": "uniform", "guidance": "clamped", "guidance_scale": 0.0, "steps": 0, "views": 0, "render_size": 0
}  # fmt: skip
BUILT_IN = {
    "Quick Look": {**_AS_QUALITY_SAYS, "quality": "draft", "texture_size": "512", "steps": 120},
    "Draft": {**_AS_QUALITY_SAYS, "quality": "draft", "texture_size": "1024"},
    "Game Asset": {**_AS_QUALITY_SAYS, "quality": "standard", "texture_size": "2048"},
    "Hero Asset": {**_AS_QUALITY_SAYS, "quality": "high", "texture_size": "4096"},
}


class PresetProblem(ValueError):
    """A preset cannot be read or written; the text is a sentence for a person."""


def users() -> dict[str, dict]:
    """The user's own presets. Raises PresetProblem."""
    try:
        stored = json.loads(_file().read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PresetProblem(f"{_file()} cannot be read: {error}") from error
    if not isinstance(stored, dict) or not all(isinstance(values, dict) for values in stored.values()):
        raise PresetProblem(f"{_file()} holds no presets.")
    return stored


def changes(scene: bpy.types.Scene, values: dict) -> list[str]:
    """What applying a preset would change, one line a setting."""
    how, lines = scene.patina, []
    for name in _STORED:
        if name in values and getattr(how, name) != values[name]:
            label = _(how.bl_rna.properties[name].name)
            lines.append(f"{label}: {getattr(how, name)} → {values[name]}")
    return lines


def apply(scene: bpy.types.Scene, values: dict) -> None:
    """Raises PresetProblem when a value is none."""
    for name in _STORED:
        if name in values:
            try:
                setattr(scene.patina, name, values[name])
            except (TypeError, ValueError) as error:
                raise PresetProblem(f"The preset's {name} cannot be used: {error}") from error


def _write(presets: dict[str, dict]) -> None:
    protocol.write_beside(_file(), json.dumps(presets, indent=1).encode())


def _file():
    return preferences.data_folder() / "presets.json"


class PATINA_OT_preset_apply(bpy.types.Operator):
    """Take over the settings of this preset"""

    bl_idname = "patina.preset_apply"
    bl_label = "Apply Preset"
    bl_options = {"UNDO"}
    name: StringProperty(options={"SKIP_SAVE", "HIDDEN"})

    @classmethod
    def description(cls, context, properties):
        try:
            values = BUILT_IN.get(properties.name) or users().get(properties.name, {})
        except PresetProblem as error:
            return str(error)
        return "\n".join(changes(context.scene, values)) or _("Changes nothing: these are the settings now")

    def execute(self, context):
        try:
            apply(context.scene, BUILT_IN.get(self.name) or users()[self.name])
        except (PresetProblem, KeyError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class PATINA_OT_preset_save(bpy.types.Operator):
    """Keep the settings of now as a preset of your own"""

    bl_idname = "patina.preset_save"
    bl_label = "Save Preset"
    name: StringProperty(name="Name", description="What the preset is called", default="My Preset")

    def invoke(self, context, event):
        return context.window_manager.invoke_props_dialog(self)

    def execute(self, context):
        name = self.name.strip()
        try:
            if not name or name in BUILT_IN:
                raise PresetProblem("Give the preset a name that no built-in one has.")
            _write({**users(), name: {key: getattr(context.scene.patina, key) for key in _STORED}})
        except (PresetProblem, OSError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class PATINA_OT_preset_remove(bpy.types.Operator):
    """Delete this preset of your own"""

    bl_idname = "patina.preset_remove"
    bl_label = "Remove Preset"
    name: StringProperty(options={"SKIP_SAVE", "HIDDEN"})

    def execute(self, _context):
        try:
            _write({name: values for name, values in users().items() if name != self.name})
        except (PresetProblem, OSError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class PATINA_MT_presets(bpy.types.Menu):
    bl_idname = "PATINA_MT_presets"
    bl_label = "Presets"

    def draw(self, _context):
        layout = self.layout
        for name in BUILT_IN:
            layout.operator("patina.preset_apply", text=name).name = name
        try:
            own = users()
        except PresetProblem as error:
            layout.label(text=str(error), translate=False, icon="ERROR")
            own = {}
        if own:
            layout.separator()
        for name in own:
            row = layout.row()
            row.operator("patina.preset_apply", text=name, translate=False).name = name
            row.operator("patina.preset_remove", text="", icon="REMOVE").name = name
        layout.separator()
        layout.operator("patina.preset_save", icon="ADD")


register, unregister = bpy.utils.register_classes_factory(
    (PATINA_OT_preset_apply, PATINA_OT_preset_save, PATINA_OT_preset_remove, PATINA_MT_presets)
)
