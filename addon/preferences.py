# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's preferences, and the folders that follow from them. Knows no job."""

# ruff: noqa: F722, F821

import os
from pathlib import Path

import bpy
from bpy.props import EnumProperty, StringProperty

from . import EXTENSION

_DEVICES = (
    ("auto", "Automatic", "The graphics card if there is a usable one, else the processor"),
    ("cpu", "Processor", ""),
    ("cuda", "NVIDIA or AMD Card", "CUDA or ROCm"),
    ("mps", "Apple Graphics", "Metal"),
)


def _absolute(name: str):
    """The update of a path: "//", relative to the open .blend, would name another place with each file."""

    def update(stored, _context) -> None:
        path = getattr(stored, name)
        if path.startswith("//") and bpy.data.filepath:
            setattr(stored, name, os.path.normpath(bpy.path.abspath(path)))

    return update


class PATINA_preferences(bpy.types.AddonPreferences):
    bl_idname = EXTENSION

    python: StringProperty(
        name="Python",
        description="Interpreter (3.11 to 3.13) that the backend's environment is made with; empty: found by itself",
        subtype="FILE_PATH",
        update=_absolute("python"),
    )
    data_folder: StringProperty(
        name="Data Folder",
        description="Where jobs and the backend's environment are kept; empty: Blender's folder for this extension",
        subtype="DIR_PATH",
        update=_absolute("data_folder"),
    )
    wheels: StringProperty(
        name="Offline Wheels",
        description="Folder of wheels to install the backend from, without any network; empty: from the package index",
        subtype="DIR_PATH",
        update=_absolute("wheels"),
    )
    device: EnumProperty(name="Device", description="What the backend computes on", items=_DEVICES)

    def draw(self, _context) -> None:
        from . import setup_panels  # it knows the session, which knows this file

        column = self.layout.column()
        column.use_property_split = True
        for name in ("device", "python", "data_folder", "wheels"):
            column.prop(self, name)
            if getattr(self, name).startswith("//"):
                column.label(text="A path that begins with // is not used: give the whole path", icon="ERROR")
        setup_panels.draw_backend(self.layout)
        setup_panels.draw_models(self.layout)


def _stored() -> bpy.types.AddonPreferences | None:
    entry = bpy.context.preferences.addons.get(EXTENSION)
    return entry.preferences if entry else None  # none when run from a checkout, without being installed


def device() -> str:
    stored = _stored()
    return stored.device if stored else "auto"


def _chosen(name: str) -> Path | None:
    """A path of the preferences; none when it is empty or relative to a .blend that was not saved yet."""
    path = getattr(_stored(), name, "")
    return Path(path) if path and not path.startswith("//") else None


def preferred_python() -> Path | None:
    return _chosen("python")


def wheels() -> Path | None:
    return _chosen("wheels")


def data_folder() -> Path:
    """Where the add-on may keep files of the user; made if need be. Raises OSError."""
    folder = _chosen("data_folder")
    if folder is None and EXTENSION.startswith("bl_ext."):
        return Path(bpy.utils.extension_path_user(EXTENSION, create=True))
    folder = folder or Path(bpy.utils.user_resource("DATAFILES", path="patina"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def register() -> None:
    bpy.utils.register_class(PATINA_preferences)


def unregister() -> None:
    bpy.utils.unregister_class(PATINA_preferences)
