# SPDX-License-Identifier: GPL-3.0-or-later
"""What the panels share: where they are, how a sentence is drawn, what fits beside what. Knows no feature."""

from __future__ import annotations

import re
from collections.abc import Callable

import blf
from bpy.app.translations import pgettext_iface as _

_IDEOGRAPH = "\u2e80-\ua4cf\uf900-\ufaff\uff00-\uffef"
_CLOSING = "、。，．：；！？）」』】》"
_PIECES = re.compile(rf"\s*(?:[{_IDEOGRAPH}]|[^\s{_IDEOGRAPH}]+)[{_CLOSING}]*")

# At an interface scale of 1, in pixels:
_AROUND = 74  # what of the sidebar's width is not a text's: tabs, the panel's borders, a box and its borders
_BOX = 20  # of that
_ICON = 22
_BORDERS = 8  # of a button


class Sidebar:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Patina"


def draw_text(layout, context, text: str, icon: str = "NONE") -> None:
    """A sentence in as many lines as the sidebar's width needs."""
    limit = _room(context) - (_ICON * _scale(context) if icon != "NONE" else 0)
    column = layout.column(align=True)
    column.scale_y = 0.8
    for index, line in enumerate(wrapped(_(text), lambda part: _width(context, part), limit)):
        column.label(text=line, translate=False, icon=icon if index == 0 else ("BLANK1" if icon != "NONE" else "NONE"))


def wrapped(text: str, width: Callable[[str], float], limit: float) -> list[str]:
    """The text in lines no wider than `limit`. Between ideographs a line may end; a word that is too long is broken."""
    lines, line = [], ""
    for piece in _PIECES.findall(text):
        if line and width(line + piece) > limit:
            lines.append(line)
            line = ""
        line = line + piece if line else piece.lstrip()
        while len(line) > 1 and width(line) > limit:
            count = len(line) - 1
            while count > 1 and width(line[:count]) > limit:
                count -= 1
            lines.append(line[:count])
            line = line[count:]
    return [*lines, line]


def beside(layout, context, *texts: str, icons: bool = True):
    """A row for buttons with these texts, or a column where they would be cut."""
    each = (_room(context) + _BOX * _scale(context)) / len(texts)
    widest = max(_width(context, _(text)) for text in texts) + (_BORDERS + _ICON * icons) * _scale(context)
    return layout.row(align=True) if widest <= each else layout.column(align=True)


def fits(context, text: str, taken: float = 0.0) -> bool:
    """Whether a line of text is not cut; `taken`: pixels at an interface scale of 1 that are another's."""
    return _width(context, text) <= _room(context) - taken * _scale(context)


def _room(context) -> float:
    region = context.region
    return (region.width if region else 220 * _scale(context)) - _AROUND * _scale(context)


def _scale(context) -> float:
    return context.preferences.system.ui_scale


def _width(context, text: str) -> float:
    """Pixels, in the font of labels and buttons."""
    blf.size(0, context.preferences.ui_styles[0].widget.points * _scale(context))
    return blf.dimensions(0, text)[0]


def bytes_in_words(count: int) -> str:
    """820 kB, 24 MB, 1.3 GB."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
