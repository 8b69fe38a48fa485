# SPDX-License-Identifier: GPL-3.0-or-later
"""The tab Patina in the 3D view's sidebar. Draws what is known already; computes and changes nothing."""

from __future__ import annotations

import bpy
from bpy.app.translations import pgettext_iface as _

from . import generate, material, protocol, session, setup_panels, status, variants
from .drawing import Sidebar, beside, draw_text


class PATINA_PT_main(Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_main"
    bl_label = "Patina"

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        obj, shown = context.object, context.window_manager.patina
        if obj is not None and obj.type == "MESH":
            _draw_settings(layout, obj, context.scene)
        setup_panels.draw_missing_backend(layout)
        if shown.busy:
            _draw_run(layout, context, shown)
        else:
            _draw_generate(layout, context, obj)
        _draw_outcome(layout, context, shown)
        _draw_left(layout, obj)
        restorable = ("Restore Old",) if material.can_restore(obj) else ()
        buttons = beside(layout, context, "Show Textures", *restorable)
        buttons.operator("patina.show_textures", icon="SHADING_TEXTURE")
        if restorable:
            buttons.operator("patina.revert", text=_("Restore Old"), icon="LOOP_BACK")


class PATINA_PT_preview(Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_preview"
    bl_parent_id = "PATINA_PT_main"
    bl_label = "Preview"
    bl_order = 1

    @classmethod
    def poll(cls, context):
        return cls._icon(context) != 0

    @staticmethod
    def _icon(context) -> int:
        """Of what runs, else of what is on the object."""
        running = session.current()
        now = variants.current(context.object)
        run = running.pictures.latest if running.busy or now is None else now.run
        return running.pictures.icon(run)

    def draw(self, context):
        self.layout.template_icon(self._icon(context), scale=7.0)
        if context.scene.view_settings.view_transform == "AgX":
            draw_text(self.layout, context, _("AgX shows colors paler than they are; Standard shows them as made."))


class PATINA_PT_lighting(Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_lighting"
    bl_parent_id = "PATINA_PT_main"
    bl_label = "Lighting"
    bl_order = 7
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        layout, light = self.layout, context.scene.patina.light
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.prop(light, "source")
        if light.source == "FOLDER":
            layout.prop(light, "folder")


class PATINA_PT_advanced(Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_advanced"
    bl_parent_id = "PATINA_PT_main"
    bl_label = "Advanced"
    bl_order = 9
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.enabled = not context.window_manager.patina.busy
        how = context.scene.patina
        column = layout.column()
        column.prop(how, "model")
        column.prop(how, "second_stage", text="Stage 2")
        column.prop(how, "control")
        if how.control:
            column.prop(how, "control_kind", text="Kind", text_ctxt="Patina")
            column.prop(how, "control_strength", text="Strength", text_ctxt="Patina")
        column = layout.column(align=True)
        column.prop(how, "start")
        column.prop(how, "guidance")
        column.prop(how, "guidance_scale", text="Scale", text_ctxt="Patina")
        column = layout.column(align=True)
        for name in ("steps", "views", "render_size"):
            column.prop(how, name)
        draw_text(layout, context, _("0: as Quality says"))
        column = layout.column()
        column.use_property_split = False
        column.label(text="Extra Maps")
        for name in protocol.EXTRA_MAPS:
            column.prop(how, f"extra_{name}")


def _draw_settings(layout, obj, scene) -> None:
    column = layout.column()
    column.use_property_split = False
    column.prop(obj.patina, "prompt", text="", icon="SHADING_RENDERED", placeholder=_("Prompt: rusty iron"))
    column.prop(obj.patina, "negative_prompt", text="", icon="REMOVE", placeholder=_("Not: scratches"))
    row = layout.row(align=True)
    row.use_property_split = False
    row.prop(scene.patina, "quality", expand=True)
    row.menu("PATINA_MT_presets", text="", icon="PRESET")
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
    several = sum(1 for other in bpy.context.selected_objects if other.type == "MESH" and other != obj) + 1
    text = _("Generate {count} Objects").format(count=several) if several > 1 else _("Generate")
    row.operator("patina.generate", icon="MATERIAL", text=text, translate=False)
    if several > 1:
        column.operator("patina.generate_atlas", icon="UV")
    if reason:
        draw_text(column, context, reason, "INFO")


def _draw_run(layout, context, shown) -> None:
    column = layout.column()
    text = _(shown.stage)
    if shown.total_steps and shown.step:
        text += "  " + _("{step} of {total}").format(step=shown.step, total=shown.total_steps)
    column.progress(factor=shown.fraction, type="BAR", text=text)
    row = column.row()
    left = status.duration(shown.seconds_left) if shown.seconds_left >= 0 else ""
    texturing = _("Texturing {object}").format(object=shown.object_name)
    row.label(text=_("{time} left").format(time=left) if left else texturing, translate=False)
    buttons = row.row(align=True)
    buttons.operator("patina.pause", icon="PAUSE", text="")
    buttons.operator("patina.cancel", icon="X")
    obj = context.object
    if obj is not None and obj.name != shown.object_name and not generate.refusal(session.current(), obj):
        text = _("Queue {object}").format(object=obj.name)
        column.operator("patina.generate", icon="ADD", text=text, translate=False)
    if shown.queued:
        draw_text(column, context, _("{count} more waiting").format(count=shown.queued), "SORTTIME")
    if shown.note:
        draw_text(column, context, shown.note, "INFO")


def _draw_left(layout, obj) -> None:
    """Runs that can be gone on with: those of this object, and how many there are of others."""
    left = session.current().left
    mine = [one for one in left if obj is not None and one.place.object_name == obj.name]
    for one in mine[:4]:
        box = layout.box().column(align=True)
        words = {"paused": _("Paused at {share}"), "interrupted": _("Interrupted at {share}"), "done": _("Finished")}
        box.label(text=one.place.request.prompt, translate=False, icon="RECOVER_LAST")
        box.label(text=words[one.ending].format(share=f"{one.fraction:.0%}"), translate=False, icon="BLANK1")
        row = box.row()
        text = _("Apply") if one.ending == "done" else _("Resume")
        row.operator("patina.resume", text=text, translate=False, icon="PLAY").run = one.place.run
        row.operator("patina.discard", text="", icon="TRASH").run = one.place.run
    if len(left) > len(mine):
        layout.label(text=_("{count} runs of other objects can be resumed").format(count=len(left) - len(mine)))


def _draw_outcome(layout, context, shown) -> None:
    if shown.message:
        box = layout.box()
        box.alert = shown.level == status.ERROR
        icon = {status.ERROR: "ERROR", status.WARNING: "ERROR"}.get(shown.level, "CHECKMARK")
        draw_text(box, context, shown.message, icon)
        box.alert = False
        if shown.hint:
            draw_text(box, context, shown.hint)
        if shown.fix == "smaller":
            box.operator("patina.retry_smaller", icon="FULLSCREEN_EXIT")
        elif shown.fix == "repair":
            box.operator("patina.repair_backend", icon="TOOL_SETTINGS", text=_("Repair Backend"), translate=False)
        if shown.log:
            box.operator("wm.path_open", text=_("Open Log"), icon="TEXT").filepath = shown.log
    if shown.waiting_result:
        layout.operator("patina.apply", icon="IMPORT")
    for warning in shown.warnings.splitlines():
        draw_text(layout, context, warning, "ERROR")


register, unregister = bpy.utils.register_classes_factory(
    (PATINA_PT_main, PATINA_PT_preview, PATINA_PT_lighting, PATINA_PT_advanced)
)
