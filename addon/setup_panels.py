# SPDX-License-Identifier: GPL-3.0-or-later
"""What the preferences show of the backend and the models, and the panel while the backend is missing."""

from __future__ import annotations

from bpy.app.translations import pgettext_iface as _

from . import environment, session, setup_operators


def draw_backend(layout) -> None:
    box = layout.box()
    ready = session.current().ready
    if ready:
        box.label(text="Backend is installed", icon="CHECKMARK")
    else:
        box.label(text="Backend is not installed", icon="ERROR")
    box.label(text=str(environment.chosen_python() or setup_operators.backend_home()), translate=False)
    draw_task(box)
    row = box.row(align=True)
    if not ready:
        row.operator("patina.install_backend", icon="IMPORT")
    row.operator("patina.repair_backend", icon="TOOL_SETTINGS")
    row.operator("patina.remove_backend", icon="TRASH")
    row.operator("patina.doctor", icon="CHECKBOX_HLT")
    row.operator("patina.copy_report", icon="COPYDOWN")


def draw_task(layout) -> None:
    """The task under way, or how the last one ended."""
    task = session.current().task
    if task is None:
        return
    if not task.finished:
        row = layout.row()
        if task.fraction >= 0:
            row.progress(factor=task.fraction, type="BAR", text=_(task.title))
        else:
            row.label(text=task.title, icon="SORTTIME")
        row.operator("patina.cancel_task", text="", icon="X")
        layout.label(text=task.text, translate=False)
    elif task.error:
        layout.label(text=task.error[:200], translate=False, icon="ERROR")
    elif task.title == "Doctor":
        column = layout.column(align=True)
        for line in task.lines:
            name, _blanks, found = line[2:].strip().partition("  ")
            row = column.split(factor=0.25)
            row.label(text=name, translate=False, icon="ERROR" if line[:2] == "!!" else "CHECKMARK")
            row.label(text=found.strip(), translate=False)


def draw_models(layout) -> None:
    box = layout.box()
    row = box.row()
    row.label(text="Models", icon="OUTLINER_OB_IMAGE")
    row.operator("patina.list_models", text="", icon="FILE_REFRESH")
    for model in session.current().models:
        row = box.row()
        size = f"{model['gigabytes']:g} GB" if model["gigabytes"] else _("comes with Patina")
        words = ", ".join(part for part in (size, model["licence"], model["use"]) if part)
        column = row.column(align=True)
        column.label(text=model["id"], translate=False, icon="CHECKMARK" if model["here"] else "BLANK1")
        column.label(text=words, translate=False, icon="BLANK1")
        if model["problem"]:
            column.label(text=model["problem"], translate=False, icon="ERROR")
        if not model["here"] or model["problem"]:
            button = row.operator("patina.pull_model", text="", icon="IMPORT")
            button.model, button.licence = model["id"], model["licence"]
        elif model["id"] != "built-in":
            row.operator("patina.remove_model", text="", icon="TRASH").model = model["id"]


def draw_missing_backend(layout) -> None:
    """In the panel: the button that installs, how far it is, why it failed."""
    task = session.current().task
    ready = session.current().ready
    if ready and (task is None or task.finished):
        return
    box = layout.box()
    draw_task(box)
    if not ready:
        box.operator("patina.install_backend", icon="IMPORT")
