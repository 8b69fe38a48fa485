# SPDX-License-Identifier: GPL-3.0-or-later
"""`blender -b FILE -c patina run | batch | status | resume ...`: the commands of the terminal. Knows no stage."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import bpy

from . import batch_command, generate, images, jobs, protocol, session, settings, status

_handles: list = []


def parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    add_settings(shared)
    top = argparse.ArgumentParser(prog="blender -b FILE -c patina", description="Text to PBR textures.")
    commands = top.add_subparsers(dest="what", required=True)
    run = commands.add_parser("run", parents=[shared], help="texture one object")
    run.set_defaults(function=_run)
    batch_command.add_commands(commands)
    run.add_argument("--object", help="its name; not needed if the file holds one mesh object only")
    run.add_argument("--prompt", help="what the surface is made of; default: the prompt stored on the object")
    run.add_argument("--save", action="store_true", help="write FILE")
    run.add_argument("--save-as", type=Path, metavar="PATH", help="write a new .blend")
    run.add_argument("--out", type=Path, metavar="DIR", help="put the four maps and report.json there")
    return top


def add_settings(arguments: argparse.ArgumentParser) -> None:
    """The settings that every command of the add-on takes."""
    arguments.add_argument("--negative-prompt")
    arguments.add_argument("--quality", choices=protocol.QUALITIES)
    arguments.add_argument("--seed", type=int)
    arguments.add_argument("--texture-size", type=int, choices=protocol.TEXTURE_SIZES)
    arguments.add_argument("--pattern-scale", type=float)
    arguments.add_argument("--model")


def store_settings(arguments: argparse.Namespace, obj: bpy.types.Object, scene: bpy.types.Scene) -> None:
    """Write the given settings where the panel keeps them. Raises SettingsProblem."""
    if arguments.seed is not None and not 0 <= arguments.seed < 2**31:
        raise settings.SettingsProblem("--seed must lie between 0 and 2147483647.")
    if arguments.pattern_scale is not None and not 0.05 <= arguments.pattern_scale <= 20.0:
        raise settings.SettingsProblem("--pattern-scale must lie between 0.05 and 20.")
    for name in ("negative_prompt", "seed"):
        if getattr(arguments, name) is not None:
            setattr(obj.patina, name, getattr(arguments, name))
    for name in ("quality", "pattern_scale"):
        if getattr(arguments, name) is not None:
            setattr(scene.patina, name, getattr(arguments, name))
    if arguments.model is not None:
        scene.patina.model = settings.whole_path(arguments.model, Path.cwd())
    if arguments.texture_size is not None:
        scene.patina.texture_size = str(arguments.texture_size)


def run_one(obj: bpy.types.Object, running: jobs.Session, output: Path | None) -> str:
    """Texture one object and wait; an empty string, or the sentence that tells why not."""
    reason = generate.refusal(running, obj)
    if reason:
        return f"{reason}."
    try:
        generate.begin(bpy.context, obj, running, output)
    except generate.PROBLEMS as error:
        return status.told(error)
    shown = session.run_to_end(running)
    for warning in shown.warnings.splitlines():
        print(f"Patina: warning: {warning}", flush=True)
    if shown.level == status.INFO and not shown.message.startswith("Cancelled"):
        return ""
    generate.take_back(running)
    return status.sentence(shown)


def _execute(argv: list[str]) -> int:
    """Entry of `blender -c patina`; returns the exit status."""
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as ended:
        return int(ended.code or 0)
    with session.interruptible() as came:
        try:
            code = arguments.function(arguments)
        except KeyboardInterrupt:
            code = _fail("Interrupted.")
        except (settings.SettingsProblem, OSError, RuntimeError) as error:
            code = _fail(status.told(error))
    return 128 + came[-1] if code and came else code


def _run(arguments: argparse.Namespace) -> int:
    if not (arguments.save or arguments.save_as or arguments.out):
        return _fail("Nothing would be kept. Add --save, --save-as PATH or --out DIR.")
    if arguments.save and arguments.save_as:
        return _fail("Choose one of --save and --save-as.")
    if arguments.save and not bpy.data.filepath:
        return _fail("--save needs a file: blender -b FILE -c patina run ...")
    if arguments.save_as and arguments.save_as.is_dir():
        return _fail(f"--save-as needs the name of a file; {arguments.save_as.resolve()} is a folder.")
    obj = _chosen_object(arguments.object)
    if arguments.prompt is not None:
        obj.patina.prompt = arguments.prompt
    store_settings(arguments, obj, bpy.context.scene)
    out = arguments.out.resolve() if arguments.out else None
    if arguments.save or arguments.save_as:
        blend = arguments.save_as.resolve() if arguments.save_as else Path(bpy.data.filepath)
        output = images.new_folder(blend.parent / "patina", obj.name)
    else:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:  # better now than after all the work
            probe.write(bytes(1 << 16))
            probe.flush()
        output = images.new_folder(generate.unsaved_root(), obj.name)  # what is in DIR stays if the run fails
    problem = run_one(obj, session.current(), output)
    if problem:
        if not (arguments.save or arguments.save_as):
            shutil.rmtree(output, ignore_errors=True)
        return _fail(problem)
    if arguments.save:
        bpy.ops.wm.save_mainfile()
    elif arguments.save_as:
        bpy.ops.wm.save_as_mainfile(filepath=str(arguments.save_as.resolve()))
    if out is not None:
        try:
            for file in output.iterdir():
                images.replace_file(file, out / file.name)
        except OSError as error:
            return _fail(f"{status.told(error)} The maps are in {output}.")
        if not (arguments.save or arguments.save_as):
            shutil.rmtree(output, ignore_errors=True)
    print(f"Patina: the maps are in {out or output}", flush=True)
    return 0


def _chosen_object(name: str | None) -> bpy.types.Object:
    """The mesh object of that name, or the only one. Raises SettingsProblem."""
    meshes = [obj for obj in bpy.context.scene.objects if obj.type == "MESH"]
    names = ", ".join(obj.name for obj in meshes[:10]) or "none"
    if name is None:
        if len(meshes) == 1:
            return meshes[0]
        raise settings.SettingsProblem(f"Say which object: --object NAME. Mesh objects here: {names}.")
    found = bpy.context.scene.objects.get(name)
    if found is None or found.type != "MESH":
        raise settings.SettingsProblem(f"There is no mesh object {name!r}. Mesh objects here: {names}.")
    return found


def _fail(sentence: str) -> int:
    print(f"Patina: {sentence}", file=sys.stderr, flush=True)
    return 1


def register() -> None:
    _handles.append(bpy.utils.register_cli_command("patina", _execute))


def unregister() -> None:
    while _handles:
        bpy.utils.unregister_cli_command(_handles.pop())
