# SPDX-License-Identifier: GPL-3.0-or-later
"""Patina inside Blender: the list of its modules, in order, and the name Blender knows the extension by.

Knows no feature. Imports nothing at import time, because the backend (no bpy) imports `addon.protocol`.
"""

import importlib

# The package that Blender enabled: the root of the installed extension, or this package in a checkout.
EXTENSION = __package__.rpartition(".")[0] or __package__

# Those with a `register`, in the order of registration.
_MODULES = (
    "limits",
    "variants",
    "reference",
    "world_light",
    "settings",
    "preferences",
    "session",
    "operators",
    "setup_operators",
    "presets",
    "variant_operators",
    "panels",
    "variant_panels",
    "reference_operators",
    "export_operators",
    "translations",
    "saving",
    "command",
)


def register() -> None:
    for name in _MODULES:
        importlib.import_module(f".{name}", __package__).register()


def unregister() -> None:
    for name in reversed(_MODULES):
        importlib.import_module(f".{name}", __package__).unregister()
