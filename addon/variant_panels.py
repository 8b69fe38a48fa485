# SPDX-License-Identifier: GPL-3.0-or-later
"""The sub-panels Variants and Refine: the runs of an object side by side, and what the next one may change."""

from __future__ import annotations

import bpy
from bpy.app.translations import pgettext_iface as _

from . import limits, session, variants
from .drawing import Sidebar, beside, bytes_in_words, draw_text, fits

_MOST_SHOWN = 8
_BESIDE_NAME = 44  # pixels: an icon and two buttons


class PATINA_PT_variants(Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_variants"
    bl_parent_id = "PATINA_PT_main"
    bl_label = "Variants"
    bl_order = 2

    @classmethod
    def poll(cls, context):
        return context.object is not None and context.object.type == "MESH" and len(context.object.patina.variants) > 0

    def draw(self, context):
        layout, obj = self.layout, context.object
        pictures, now = session.current().pictures, variants.current(obj)
        kept = list(obj.patina.variants)
        shown = [v for v in kept if v.pinned or v == now]
        others = [v for v in reversed(kept) if v not in shown]
        shown += others[: max(0, _MOST_SHOWN - len(shown))]
        shown.sort(key=lambda variant: variant.run, reverse=True)
        grid = layout.grid_flow(row_major=True, columns=2, even_columns=True, align=False)
        for variant in shown:
            _draw_cell(grid, variant, pictures, variant == now)
        total = sum(pictures.bytes.get(variant.run, 0) for variant in kept)
        row = layout.row()
        words = _("{count} variants, {size}").format(count=len(kept), size=bytes_in_words(total))
        row.label(text=words, translate=False)
        row.operator("patina.variant_clean", text="", icon="BRUSH_DATA")
        if now is not None:
            _draw_chosen(layout, context, now)


def _draw_cell(grid, variant, pictures, current: bool) -> None:
    cell = grid.box().column(align=True)
    icon = pictures.icon(variant.run)
    if icon:
        cell.template_icon(icon, scale=4.5)
    else:
        cell.label(text="", icon="IMAGE_DATA")
    row = cell.row(align=True)
    row.alert = variant.run in pictures.gone
    row.operator("patina.variant_show", text=variant.name, translate=False, depress=current).run = variant.run
    pin = "PINNED" if variant.pinned else "UNPINNED"
    row.operator("patina.variant_pin", text="", icon=pin, depress=variant.pinned).run = variant.run


def _draw_chosen(layout, context, now) -> None:
    column = layout.column(align=True)
    row = column.row(align=True)
    row.prop(now, "name", text="", icon="SORTALPHA")
    row.operator("patina.variant_use_settings", text="", icon="PASTEDOWN").run = now.run
    row.operator("patina.variant_delete", text="", icon="TRASH").run = now.run
    if now.prompt != now.name or not fits(context, now.name, _BESIDE_NAME):
        draw_text(column, context, now.prompt)
    column.label(text=_("Seed {seed}").format(seed=now.seed), translate=False)
    buttons = beside(layout, context, "Another Seed", "Four Seeds", icons=False)
    buttons.operator("patina.more_seeds", text=_("Another Seed"), translate=False).count = 1
    buttons.operator("patina.more_seeds", text=_("Four Seeds"), translate=False).count = 4


class PATINA_PT_refine(Sidebar, bpy.types.Panel):
    bl_idname = "PATINA_PT_refine"
    bl_parent_id = "PATINA_PT_main"
    bl_label = "Refine"
    bl_order = 3

    @classmethod
    def poll(cls, context):
        return variants.current(context.object) is not None

    def draw(self, context):
        layout, obj = self.layout, context.object
        layout.use_property_split = True
        layout.use_property_decorate = False
        within = obj.patina.limits
        column = layout.column()
        column.prop(within, "strength", slider=True)
        column.prop(within, "region")
        if within.region == "GROUP":
            column.prop_search(within, "vertex_group", obj, "vertex_groups", text="Group")
        elif within.region == "IMAGE":
            column.prop(within, "image")
        if within.region != "ALL":
            column.prop(within, "border", slider=True)
        column = layout.column(align=True)
        column.use_property_split = False
        column.label(text="Lock")
        grid = column.grid_flow(row_major=True, columns=2, even_columns=True, align=True)
        for name in ("base_color", "metallic", "roughness", "normal"):
            locked = name in limits.locked_maps(within)
            grid.prop(within, f"lock_{name}", toggle=True, icon="LOCKED" if locked else "UNLOCKED")
        row = layout.row()
        row.scale_y = 1.2
        row.operator("patina.refine", icon="MOD_DYNAMICPAINT")


register, unregister = bpy.utils.register_classes_factory((PATINA_PT_variants, PATINA_PT_refine))
