# SPDX-License-Identifier: GPL-3.0-or-later
"""`blender -b FILE -c patina batch JOBS.toml`: from a list of wishes to a queue of job folders, and its end.

    [defaults]                      # any of the keys of [[job]]
    quality = "draft"
    [[job]]
    objects = ["Chair*", "Table"]   # names or patterns (* ? [..]) of mesh objects
    prompt = "oak"                  # or prompts = ["oak", "walnut"]
    seed = 1                        # or seeds = [1, 2, 3]
    out = "textures/{object}/{prompt}-{seed}"      # relative to JOBS.toml
    # also negative_prompt, quality, texture_size, pattern_scale, model, second_stage, control, control_kind,
    # control_strength, start, guidance, guidance_scale, steps, views, render_size, device, panoramas and extra_maps;
    # folders of models and panoramas are relative to JOBS.toml too

Knows objects and requests; how the queue is run says batch_queue.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import string
import tomllib
from dataclasses import dataclass
from pathlib import Path

import bpy

from . import batch_queue, generate, mesh_io, preferences, protocol, settings, status
from .batch_queue import BatchProblem, Entry, Item

_SETTINGS = (
    "negative_prompt quality texture_size pattern_scale model second_stage control control_kind control_strength "
    "start guidance guidance_scale steps views render_size device panoramas extra_maps"
).split()
_KEYS = {"objects", "prompt", "prompts", "seed", "seeds", "out", *_SETTINGS}
_DEFAULT_OUT = "textures/{object}/{prompt}-{seed}"


@dataclass(frozen=True)
class Wish:
    """One set of maps that the list asks for; `object_name` is "" where a pattern fits no object."""

    object_name: str
    request: protocol.TextureRequest
    out: str


def folder_of(jobs: Path) -> Path:
    """The batch's own folder, beside its list."""
    return jobs.with_suffix(".batch")


def read(jobs: Path, names: list[str]) -> tuple[list[Wish], list[str]]:
    """The wishes of a list for mesh objects of these names, and the patterns that fit none. Raises BatchProblem."""
    try:
        stored = tomllib.loads(jobs.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BatchProblem(f"{jobs} cannot be read: {error}") from error
    rows, defaults = stored.pop("job", None), stored.pop("defaults", {})
    tables = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in [*rows, defaults])
    if stored or not tables:
        raise BatchProblem(f"{jobs} must hold [[job]] tables and may hold [defaults], nothing else.")
    wishes, unmatched = [], []
    for number, row in enumerate(rows, 1):
        row = {**defaults, **row}
        unknown = row.keys() - _KEYS
        if unknown:
            raise BatchProblem(f"Job {number}: {sorted(unknown)[0]} is not known. Known: {', '.join(sorted(_KEYS))}.")
        patterns, prompts = _several(row, number, "objects", "objects"), _several(row, number, "prompts", "prompt")
        seeds = _several(row, number, "seeds", "seed", [0])
        fitting = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        unmatched += [p for p in patterns if not any(fnmatch.fnmatchcase(name, p) for name in names)]
        for name in fitting:
            for prompt in prompts:
                wishes += [_wish(row, number, name, prompt, seed) for seed in seeds]
    places = [os.path.normpath(wish.out) for wish in wishes]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise BatchProblem(f"Two jobs write to {twice}. Use {{object}}, {{prompt}} and {{seed}} in out.")
    return wishes, unmatched


def prepare(jobs: Path, force: bool, tell) -> list[Entry]:
    """Make a job folder for each wish that is not done, or bring it up to the mesh of now; those that cannot be made
    are failed. Raises BatchProblem."""
    batch = folder_of(jobs)
    meshes = {obj.name: obj for obj in bpy.context.scene.objects if obj.type == "MESH"}
    wishes, unmatched = read(jobs, sorted(meshes))
    entries = [
        Entry(Item("", pattern, "", 0, ""), "failed", f"No mesh object is called {pattern!r} in this file.")
        for pattern in unmatched
    ]
    for wish in wishes:
        request = wish.request
        identity = batch_queue.item_id(wish.object_name, wish.out, request)
        entry = Entry(Item(identity, wish.object_name, request.prompt, request.seed, wish.out))
        entries.append(entry)
        if batch_queue.is_done(batch, entry.item) and not force:
            continue  # `run` says so
        try:
            whole = settings.with_whole_paths(request, jobs.parent)
            _export(batch, entry.item, meshes[wish.object_name], whole)
        except (BatchProblem, *generate.PROBLEMS) as error:
            entry.state, entry.message = "failed", status.told(error)
            tell(f"{wish.object_name}: {entry.message}")
    return entries


def left_over(jobs: Path) -> list[Entry]:
    """The queue as it is on the disk, without a .blend. Raises BatchProblem."""
    found = batch_queue.items(folder_of(jobs))
    if not found:
        raise BatchProblem(f"There is no queue in {folder_of(jobs)}. Start it with: patina batch {jobs}")
    return [Entry(item) for item in found]


def names_in_file() -> list[str]:
    return sorted(obj.name for obj in bpy.context.scene.objects if obj.type == "MESH")


def _export(batch: Path, item: Item, obj: bpy.types.Object, request: protocol.TextureRequest) -> None:
    reason = mesh_io.refusal(obj)
    if reason:
        raise mesh_io.MeshProblem(f"{reason}.")
    folder = batch_queue.folder_of(batch, item)
    folder.path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        _, _, arrays, _ = generate.geometry(bpy.context, obj, None, folder, undo)
        mesh = mesh_io.packed(arrays)
        if not (batch_queue.is_ready(batch, item) and folder.mesh.read_bytes() == mesh):
            batch_queue.forget(batch, item)
            protocol.write_beside(folder.mesh, mesh)
            folder.write_request(request)
            batch_queue.put(batch, item)
        elif folder.read_request() != request:  # made for another computer
            folder.write_request(request)
        undo.pop_all()  # a layer that was made stays in the file: what is saved with it fits the maps


def _several(row: dict, number: int, many: str, one: str, default: list | None = None) -> list:
    values = row.get(many, row.get(one, default))
    values = values if isinstance(values, list) else [values]
    kind = int if one == "seed" else str
    if not values or not all(isinstance(v, kind) and not isinstance(v, bool) and v != "" for v in values):
        raise BatchProblem(f"Job {number}: {one} is missing or not {'a number' if kind is int else 'text'}.")
    return values


def _wish(row: dict, number: int, name: str, prompt: str, seed: int) -> Wish:
    try:
        request = protocol.TextureRequest(
            prompt=prompt,
            object_name=name,
            seed=seed,
            **{"device": preferences.device(), **{key: row[key] for key in _SETTINGS if key in row}},
        )
    except protocol.ProtocolError as error:
        raise BatchProblem(f"Job {number}: {error}") from error
    return Wish(name, request, _place(row.get("out", _DEFAULT_OUT), number, name, prompt, seed))


def _place(pattern: object, number: int, name: str, prompt: str, seed: int) -> str:
    """`out` for one wish. Raises BatchProblem."""
    parts = {"object": _plain(name), "prompt": _plain(prompt), "seed": str(seed)}
    if not isinstance(pattern, str) or not pattern.strip() or "\0" in pattern:
        raise BatchProblem(f"Job {number}: out must be the name of a folder.")
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(pattern)}
        if fields <= {None, *parts}:
            return pattern.format(**parts)
    except ValueError:  # a brace that is alone
        pass
    raise BatchProblem(f"Job {number}: out may hold {{object}}, {{prompt}} and {{seed}} only.")


def _plain(text: str) -> str:
    """The text as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:60] or "_"
