# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of a batch: `patina batch JOBS.toml`, `patina status JOBS.toml`, `patina resume JOBS.toml`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import bpy

from . import (
    batch,
    batch_queue,
    environment,
    generate,
    images,
    interrupted,
    jobs,
    mesh_io,
    placing,
    preferences,
    protocol,
    session,
    worker,
)
from .batch_queue import BatchProblem, Entry
from .placing import Place

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def add_commands(commands) -> None:
    """Declare them; `commands` is argparse's."""
    for name, text in (
        ("batch", "texture what a list asks for; go on where an earlier start was ended"),
        ("resume", "go on with a batch without its .blend"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("list", type=Path, metavar="JOBS.toml")
        command.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at once; default 1")
        command.add_argument("--retries", type=int, default=1, metavar="N", help="for what failed; default 1")
        command.add_argument("--force", action="store_true", help="make again what is done, overwrite what is there")
        command.set_defaults(function=_run)
        if name == "batch":
            command.add_argument("--save-as", type=Path, metavar="PATH", help="a .blend with the materials applied")
    status = commands.add_parser("status", help="say how a batch stands")
    status.add_argument("list", type=Path, metavar="JOBS.toml")
    status.set_defaults(function=_status)


def _run(options: argparse.Namespace) -> int:
    wishes = options.list.resolve()
    folder, making = batch.folder_of(wishes), options.what == "batch"
    entries: list[Entry] = []
    try:
        if making and options.save_as and options.save_as.is_dir():
            raise BatchProblem(f"--save-as needs the name of a file; {options.save_as.resolve()} is a folder.")
        if not 1 <= options.jobs <= 32 or options.retries < 0:
            raise BatchProblem("--jobs must lie between 1 and 32, --retries must not be negative.")
        if making:
            batch.read(wishes, [])  # a list that cannot be used makes no folder
        else:
            batch.left_over(wishes)
        with batch_queue.alone(folder):
            _install_backend()
            entries += batch.prepare(wishes, options.force, _say) if making else batch.left_over(wishes)
            tell = _Progress(entries).tell
            batch_queue.run(folder, entries, _start, options.jobs, options.retries, options.force, tell)
    except BatchProblem as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return _fail(f"Interrupted. To go on: patina {options.what} {options.list}", EXIT_INTERRUPTED)
    except OSError as error:
        _print_table(entries)
        return _fail(f"{error.filename or folder} cannot be written: {error.strerror or error}.", EXIT_FAILED)
    _print_table(entries)
    if making and options.save_as:
        _apply(folder, entries)
        bpy.ops.wm.save_as_mainfile(filepath=str(options.save_as.resolve()))
    print(f"Patina: {folder / batch_queue.REPORT}", flush=True)
    return EXIT_FAILED if any(entry.state != "done" and entry.state != "skipped" for entry in entries) else 0


def _status(options: argparse.Namespace) -> int:
    wishes = options.list.resolve()
    try:
        entries = batch.left_over(wishes)
    except BatchProblem as error:
        return _fail(str(error), EXIT_USAGE)
    folder = batch.folder_of(wishes)
    for entry in entries:
        job = batch_queue.folder_of(folder, entry.item)
        ending, fraction = interrupted.last_words(job)
        if batch_queue.is_done(folder, entry.item):
            entry.state, entry.fraction = "done", 1.0
        elif isinstance(ending, protocol.Failed):
            entry.state, entry.message = "failed", ending.message
        elif job.attempts():
            entry.state, entry.fraction = "begun", fraction
    _print_table(entries)
    return 0 if all(entry.state == "done" for entry in entries) else EXIT_FAILED


def _start(home: Path) -> worker.Worker:
    python = environment.environment_python(preferences.data_folder() / "backend-env")
    return worker.Worker.start(python, session.current().package_root, home)


def _install_backend() -> None:
    """Build the backend's environment if there is none. Raises BatchProblem."""
    home = preferences.data_folder() / "backend-env"
    if environment.environment_ready(home):
        return
    if not bpy.app.online_access and preferences.wheels() is None:
        raise BatchProblem("Patina must install its backend once, and Blender may not go online (--online-mode).")
    build = jobs.new_build()
    said = ""
    try:
        while not build.finished:
            fraction, text = build.tick()
            if text != said:
                _say(f"installing the backend, {fraction:.0%}: {text}")
                said = text
            time.sleep(0.2)
    finally:
        build.cancel()
    if build.error:
        raise BatchProblem(build.error)


def _apply(folder: Path, entries: list[Entry]) -> None:
    """Put the last set of maps of each object on it."""
    for entry in entries:
        if entry.state not in ("done", "skipped"):
            continue
        obj, item = bpy.context.scene.objects.get(entry.item.object_name), entry.item
        out, job = batch_queue.output_of(folder, item), batch_queue.folder_of(folder, item)
        try:
            request = job.read_request()
            layer = _layer_of(obj, out)
            place = Place(item.id, obj.name, obj.session_uid, bpy.data.filepath, *layer, None, request)
            placing.put_again(place, obj, out)
            for name, image in images.find(item.id).items():
                images.show(image, images.map_file(out, name))
        except generate.PROBLEMS as error:
            _say(f"{item.object_name}: the maps are done but could not be applied: {error}")


def _layer_of(obj: bpy.types.Object, out: Path) -> tuple[str, Path | None]:
    """The UV layer that the maps fit, and the file of its UVs if Patina made it."""
    with mesh_io.evaluated(bpy.context, obj) as shown:
        layer, _ = mesh_io.choose_uv_layer(obj, shown, None)
    own = out / "uvs.npy"
    return layer or "Patina", own if own.is_file() else None


class _Progress:
    """Lines for a person, with how far the whole batch is."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries

    def tell(self, text: str) -> None:
        ended = sum(entry.state in ("done", "skipped", "failed") for entry in self._entries)
        _say(f"[{ended}/{len(self._entries)}] {text}")


def _print_table(entries: list[Entry]) -> None:
    for entry in entries:
        item = entry.item
        print(f"  {entry.state:8} {item.object_name:24} {item.prompt:32} {item.seed:<10} {entry.message}", flush=True)


def _say(text: str) -> None:
    print(f"Patina: {text}", flush=True)


def _fail(sentence: str, code: int) -> int:
    print(f"Patina: {sentence}", file=sys.stderr, flush=True)
    return code
