# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's preferences, and the folders that follow from them. Knows no job."""

# ruff: noqa: F722, F821

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


class PATINA_preferences(bpy.types.AddonPreferences):
    bl_idname = EXTENSION

    python: StringProperty(
        name="Python",
        description="Interpreter (3.11 to 3.13) that the backend's environment is made with; empty: found by itself",
        subtype="FILE_PATH",
    )
    data_folder: StringProperty(
        name="Data Folder",
        description="Where jobs and the backend's environment are kept; empty: Blender's folder for this extension",
        subtype="DIR_PATH",
    )
    wheels: StringProperty(
        name="Offline Wheels",
        description="Folder of wheels to install the backend from, without any network; empty: from the package index",
        subtype="DIR_PATH",
    )
    device: EnumProperty(name="Device", description="What the backend computes on", items=_DEVICES)

    def draw(self, _context) -> None:
        from . import setup_panels  # it knows the session, which knows this file

        column = self.layout.column()
        column.use_property_split = True
        for name in ("device", "python", "data_folder", "wheels"):
            column.prop(self, name)
        setup_panels.draw_backend(self.layout)
        setup_panels.draw_models(self.layout)


def _stored() -> bpy.types.AddonPreferences | None:
    entry = bpy.context.preferences.addons.get(EXTENSION)
    return entry.preferences if entry else None  # none when run from a checkout, without being installed


def device() -> str:
    stored = _stored()
    return stored.device if stored else "auto"


def preferred_python() -> Path | None:
    stored = _stored()
    return Path(bpy.path.abspath(stored.python)) if stored and stored.python else None


def wheels() -> Path | None:
    stored = _stored()
    return Path(bpy.path.abspath(stored.wheels)) if stored and stored.wheels else None


def data_folder() -> Path:
    """Where the add-on may keep files of the user; made if need be. Raises OSError."""
    stored = _stored()
    if stored and stored.data_folder:
        folder = Path(bpy.path.abspath(stored.data_folder))
    elif EXTENSION.startswith("bl_ext."):
        return Path(bpy.utils.extension_path_user(EXTENSION, create=True))
    else:
        folder = Path(bpy.utils.user_resource("DATAFILES", path="patina"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def register() -> None:
    bpy.utils.register_class(PATINA_preferences)


def unregister() -> None:
    bpy.utils.unregister_class(PATINA_preferences)
