# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m addon.demo`: the add-on's own route in a Python with bpy, from a mesh file to pictures.

Settings, mesh export, job folder, backend process, maps and node tree are the add-on's; this file brings a mesh in and
writes what a person wants to look at. PATINA_PYTHON names the Python of the backend.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

import bpy

from . import command, protocol, register, session, settings, turntable, unregister


class DemoProblem(Exception):
    """The demo cannot go on; the text is a sentence for a person."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; every failure is one sentence on stderr."""
    arguments = _parser().parse_args(argv)
    register()
    try:
        _require_writable(arguments.out)
        several = len(arguments.prompt) > 1
        for prompt in arguments.prompt:
            folder = arguments.out / _folder_name(prompt) if several else arguments.out
            _texture(arguments, prompt, folder.resolve())
    except (DemoProblem, settings.SettingsProblem, OSError, RuntimeError) as error:
        print(f"Patina: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        unregister()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m addon.demo", description="Texture a mesh and look at it.")
    parser.add_argument("--prompt", action="append", required=True, help="may be given several times")
    parser.add_argument("--mesh", type=Path, help=".blend, .obj, .glb, .gltf or .ply; default: Suzanne")
    parser.add_argument("--object", help="which object of the file; default: the largest mesh")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_settings(parser)
    return parser


def _texture(arguments: argparse.Namespace, prompt: str, folder: Path) -> None:
    print(f"Patina: {prompt!r} into {folder}", flush=True)
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    obj = _bring_in(arguments.mesh, arguments.object)
    obj.patina.prompt = prompt
    if arguments.seed is None:
        arguments.seed = 0  # a demo shows the same picture twice
    command.store_settings(arguments, obj, bpy.context.scene)
    problem = command.run_one(obj, session.current(), folder)
    if problem:
        raise DemoProblem(problem)
    textured = time.monotonic()
    bpy.ops.wm.save_as_mainfile(filepath=str(folder / "textured.blend"), check_existing=False)
    _export_glb(obj, folder / "textured.glb")
    written = time.monotonic()
    print("Patina: rendering the turntable", flush=True)
    turntable.render(obj, folder / "turntable.png")
    _complete_report(folder, started, textured, written)
    print(f"Patina: done in {time.monotonic() - started:.0f} s: {folder}", flush=True)


def _bring_in(file: Path | None, name: str | None) -> bpy.types.Object:
    """The object to texture, in an otherwise empty file (a .blend is opened as it is). Raises DemoProblem."""
    if file is None:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        bpy.ops.mesh.primitive_monkey_add()
        smooth = bpy.context.object.modifiers.new("Subdivision", "SUBSURF")
        smooth.levels = smooth.render_levels = 2
        bpy.ops.object.shade_smooth()
        return bpy.context.object
    if not file.is_file():
        raise DemoProblem(f"There is no file {file}.")
    path, kind = str(file.resolve()), file.suffix.lower()
    importers = {
        ".obj": lambda: bpy.ops.wm.obj_import(filepath=path),
        ".ply": lambda: bpy.ops.wm.ply_import(filepath=path),
        ".glb": lambda: bpy.ops.import_scene.gltf(filepath=path),
        ".gltf": lambda: bpy.ops.import_scene.gltf(filepath=path),
    }
    if kind == ".blend":
        bpy.ops.wm.open_mainfile(filepath=path, load_ui=False, use_scripts=False)
    elif kind in importers:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        importers[kind]()
    else:
        raise DemoProblem(f"{file.name}: Patina reads .blend, .obj, .glb, .gltf and .ply files. Convert it first.")
    meshes = [obj for obj in bpy.context.view_layer.objects if obj.type == "MESH"]
    names = ", ".join(obj.name for obj in meshes[:10]) or "none"
    if name is not None:
        meshes = [obj for obj in meshes if obj.name == name]
    if not meshes:
        raise DemoProblem(f"There is no mesh object {name or ''} in {file.name}. Mesh objects: {names}.")
    obj = max(meshes, key=lambda mesh: len(mesh.data.polygons))
    for other in bpy.context.view_layer.objects:
        other.select_set(other == obj)
    bpy.context.view_layer.objects.active = obj
    return obj


def _export_glb(obj: bpy.types.Object, file: Path) -> None:
    for other in bpy.context.view_layer.objects:
        other.select_set(other == obj)
    bpy.ops.export_scene.gltf(
        filepath=str(file), export_format="GLB", use_selection=True, export_apply=True, export_tangents=False
    )
    if not file.is_file():
        raise DemoProblem(f"{file} was not written by Blender's exporter.")


def _complete_report(folder: Path, started: float, textured: float, written: float) -> None:
    """Add what happened on Blender's side to the backend's report."""
    file = folder / "report.json"
    try:
        report = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DemoProblem(f"The backend's report {file} cannot be read: {error}.") from error
    report["blender"] = {
        "version": bpy.app.version_string,
        "seconds": {
            "texturing": round(textured - started, 2),
            "saving": round(written - textured, 2),
            "turntable": round(time.monotonic() - written, 2),
        },
    }
    report["blender"]["warnings"] = session.current().status.warnings.splitlines()
    protocol.write_beside(file, json.dumps(report, indent=1).encode())


def _folder_name(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60] or "prompt"


def _require_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".patina-probe"
    probe.touch()
    probe.unlink()


if __name__ == "__main__":
    sys.exit(main())
