# SPDX-License-Identifier: GPL-3.0-or-later
"""One set of maps for several objects: their UVs packed together in a new layer each, their meshes sent as one.

The backend sees one mesh. Objects that stand near each other stay so, as seen from the first one's front; others would
be specks in every picture and are set side by side.
"""

from __future__ import annotations

import contextlib
import math

import bpy
import numpy as np

from . import (
    generate,
    images,
    interrupted,
    jobs,
    mesh_io,
    preferences,
    protocol,
    reference,
    settings,
    unwrap,
    uv_check,
    variants,
    world_light,
)
from .mesh_io import MeshProblem
from .placing import Member, Place

LAYER_NAME = "Shared Atlas"  # no name that mesh_io takes for a layer of a single object
_NEAR = 3.0  # the radius of all together, by that of a ball with as much surface


def begin(
    context: bpy.types.Context,
    lead: bpy.types.Object,
    session: jobs.Session,
    others: list[bpy.types.Object],
    show: bool = True,
    seed: int | None = None,
) -> None:
    """Start texturing `lead` and `others` with one set of maps, by the prompt and settings of `lead`.

    Raises one of generate.PROBLEMS; the objects are as before then.
    """
    for obj in (lead, *others):
        reason = mesh_io.refusal(obj)
        if reason:
            raise MeshProblem(f"{obj.name}: {reason}.")
    generate.require_backend()
    if seed is not None:
        lead.patina.seed = lead.patina.rolled_seed = seed
    elif not bpy.app.background:
        settings.roll_seed(lead)
    request = settings.request_for(lead, context.scene, preferences.device())
    run = generate.new_run()
    interrupted.thin(preferences.data_folder() / "jobs")
    folder = protocol.JobFolder(preferences.data_folder() / "jobs" / run)
    folder.path.mkdir(parents=True)
    with contextlib.ExitStack() as undo:
        layer, files = _add_layers(context, [lead, *others], folder, undo)
        arrays, apart = _arrays(context, [lead, *others], layer)
        if apart and lead.patina.reference.image is not None:
            raise MeshProblem(
                "These objects stand too far apart for one reference picture. Move them together, or remove it."
            )
        request = reference.prepare(lead, folder, arrays["positions"], request)
        request = world_light.prepare(context.scene, folder, request)
        mesh_io.write(folder.mesh, arrays)
        folder.write_request(request)
        output = images.new_folder(generate.output_root(), lead.name)
        for file in {file for file in files.values()}:
            images.replace_file(file, output / file.name)
        members = [Member(obj.name, obj.session_uid, files[obj.data], _run_on(obj)) for obj in others]
        place = Place(
            run=run,
            object_name=lead.name,
            object_uid=lead.session_uid,
            blend_file=bpy.data.filepath,
            uv_layer=layer,
            own_uvs=files[lead.data],
            slot=None,
            request=request,
            before=_run_on(lead),
            others=tuple(members),
        )
        note = f"New UV layer {layer} on {len(others) + 1} objects."
        if apart:
            note += " They stand far apart, so they were painted side by side."
        generate.hand_over(session, place, lead, folder, output, show, note, undo)
        undo.pop_all()


def _run_on(obj: bpy.types.Object) -> str:
    now = variants.current(obj)
    return now.run if now is not None else ""


def _add_layers(context, objects: list[bpy.types.Object], folder: protocol.JobFolder, undo) -> tuple[str, dict]:
    """A UV layer of one name on every mesh, new unless it is there; the name, and mesh -> the file of its UVs."""
    firsts = _first_of_each_mesh(objects)
    stretches = {obj: mesh_io.stretch_of(obj)[0] for obj in firsts}
    made = unwrap.unwrap_together(context, stretches)
    names = (LAYER_NAME, *(f"{LAYER_NAME} {number}" for number in range(2, 10)))
    known = next((name for name in names if all(_has(*pair, name) for pair in zip(firsts, made, strict=True))), None)
    taken = {layer.name for obj in firsts for layer in obj.data.uv_layers}
    name = known or next(name for name in names if name not in taken)
    files = {}
    for number, (obj, uvs) in enumerate(zip(firsts, made, strict=True)):
        if known is None:
            undo.callback(generate.remove_layer, obj.data, name)
            if unwrap.add_layer(obj.data, uvs, name) != name:
                raise MeshProblem(f"{obj.name} would not take a UV layer {name}. Rename its layers, then try again.")
        file = folder.path / (variants.MEMBER_UVS.format(number=number) if number else variants.UVS)
        np.save(file, uvs, allow_pickle=False)
        files[obj.data] = file
    return name, files


def _has(obj: bpy.types.Object, uvs: np.ndarray, name: str) -> bool:
    """Whether an earlier atlas of the same objects has left these very UVs."""
    return name in obj.data.uv_layers and np.allclose(unwrap.uvs_of(obj.data, name), uvs, atol=1e-5)


def _first_of_each_mesh(objects: list[bpy.types.Object]) -> list[bpy.types.Object]:
    """Objects that share a mesh share its part of the atlas too."""
    firsts = {}
    for obj in objects:
        firsts.setdefault(obj.data, obj)
    return list(firsts.values())


def _arrays(context, objects: list[bpy.types.Object], layer: str) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of protocol.MESH_ARRAYS of all meshes as one; whether they had to be set side by side."""
    parts = []
    firsts = _first_of_each_mesh(objects)
    for obj in firsts:
        with mesh_io.evaluated(context, obj) as shown:
            if layer not in shown.uv_layers:
                raise MeshProblem(f"The modifiers of {obj.name} drop UV layers. Apply them, then try again.")
            parts.append(mesh_io.read(obj, shown, layer, None))
    united = {name: np.concatenate([part[name] for part in parts]) for name in protocol.MESH_ARRAYS}
    if not any(obj.modifiers for obj in firsts):
        edges = united["positions"][:, 1:] - united["positions"][:, :1]
        report = uv_check.usability(united["uvs"], np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2)
        if not report.usable:
            raise MeshProblem(
                f"Packing the UVs of these objects did not work: it {report.reason}. Unwrap them by hand."
            )
    frames, apart = _frames(firsts, parts)
    for part, (rotation, offset) in zip(parts, frames, strict=True):
        part["positions"] = part["positions"] @ rotation.T + offset
        part["normals"] = part["normals"] @ rotation.T
        part["tangents"] = np.concatenate([part["tangents"][..., :3] @ rotation.T, part["tangents"][..., 3:]], axis=-1)
        if np.linalg.det(rotation) < 0:  # mirrored: its faces would look inwards, its bitangents the other way
            part |= {name: part[name][:, ::-1] for name in ("positions", "normals", "tangents", "uvs")}
            part["tangents"] = part["tangents"] * [1, 1, 1, -1]
    kinds = {name: dtype for name, (_, dtype) in protocol.MESH_ARRAYS.items()}
    united = {name: np.concatenate([part[name] for part in parts]).astype(kind) for name, kind in kinds.items()}
    return {name: np.ascontiguousarray(values) for name, values in united.items()}, apart


def _frames(objects: list[bpy.types.Object], parts: list[dict]) -> tuple[list[tuple[np.ndarray, np.ndarray]], bool]:
    """(rotation (3, 3), offset (3,)) of each object's mesh into the common frame; whether they are side by side."""
    balls = [reference.ball(part["positions"]) for part in parts]
    worlds = [np.array(obj.matrix_world, np.float64)[:3, 3] for obj in objects]
    turns = [reference.rotation_of(obj) for obj in objects]
    frames = [(turns[0].T @ turn, turns[0].T @ (world - worlds[0])) for turn, world in zip(turns, worlds, strict=True)]
    middles = np.array([rotation @ ball[0] + offset for (rotation, offset), ball in zip(frames, balls, strict=True)])
    radii = np.array([ball[1] for ball in balls])
    center = (np.min(middles - radii[:, None], 0) + np.max(middles + radii[:, None], 0)) / 2
    whole = (np.linalg.norm(middles - center, axis=1) + radii).max()
    if whole <= _NEAR * math.sqrt((radii**2).sum()):
        return frames, False
    columns, step = math.ceil(math.sqrt(len(objects))), 2.2 * float(radii.max())
    offsets = [np.array([number % columns, 0, number // columns]) * step for number in range(len(objects))]
    return [(np.eye(3), offset - ball[0]) for offset, ball in zip(offsets, balls, strict=True)], True
