# SPDX-License-Identifier: GPL-3.0-or-later
"""What the panels share: where they are, and how a sentence is drawn. Knows no feature."""

from __future__ import annotations

import textwrap

from bpy.app.translations import pgettext_iface as _


class Sidebar:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Patina"


def draw_text(layout, context, text: str, icon: str = "NONE") -> None:
    """A sentence in as many lines as the sidebar's width needs."""
    width = context.region.width / context.preferences.system.ui_scale if context.region else 220
    lines = textwrap.wrap(_(text), max(16, int((width - 60) / 6.2))) or [""]
    column = layout.column(align=True)
    column.scale_y = 0.8
    for index, line in enumerate(lines):
        column.label(text=line, translate=False, icon=icon if index == 0 else ("BLANK1" if icon != "NONE" else "NONE"))


def bytes_in_words(count: int) -> str:
    """820 kB, 24 MB, 1.3 GB."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
