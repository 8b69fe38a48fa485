# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons. Thin: each asks whether it may, calls one function and tells the outcome."""

from __future__ import annotations

import bpy

from . import generate, material, mesh_io, placing, session, status


class PATINA_OT_generate(bpy.types.Operator):
    """Make a PBR material for the active object from its prompt"""

    bl_idname = "patina.generate"
    bl_label = "Generate"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context):
        reason = generate.refusal(session.current(), context.object)
        if reason:
            cls.poll_message_set(reason)
        return not reason

    def execute(self, context):
        running, obj = session.current(), context.object
        try:
            generate.begin(context, obj, running)
        except generate.PROBLEMS as error:
            return _failed(self, running, str(error))
        if not bpy.app.background:
            session.keep_ticking()
            return {"FINISHED"}
        shown = session.run_to_end(running)
        if shown.level == status.ERROR:
            generate.take_back(running, obj)
            self.report({"ERROR"}, status.sentence(shown))
            return {"CANCELLED"}
        return {"FINISHED"}


class PATINA_OT_cancel(bpy.types.Operator):
    """End the run; the maps made so far stay until the next run"""

    bl_idname = "patina.cancel"
    bl_label = "Cancel"

    @classmethod
    def poll(cls, _context):
        running = session.current()
        if not running.busy:
            cls.poll_message_set("Nothing is running")
            return False
        if not running.status.can_cancel:
            cls.poll_message_set("The run is being ended")
            return False
        return True

    def execute(self, _context):
        session.current().cancel()
        return {"FINISHED"}


class PATINA_OT_revert(bpy.types.Operator):
    """Give the object back the material it had before the last run"""

    bl_idname = "patina.revert"
    bl_label = "Restore Old Material"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context):
        obj = context.object
        if obj is None or not material.can_restore(obj):
            cls.poll_message_set("Patina has not changed the material of this object")
            return False
        return True

    def execute(self, context):
        material.restore(context.object)
        return {"FINISHED"}


class PATINA_OT_apply(bpy.types.Operator):
    """Put the finished maps on the object again, after the run was undone or its material removed"""

    bl_idname = "patina.apply"
    bl_label = "Apply"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, _context):
        reason = cls._refusal()
        if reason:
            cls.poll_message_set(reason)
        return not reason

    @staticmethod
    def _refusal() -> str:
        running = session.current()
        if running.busy:
            return "Wait for the end of the run"
        if running.result is None:
            return "There is no result waiting"
        obj = placing.find_object(running.result.place)
        if obj is None:
            return f"The object {running.result.place.object_name} is gone; the maps are in {running.result.output}"
        return mesh_io.refusal(obj)

    def execute(self, _context):
        running = session.current()
        try:
            generate.apply_result(running, placing.find_object(running.result.place))
        except generate.PROBLEMS as error:
            return _failed(self, running, str(error))
        status.publish(running.status)
        return {"FINISHED"}


class PATINA_OT_show_textures(bpy.types.Operator):
    """Switch this 3D view to Material Preview, which shows the textures; Solid does not"""

    bl_idname = "patina.show_textures"
    bl_label = "Show Textures"

    @classmethod
    def poll(cls, context):
        if context.space_data is None or context.space_data.type != "VIEW_3D":
            cls.poll_message_set("Use it in a 3D view")
            return False
        return True

    def execute(self, context):
        context.space_data.shading.type = "MATERIAL"
        return {"FINISHED"}


def _failed(operator: bpy.types.Operator, running, sentence: str) -> set[str]:
    """Show a problem in the panel and report it; nothing was changed."""
    running.status.level, running.status.message, running.status.hint = status.ERROR, sentence, ""
    status.publish(running.status)
    operator.report({"ERROR"}, sentence)
    return {"CANCELLED"}


_CLASSES = (
    PATINA_OT_generate,
    PATINA_OT_cancel,
    PATINA_OT_revert,
    PATINA_OT_apply,
    PATINA_OT_show_textures,
)


def register() -> None:
    for cls in _CLASSES:
        bpy.utils.register_class(cls)


def unregister() -> None:
    for cls in reversed(_CLASSES):
        bpy.utils.unregister_class(cls)
