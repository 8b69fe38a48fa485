# SPDX-License-Identifier: GPL-3.0-or-later
"""Deleting a variant: what of it may go, and what stays because somebody else needs it.

The line on the object always goes. Material, images and files go only where no other object, material or .blend file
uses them: an artist appends, links, duplicates, and saves versions of a file beside each other.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import bpy

from . import generate, images, material, preferences, protocol, variants
from .variants import VariantProblem

_FILES = (
    variants.UVS, variants.PICTURE, variants.REPORT, "moved",
    *(f"{name}.png" for name in (*protocol.MAP_NAMES, *protocol.EXTRA_MAPS)),
)  # fmt: skip
_LOOKING_ON = {"SCREEN", "WORKSPACE", "WINDOWMANAGER"}  # editors that show an image do not need it


def refusal(obj: bpy.types.Object, variant: variants.PATINA_PG_variant, shown: bool = True) -> str:
    """Why a variant cannot be deleted, or an empty string. `shown`: being on the object itself counts."""
    if obj.library is not None:
        return f"{obj.name} is linked from {bpy.path.basename(obj.library.filepath)}. Delete its variants there"
    if variant.pinned:
        return f"{variant.name} is pinned. Unpin it first"
    for other in bpy.data.objects:
        counts = shown if other == obj else variant.shared or variants.find(other, variant.run) is None
        if counts and material.is_on(other, variant.run):
            return f"{variant.name} is on {other.name}. Show another variant or restore the old material first"
    return ""


def delete(obj: bpy.types.Object, run: str) -> str:
    """Delete a variant; why its files stay, or an empty string. Raises VariantProblem; then nothing changed."""
    variant = variants.find(obj, run)
    if variant is None:
        raise VariantProblem("This variant is gone already.")
    reason = refusal(obj, variant)
    if reason:
        raise VariantProblem(f"{reason}.")
    name, folder, shared = variant.name, variants.folder_of(variant), variant.shared
    made = variant.material if variant.material is not None and variant.material.get(images.RUN_KEY) == run else None
    elsewhere = _file_that_uses(variant, folder)
    for other in [obj, *(variants.objects_of(run) if shared else ())]:
        variants.forget(other, run)
    needed = _needed(run, made)
    if needed:
        return f"The files of {name} stay: {needed}."
    if made is not None:
        bpy.data.materials.remove(made)
    for image in list(images.find(run).values()):
        bpy.data.images.remove(image)
    if elsewhere:
        return f"The files of {name} stay: {elsewhere}."
    if images.is_of_a_run(folder):
        _remove_files(folder)
    shutil.rmtree(preferences.data_folder() / "jobs" / run, ignore_errors=True)
    return ""


def _needed(run: str, made: bpy.types.Material | None) -> str:
    """Who in this file needs material or images of a run that was just forgotten."""
    keeper = next(iter(variants.objects_of(run)), None)
    if keeper is not None:
        return f"it is a variant of {keeper.name} as well"
    if made is not None and (made.asset_data is not None or made.use_fake_user):
        return f"its material {made.name} is an asset or is kept by a fake user"
    own = {*images.find(run).values(), *([made] if made is not None else [])}
    for datablock, users in bpy.data.user_map(subset=own).items() if own else ():
        others = [user for user in users - own if user.users and user.id_type not in _LOOKING_ON]
        if others:
            return f"{datablock.name} is used by {others[0].name}"
    return ""


def _file_that_uses(variant: variants.PATINA_PG_variant, folder: Path) -> str:
    """Maps that came with an appended object, or with an earlier version of the file, are not this file's."""
    roots = (generate.output_root(), generate.unsaved_root())
    if not any(folder.resolve().is_relative_to(root.resolve()) for root in roots):
        return f"they lie in {folder}, not beside this file"
    if variant.made_in not in ("", bpy.path.basename(bpy.data.filepath)):
        older = Path(bpy.data.filepath).with_name(variant.made_in)
        if older.is_file():
            return f"{older.name} uses them too"
    return ""


def _remove_files(folder: Path) -> None:
    of_members = [file.name for file in folder.glob(variants.MEMBER_UVS.format(number="*"))]
    for name in (*_FILES, *of_members):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: someone else's files are in it
        folder.rmdir()
