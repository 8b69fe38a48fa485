# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons. Thin: each asks whether it may, calls one function and tells the outcome."""

from __future__ import annotations

import bpy

from . import atlas, generate, interrupted, material, mesh_io, placing, protocol, session, status, variants


class StartsRuns:
    """What every button asks that begins a run of the active object."""

    @classmethod
    def poll(cls, context):
        reason = generate.refusal(session.current(), context.object)
        if reason:
            cls.poll_message_set(reason)
        return not reason


class PATINA_OT_generate(StartsRuns, bpy.types.Operator):
    """Make a PBR material for each selected mesh object from its prompt; objects without one take the active's"""

    bl_idname = "patina.generate"
    bl_label = "Generate"
    bl_options = {"UNDO"}

    def execute(self, context):
        prompt = context.object.patina.prompt
        chosen = [obj for obj in generate.chosen_objects(context) if not mesh_io.refusal(obj)]
        for obj in chosen:
            if not obj.patina.prompt.strip():
                obj.patina.prompt = prompt
        return start_all(self, context, [(obj, run) for obj in chosen for run in generate.runs_of(obj)])


class PATINA_OT_generate_atlas(StartsRuns, bpy.types.Operator):
    """Make one set of maps for all selected mesh objects, from the prompt of the active one, in new UV layers"""

    bl_idname = "patina.generate_atlas"
    bl_label = "One Shared Atlas"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context):
        if sum(1 for obj in context.selected_objects if obj.type == "MESH") < 2:
            cls.poll_message_set("Select several mesh objects")
            return False
        return super().poll(context)

    def execute(self, context):
        lead, *others = generate.chosen_objects(context)
        return start_all(self, context, [(lead, {"others": others})], begin=atlas.begin)


def start_all(
    operator: bpy.types.Operator, context: bpy.types.Context, runs: list[tuple], begin=generate.begin
) -> set[str]:
    """Begin the runs (object, arguments of `begin`) one behind the other; headless, wait for each."""
    running, begun, problems = session.current(), 0, []
    for obj, arguments in runs:
        try:
            begin(context, obj, running, **arguments)
        except generate.PROBLEMS as error:
            problems.append(status.told(error))
            continue
        begun += 1
        if not bpy.app.background:
            continue
        with session.interruptible() as came:
            shown = session.run_to_end(running)
        if shown.level == status.ERROR or (came and shown.message.startswith("Cancelled")):
            generate.take_back(running)
            problems.append(status.sentence(shown))
            begun -= 1
        if came:
            break
    if not begun:
        return failed(operator, running, " ".join(dict.fromkeys(problems)))
    for sentence in dict.fromkeys(problems):
        operator.report({"WARNING"}, sentence)
    if not bpy.app.background:
        running.pictures.look_around()
        session.keep_ticking()
    return {"FINISHED"}


class PATINA_OT_retry_smaller(StartsRuns, bpy.types.Operator):
    """Free the backend's memory and try again with maps of half the size, as a draft"""

    bl_idname = "patina.retry_smaller"
    bl_label = "Retry Smaller"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context):
        if session.current().busy:  # it ends the backend, which other runs may need
            cls.poll_message_set("Wait for the end of the run")
            return False
        return super().poll(context)

    def execute(self, context):
        how, running = context.scene.patina, session.current()
        if running.ended is None or (obj := placing.find_object(running.ended.place)) is None:
            return failed(self, running, "The object of that run is gone.")
        place = running.ended.place
        how.texture_size = str(max(int(how.texture_size) // 2, min(protocol.TEXTURE_SIZES)))
        how.quality = "draft"
        running.end_worker()
        if place.others:
            found = [placing.find_object(each) for each in placing.all_places(place)[1:]]
            others = [other for other in found if other is not None]
            return start_all(self, context, [(obj, {"others": others})], begin=atlas.begin)
        return start_all(self, context, [(obj, {"slot": place.slot, "start": place.parent})])


class PATINA_OT_cancel(bpy.types.Operator):
    """End the run and those that wait for it; the maps made so far stay until the next run"""

    bl_idname = "patina.cancel"
    bl_label = "Cancel"
    bl_options = {"UNDO"}

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
        running = session.current()
        generate.forget_waiting(running)
        running.cancel()
        return {"FINISHED"}


class PATINA_OT_pause(bpy.types.Operator):
    """Save the run's state, end it and free all its memory; Resume goes on, even after Blender was closed"""

    bl_idname = "patina.pause"
    bl_label = "Pause"

    @classmethod
    def poll(cls, _context):
        if not session.current().status.can_pause:
            cls.poll_message_set("Nothing is running that can be paused just now")
            return False
        return True

    def execute(self, _context):
        running = session.current()
        try:
            running.pause()
        except OSError as error:
            return failed(self, running, f"The run cannot be paused: {error.strerror or error}.")
        return {"FINISHED"}


class PATINA_OT_resume(bpy.types.Operator):
    """Go on with this run where it was left, or take its result if it came to its end without Blender"""

    bl_idname = "patina.resume"
    bl_label = "Resume"
    bl_options = {"UNDO"}
    run: bpy.props.StringProperty(options={"SKIP_SAVE", "HIDDEN"})  # noqa: F722, F821

    @classmethod
    def poll(cls, _context):
        if session.current().busy:
            cls.poll_message_set("Wait for the end of the run")
            return False
        return True

    def execute(self, _context):
        running = session.current()
        left = next((left for left in running.left if left.place.run == self.run), None)
        try:
            if left is None:
                raise variants.VariantProblem("This run is gone.")
            generate.take_up(running, left)
        except generate.PROBLEMS as error:
            return failed(self, running, error)
        running.look_around()
        if bpy.app.background and running.busy:
            with session.interruptible():
                session.run_to_end(running)
        session.keep_ticking()
        return {"FINISHED"}


class PATINA_OT_discard(bpy.types.Operator):
    """Give this run up: what is needed to go on with it is deleted; the maps it has shown stay"""

    bl_idname = "patina.discard"
    bl_label = "Discard"
    run: bpy.props.StringProperty(options={"SKIP_SAVE", "HIDDEN"})  # noqa: F722, F821

    def invoke(self, context, event):
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, _context):
        running = session.current()
        for left in running.left:
            if left.place.run == self.run:
                interrupted.discard(left)
        running.look_around()
        status.redraw()
        return {"FINISHED"}


class PATINA_OT_revert(bpy.types.Operator):
    """Give the object back the material it had before Patina; the variants stay"""

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
            return failed(self, running, error)
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


def failed(operator: bpy.types.Operator, running, problem: str | Exception) -> set[str]:
    """Show a problem in the panel and report it; nothing was changed."""
    sentence = problem if isinstance(problem, str) else status.told(problem)
    running.status.level, running.status.message, running.status.hint = status.ERROR, sentence, ""
    status.publish(running.status)
    operator.report({"ERROR"}, sentence)
    return {"CANCELLED"}


register, unregister = bpy.utils.register_classes_factory(
    (
        PATINA_OT_generate,
        PATINA_OT_generate_atlas,
        PATINA_OT_retry_smaller,
        PATINA_OT_cancel,
        PATINA_OT_pause,
        PATINA_OT_resume,
        PATINA_OT_discard,
        PATINA_OT_revert,
        PATINA_OT_apply,
        PATINA_OT_show_textures,
    )
)
