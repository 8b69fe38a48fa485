# SPDX-License-Identifier: GPL-3.0-or-later
"""The tab Patina in the 3D view's sidebar. Draws what is known already; computes and changes nothing."""

from __future__ import annotations

import textwrap

import bpy
from bpy.app.translations import pgettext_iface as _

from . import generate, material, session, status

_CATEGORY = "Patina"


class _Sidebar:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = _CATEGORY


class PATINA_PT_main(_Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_main"
    bl_label = "Patina"

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        obj, shown = context.object, context.window_manager.patina
        if obj is not None and obj.type == "MESH":
            _draw_settings(layout, obj, context.scene)
        if shown.busy:
            _draw_run(layout, context, shown)
        else:
            _draw_generate(layout, context, obj)
        _draw_outcome(layout, context, shown)
        row = layout.row(align=True)
        row.operator("patina.show_textures", icon="SHADING_TEXTURE")
        if material.can_restore(obj):
            row.operator("patina.revert", text=_("Restore Old"), icon="LOOP_BACK")


class PATINA_PT_preview(_Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_preview"
    bl_parent_id = "PATINA_PT_main"
    bl_label = "Preview"

    @classmethod
    def poll(cls, _context):
        return "base_color" in session.current().thumbnails

    def draw(self, context):
        self.layout.template_icon(session.current().thumbnails["base_color"].icon_id, scale=8.0)
        _text(self.layout, context, _("Base color, as laid out in the texture"))
        if context.scene.view_settings.view_transform == "AgX":
            _text(self.layout, context, _("AgX shows colors paler than they are; Standard shows them as made."))


class PATINA_PT_advanced(_Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_advanced"
    bl_parent_id = "PATINA_PT_main"
    bl_label = "Advanced"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.enabled = not context.window_manager.patina.busy
        for name in ("model", "guidance", "guidance_scale", "steps", "views", "render_size"):
            layout.prop(context.scene.patina, name)


def _draw_settings(layout, obj, scene) -> None:
    column = layout.column()
    column.use_property_split = False
    column.prop(obj.patina, "prompt", text="", icon="SHADING_RENDERED", placeholder=_("Prompt: rusty iron"))
    column.prop(obj.patina, "negative_prompt", text="", icon="REMOVE", placeholder=_("Not: scratches"))
    row = layout.row()
    row.use_property_split = False
    row.prop(scene.patina, "quality", expand=True)
    column = layout.column()
    column.prop(scene.patina, "texture_size")
    column.prop(scene.patina, "pattern_scale")
    row = column.row(align=True)
    row.prop(obj.patina, "seed")
    locked = obj.patina.seed_locked
    row.prop(obj.patina, "seed_locked", text="", icon="LOCKED" if locked else "UNLOCKED")
    if len(obj.material_slots) > 1:
        column.prop(obj.patina, "cover")


def _draw_generate(layout, context, obj) -> None:
    column = layout.column()
    reason = generate.refusal(session.current(), obj)
    row = column.row()
    row.scale_y = 1.4
    row.operator("patina.generate", icon="MATERIAL")
    if reason:
        _text(column, context, reason, "INFO")


def _draw_run(layout, context, shown) -> None:
    column = layout.column()
    text = _(shown.stage)
    if shown.total_steps and shown.step:
        text += "  " + _("{step} of {total}").format(step=shown.step, total=shown.total_steps)
    column.progress(factor=shown.fraction, type="BAR", text=text)
    row = column.row()
    left = status.duration(shown.seconds_left) if shown.seconds_left >= 0 else ""
    waiting = _("Texturing {object}").format(object=shown.object_name)
    row.label(text=_("{time} left").format(time=left) if left else waiting)
    row.operator("patina.cancel", icon="X")
    if shown.note:
        _text(column, context, shown.note, "INFO")


def _draw_outcome(layout, context, shown) -> None:
    if shown.message:
        box = layout.box()
        box.alert = shown.level == status.ERROR
        icon = {status.ERROR: "ERROR", status.WARNING: "ERROR"}.get(shown.level, "CHECKMARK")
        _text(box, context, shown.message, icon)
        box.alert = False
        if shown.hint:
            _text(box, context, shown.hint)
        if shown.log:
            box.operator("wm.path_open", text=_("Open Log"), icon="TEXT").filepath = shown.log
    if shown.waiting_result:
        layout.operator("patina.apply", icon="IMPORT")
    for warning in shown.warnings.splitlines():
        _text(layout, context, warning, "ERROR")


def _text(layout, context, text: str, icon: str = "NONE") -> None:
    """A sentence in as many lines as the sidebar's width needs."""
    width = context.region.width / context.preferences.system.ui_scale if context.region else 220
    lines = textwrap.wrap(_(text), max(16, int((width - 60) / 6.2))) or [""]
    column = layout.column(align=True)
    column.scale_y = 0.8
    for index, line in enumerate(lines):
        column.label(text=line, translate=False, icon=icon if index == 0 else ("BLANK1" if icon != "NONE" else "NONE"))


_CLASSES = (PATINA_PT_main, PATINA_PT_preview, PATINA_PT_advanced)


def register() -> None:
    for cls in _CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(_CLASSES):
        bpy.utils.unregister_class(cls)
