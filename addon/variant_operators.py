# SPDX-License-Identifier: GPL-3.0-or-later
"""The buttons of the variants: show, use settings, refine, more seeds, delete. Thin, like operators.py."""

# ruff: noqa: F722, F821

import random

import bpy
from bpy.props import IntProperty, StringProperty

from . import atlas, deletion, generate, material, mesh_io, placing, session, settings, variants
from .operators import StartsRuns, failed, start_all


class _OfAVariant:
    run: StringProperty(options={"SKIP_SAVE", "HIDDEN"})

    @classmethod
    def poll(cls, context):
        if context.object is None or context.object.type != "MESH" or not context.object.patina.variants:
            cls.poll_message_set("This object has no variants yet: press Generate")
            return False
        return True

    def variant(self, context):
        """The variant that is meant, or the one on the object. Raises VariantProblem."""
        obj = context.object
        found = variants.find(obj, self.run) if self.run else variants.current(obj)
        if found is None:
            raise variants.VariantProblem("No variant is on this object. Choose one first.")
        return found


class _StartsFromAVariant(StartsRuns, _OfAVariant):
    @classmethod
    def poll(cls, context):
        return super().poll(context) and super(StartsRuns, cls).poll(context)


class PATINA_OT_variant_show(_OfAVariant, bpy.types.Operator):
    """Show this variant on the object"""

    bl_idname = "patina.variant_show"
    bl_label = "Show Variant"
    bl_options = {"UNDO"}

    @classmethod
    def poll(cls, context):
        reason = mesh_io.refusal(context.object)
        if reason:
            cls.poll_message_set(reason)
            return False
        return super().poll(context)

    def execute(self, context):
        running = session.current()
        try:
            placing.show(context.object, self.variant(context))
        except generate.PROBLEMS as error:
            return failed(self, running, error)
        return {"FINISHED"}


class PATINA_OT_variant_pin(_OfAVariant, bpy.types.Operator):
    """Pin or unpin this variant; what is pinned is not deleted"""

    bl_idname = "patina.variant_pin"
    bl_label = "Pin"
    bl_options = {"UNDO"}

    def execute(self, context):
        variant = self.variant(context)
        variant.pinned = not variant.pinned
        return {"FINISHED"}


class PATINA_OT_variant_use_settings(_OfAVariant, bpy.types.Operator):
    """Put prompt, seed and all settings of this variant into the panel"""

    bl_idname = "patina.variant_use_settings"
    bl_label = "Use Settings"
    bl_options = {"UNDO"}

    def execute(self, context):
        try:
            settings.take_over(variants.request_of(self.variant(context)), context.object, context.scene)
        except (*generate.PROBLEMS, TypeError) as error:
            return failed(self, session.current(), error)
        return {"FINISHED"}


class PATINA_OT_variant_delete(_OfAVariant, bpy.types.Operator):
    """Delete this variant with its files; the one before it is shown. The files do not come back with undo"""

    bl_idname = "patina.variant_delete"
    bl_label = "Delete Variant"
    bl_options = {"UNDO"}

    def invoke(self, context, event):
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, context):
        obj, running = context.object, session.current()
        try:
            variant = self.variant(context)
            run, reason = variant.run, deletion.refusal(obj, variant, shown=False)
            if run in running.busy_runs():
                reason = "This variant is being made. Wait for it or cancel it"
            if reason:
                raise variants.VariantProblem(f"{reason}.")
            if variants.current(obj) == variant:
                _step_aside(obj, variant)
            stays = deletion.delete(obj, run)
        except generate.PROBLEMS as error:
            return failed(self, running, error)
        if stays:
            self.report({"INFO"}, stays)
        running.look_around()
        return {"FINISHED"}


def _step_aside(obj, variant) -> None:
    """Show the newest other variant of the same slots in place of this one, or what was there before Patina."""
    others = [v for v in obj.patina.variants if v != variant and v.slot == variant.slot and variants.has_maps(v)]
    if others:
        placing.show(obj, others[-1])
    else:
        material.restore(obj, None if variant.slot < 0 else variant.slot)


class PATINA_OT_variant_clean(_OfAVariant, bpy.types.Operator):
    """Delete all variants of this object that are neither shown nor pinned, with their files"""

    bl_idname = "patina.variant_clean"
    bl_label = "Delete Others"
    bl_options = {"UNDO"}

    def invoke(self, context, event):
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, context):
        obj, running = context.object, session.current()
        busy, deleted, told = running.busy_runs(), 0, []
        for run in [variant.run for variant in obj.patina.variants]:
            variant = variants.find(obj, run)
            if run in busy or variant.pinned or material.is_on(obj, run):
                continue
            reason = deletion.refusal(obj, variant)
            told.append(f"{reason}." if reason else deletion.delete(obj, run))
            deleted += not reason
        said = " ".join(dict.fromkeys(filter(None, told)))
        self.report({"INFO"}, f"{deleted} deleted. {said}".strip())
        running.look_around()
        return {"FINISHED"}


class PATINA_OT_refine(_StartsFromAVariant, bpy.types.Operator):
    """Go on from the maps of the shown variant, with the prompt and settings of the panel, within the limits below"""

    bl_idname = "patina.refine"
    bl_label = "Refine This"
    bl_options = {"UNDO"}

    def execute(self, context):
        try:
            run = self.variant(context).run
        except generate.PROBLEMS as error:
            return failed(self, session.current(), error)
        return start_all(self, context, [(context.object, {"start": run})])


class PATINA_OT_more_seeds(_StartsFromAVariant, bpy.types.Operator):
    """Make the shown variant again with other seeds, one after the other"""

    bl_idname = "patina.more_seeds"
    bl_label = "Another Seed"
    bl_options = {"UNDO"}
    count: IntProperty(default=1, min=1, max=16, options={"SKIP_SAVE"})

    def execute(self, context):
        obj = context.object
        try:
            variant = self.variant(context)
            request = variants.request_of(variant)
            settings.take_over(request, obj, context.scene)
        except (*generate.PROBLEMS, TypeError) as error:
            return failed(self, session.current(), error)
        draw = random.SystemRandom() if not bpy.app.background else random.Random(request.seed)
        seeds = [draw.randrange(2**31) for _ in range(self.count)]
        runs = [{"show": seed == seeds[0], "seed": seed} for seed in seeds]
        if not variant.shared:
            refined = request.start_maps and variants.find(obj, variant.parent) is not None
            like = {"slot": variant.slot if variant.slot >= 0 else None, "start": variant.parent if refined else ""}
            return start_all(self, context, [(obj, {**run, **like}) for run in runs])
        others = [other for other in variants.objects_of(variant.run) if other != obj]
        return start_all(self, context, [(obj, {**run, "others": others}) for run in runs], begin=atlas.begin)


register, unregister = bpy.utils.register_classes_factory(
    (
        PATINA_OT_variant_show,
        PATINA_OT_variant_pin,
        PATINA_OT_variant_use_settings,
        PATINA_OT_variant_delete,
        PATINA_OT_variant_clean,
        PATINA_OT_refine,
        PATINA_OT_more_seeds,
    )
)
