# SPDX-License-Identifier: GPL-3.0-or-later
"""From settings to a running job, and from a finished job to its material: the order of the stages in Blender.

Called inside operators, so that all it changes is one undo step; on failure everything is as before.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path

import bpy
import numpy as np

from . import environment, images, jobs, material, mesh_io, placing, preferences, protocol, settings, unwrap
from .mesh_io import MeshProblem
from .placing import Place

PROBLEMS = (settings.SettingsProblem, MeshProblem, OSError, RuntimeError)  # what `begin` raises for a person to read


def refusal(session: jobs.Session, obj: bpy.types.Object | None) -> str:
    """Why Generate cannot be pressed, or an empty string. Cheap."""
    if session.busy:
        return f"Patina is texturing {session.status.object_name}. Wait for it or cancel it"
    reason = mesh_io.refusal(obj)
    if not reason and not obj.patina.prompt.strip():
        reason = "Type a prompt: what the surface is made of"
    return reason


def begin(
    context: bpy.types.Context, obj: bpy.types.Object, session: jobs.Session, output: Path | None = None
) -> None:
    """Start texturing `obj`. Raises one of PROBLEMS; the object is as before then.

    `output`: the folder of the maps; None: a new one beside the .blend, or in the user's folder while it is unsaved.
    """
    reason = mesh_io.refusal(obj)
    if reason:
        raise MeshProblem(f"{reason}.")
    _require_backend()
    if not bpy.app.background:  # headless, the stored seed counts: a script gives the same result twice
        settings.roll_seed(obj)
    request = settings.request_for(obj, context.scene, preferences.device())
    slot = obj.active_material_index if obj.patina.cover == "SLOT" and len(obj.material_slots) > 1 else None
    run = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = protocol.JobFolder(preferences.data_folder() / "jobs" / run)
    folder.path.mkdir(parents=True)
    with contextlib.ExitStack() as undo:
        uv_layer, own_uvs, arrays, note = _geometry(context, obj, slot, folder, undo)
        mesh_io.write(folder.mesh, arrays)
        folder.write_request(request)
        output = output or images.new_folder(output_root(), obj.name)
        place = Place(
            run=run,
            object_name=obj.name,
            object_uid=obj.session_uid,
            blend_file=bpy.data.filepath,
            uv_layer=uv_layer,
            own_uvs=own_uvs,
            slot=slot,
            request=request,
        )
        placing.put(place, obj, output)
        undo.callback(material.restore, obj)
        session.begin(jobs.Job(place, folder, output))
        session.status.warnings = note
        undo.pop_all()


def apply_result(session: jobs.Session, obj: bpy.types.Object) -> None:
    """Put the material of the finished, detached run on its object. Raises one of PROBLEMS."""
    job = session.result
    placing.put_again(job.place, obj, job.output)
    session.result = None
    session.status.waiting_result = session.status.hint = ""
    session.status.message = "Applied."


def take_back(session: jobs.Session, obj: bpy.types.Object) -> None:
    """After a headless run that failed: the old material again, and no start files where the maps should be."""
    job = session.ended
    if job is None or not isinstance(job.outcome, protocol.Failed):
        return
    if material.is_on(obj, job.place.run):
        material.restore(obj)
    if not job.shown:
        for name in protocol.MAP_NAMES:
            images.map_file(job.output, name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: it was there before
            job.output.rmdir()


def output_root() -> Path:
    """`//patina` of a saved file, else a folder of the user's that `saving` moves from. Raises OSError."""
    if bpy.data.filepath:
        return Path(bpy.data.filepath).parent / "patina"
    return unsaved_root()


def unsaved_root() -> Path:
    return preferences.data_folder() / "unsaved"


def _require_backend() -> None:
    """The backend is installed, or may be downloaded. Raises SettingsProblem."""
    if environment.environment_ready(preferences.data_folder() / "backend-env") or bpy.app.online_access:
        return
    raise settings.SettingsProblem(
        "Patina must install its backend once, and Blender may not go online. "
        "Allow it in Preferences > System > Network, or choose a Python that has it with PATINA_PYTHON."
    )


def _geometry(
    context: bpy.types.Context,
    obj: bpy.types.Object,
    slot: int | None,
    folder: protocol.JobFolder,
    undo: contextlib.ExitStack,
) -> tuple[str, Path | None, dict[str, np.ndarray], str]:
    """UV layer, the file of the UVs made for it (if any were), the arrays of mesh.npz, a note for the panel."""
    with mesh_io.evaluated(context, obj) as shown:
        if not len(shown.polygons):
            raise MeshProblem(f"{obj.name} has no faces. Add some, or check its modifiers.")
        uv_layer, note = mesh_io.choose_uv_layer(obj, shown, slot)
        if uv_layer:
            return uv_layer, None, mesh_io.read(obj, shown, uv_layer, slot), note
    uvs = unwrap.unwrap(context, obj)
    uv_layer = unwrap.add_layer(obj.data, uvs)
    undo.callback(_remove_layer, obj.data, uv_layer)
    own_uvs = folder.path / "uvs.npy"
    np.save(own_uvs, uvs, allow_pickle=False)
    with mesh_io.evaluated(context, obj) as shown:
        found = uv_layer in shown.uv_layers
        chosen, problem = mesh_io.choose_uv_layer(obj, shown, slot) if found else ("", "a modifier drops UV layers")
        if chosen != uv_layer:
            raise MeshProblem(
                f"{obj.name} has no usable UVs and unwrapping it did not help: {problem}. "
                "Apply its modifiers or unwrap it by hand."
            )
        arrays = mesh_io.read(obj, shown, uv_layer, slot)
    return uv_layer, own_uvs, arrays, f"New UV layer {uv_layer}, because {note}."


def _remove_layer(mesh: bpy.types.Mesh, name: str) -> None:
    layer = mesh.uv_layers.get(name)
    if layer is not None:
        mesh.uv_layers.remove(layer)
