# SPDX-License-Identifier: GPL-3.0-or-later
"""The panel's words (words.tsv) and what the buttons say of themselves (tooltips.tsv): Russian, Chinese, Korean."""

from __future__ import annotations

from pathlib import Path

import bpy

LANGUAGES = ("ru_RU", "zh_HANS", "ko_KR")
_CONTEXTS = ("*", "Operator", "Patina")  # in ours, Blender's own translations do not come first
_FILES = ("words.tsv", "tooltips.tsv")


def table() -> dict[str, tuple[str, ...]]:
    """English -> the words in LANGUAGES."""
    files = (Path(__file__).with_name(name) for name in _FILES)
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    return {cells[0]: tuple(cells[1:]) for cells in (line.split("\t") for line in lines)}


def register() -> None:
    words = {language: {} for language in LANGUAGES}
    for english, others in table().items():
        for language, word in zip(LANGUAGES, others, strict=True):
            words[language].update({(context, english): word for context in _CONTEXTS})
    bpy.app.translations.register(__package__, words)


def unregister() -> None:
    bpy.app.translations.unregister(__package__)
