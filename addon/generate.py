# SPDX-License-Identifier: GPL-3.0-or-later
"""From settings to a running job, and from a finished job to its material: the order of the stages in Blender.

Called inside operators, so that all it changes is one undo step; on failure everything is as before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from pathlib import Path

import bpy
import numpy as np

from . import (
    environment,
    images,
    interrupted,
    jobs,
    limits,
    material,
    mesh_io,
    placing,
    preferences,
    protocol,
    reference,
    refine,
    settings,
    tasks,
    unwrap,
    variants,
    world_light,
)
from .mesh_io import MeshProblem
from .placing import Place

PROBLEMS = (
    settings.SettingsProblem,
    MeshProblem,
    limits.LimitsProblem,
    variants.VariantProblem,
    reference.ReferenceProblem,
    world_light.LightProblem,
    protocol.ProtocolError,
    OSError,
    RuntimeError,
)  # what `begin` raises for a person to read


def refusal(session: jobs.Session, obj: bpy.types.Object | None) -> str:
    """Why Generate cannot be pressed, or an empty string. Cheap."""
    if session.busy and not session.status.can_cancel:
        return f"The run on {session.status.object_name} is being ended. Wait a moment"
    if isinstance(session.task, tasks.Install) and not session.task.finished:
        return f"Wait: {session.task.title}"
    reason = mesh_io.refusal(obj)
    if not reason and not obj.patina.prompt.strip():
        reason = "Type a prompt: what the surface is made of"
    return reason


def begin(
    context: bpy.types.Context,
    obj: bpy.types.Object,
    session: jobs.Session,
    output: Path | None = None,
    start: str = "",
    show: bool = True,
    seed: int | None = None,
    slot: int | None = None,
) -> None:
    """Start texturing `obj`, or queue it behind what runs. Raises one of PROBLEMS; the object is as before then.

    `output`: the folder of the maps; None: a new one beside the .blend, or in the user's folder while it is unsaved.
    `start`: the run of the variant to begin from, within the object's limits. `show`: put the material on at once.
    `seed`: instead of the object's, which becomes this one. `slot`: of these faces only, whatever Cover says.
    """
    reason = mesh_io.refusal(obj)
    if reason:
        raise MeshProblem(f"{reason}.")
    require_backend()
    if seed is not None:
        obj.patina.seed = obj.patina.rolled_seed = seed
    elif not bpy.app.background:  # headless, the stored seed counts: a script gives the same result twice
        settings.roll_seed(obj)
    on_it = variants.current(obj)
    origin = variants.find(obj, start) if start else None
    request = settings.request_for(obj, context.scene, preferences.device(), refine=bool(start))
    if slot is None and obj.patina.cover == "SLOT" and len(obj.material_slots) > 1:
        slot = obj.active_material_index
    if origin is not None:
        slot = None if origin.slot < 0 else origin.slot
    run = new_run()
    interrupted.thin(preferences.data_folder() / "jobs")
    folder = protocol.JobFolder(preferences.data_folder() / "jobs" / run)
    folder.path.mkdir(parents=True)
    with contextlib.ExitStack() as undo:
        uv_layer, own_uvs, arrays, note = geometry(context, obj, slot, folder, undo, limited=bool(start))
        if start:
            request = refine.prepare(obj, origin, folder, uv_layer, request)
        request = reference.prepare(obj, folder, arrays["positions"], request)
        request = world_light.prepare(context.scene, folder, request)
        mesh_io.write(folder.mesh, arrays)
        folder.write_request(request)
        output = output or images.new_folder(output_root(), obj.name)
        if own_uvs is not None:
            images.replace_file(own_uvs, output / variants.UVS)
        elif origin is not None and (origin_uvs := variants.folder_of(origin) / variants.UVS).is_file():
            images.replace_file(origin_uvs, output / variants.UVS)
        place = Place(
            run=run,
            object_name=obj.name,
            object_uid=obj.session_uid,
            blend_file=bpy.data.filepath,
            uv_layer=uv_layer,
            own_uvs=own_uvs,
            slot=slot,
            request=request,
            parent=start,
            before=on_it.run if on_it is not None else "",
        )
        if start:  # what it begins from, until there is something to see
            for name in protocol.MAP_NAMES:
                images.replace_file(folder.start / f"{name}.png", images.map_file(output, name))
        hand_over(session, place, obj, folder, output, show, note, undo)
        undo.pop_all()


def hand_over(
    session: jobs.Session,
    place: Place,
    obj: bpy.types.Object,
    folder: protocol.JobFolder,
    output: Path,
    show: bool,
    note: str,
    undo: contextlib.ExitStack,
) -> None:
    """Put the run's material on its objects and the job, whose folder is complete, into the queue."""
    placing.put(place, obj, output, show)
    undo.callback(_take_off, place)
    interrupted.note(place, folder, output)
    session.begin(jobs.Job(place, folder, output))
    if session.job is not None and session.job.place.run == place.run:
        session.status.warnings = note


def _take_off(place: Place) -> None:
    """What was on a run's objects before it; they know nothing of it any more."""
    for each in placing.all_places(place):
        obj = placing.find_object(each)
        if obj is not None:
            _put_back(each, obj)
            variants.forget(obj, each.run)


def new_run() -> str:
    """A name no other run has."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _put_back(place: Place, obj: bpy.types.Object) -> None:
    """Show what was on the object before this run: another variant, or what was there before Patina."""
    if not material.is_on(obj, place.run):
        return
    before = variants.find(obj, place.before) if place.before else None
    if before is not None and before.material is not None:
        material.put_on(obj, before.material, place.slot)
    else:
        material.restore(obj, place.slot)


def apply_result(session: jobs.Session, obj: bpy.types.Object) -> None:
    """Put the material of the finished, detached run on its object. Raises one of PROBLEMS."""
    job = session.result
    placing.put_again(job.place, obj, job.output)
    session.result = None
    session.status.waiting_result = session.status.hint = ""
    session.status.message = "Applied."


def chosen_objects(context: bpy.types.Context) -> list[bpy.types.Object]:
    """The active object first, then the other selected mesh objects."""
    others = [obj for obj in context.selected_objects if obj.type == "MESH" and obj != context.object]
    return [context.object, *sorted(others, key=lambda obj: obj.name)]


def runs_of(obj: bpy.types.Object) -> list[dict]:
    """The arguments of `begin` for each set of maps that the object's Cover asks for."""
    if obj.patina.cover != "EACH" or len(obj.material_slots) < 2:
        return [{}]
    used = np.empty(len(obj.data.polygons), np.int32)
    obj.data.polygons.foreach_get("material_index", used)
    return [{"slot": int(index)} for index in np.unique(used) if index < len(obj.material_slots)] or [{}]


def forget_waiting(session: jobs.Session) -> None:
    """Take the queue apart, and what was made on the objects for it."""
    for job in session.drop_waiting():
        obj = placing.find_object(job.place)
        kept = variants.find(obj, job.place.run) if obj is not None else None
        made = kept.material if kept is not None else None
        _take_off(job.place)
        if made is not None:
            bpy.data.materials.remove(made)
        for image in list(images.find(job.place.run).values()):
            bpy.data.images.remove(image)
        _remove_start_files(job.output)


def object_of(left: interrupted.Left) -> bpy.types.Object | None:
    """The object in the open file that a job was left for."""
    for obj in bpy.data.objects:
        if obj.type == "MESH" and variants.find(obj, left.place.run) is not None:
            return obj
    named = bpy.data.objects.get(left.place.object_name)
    same_file = left.place.blend_file == bpy.data.filepath
    return named if same_file and named is not None and named.type == "MESH" else None


def take_up(session: jobs.Session, left: interrupted.Left) -> None:
    """Go on with a job that was left, or take its result if it is done. Raises one of PROBLEMS."""
    obj = object_of(left)
    if obj is None:
        where = f" in {left.place.blend_file}" if left.place.blend_file else ""
        raise MeshProblem(f"This run belongs to {left.place.object_name}{where}. Open that file first.")
    require_backend()
    place = dataclasses.replace(left.place, object_uid=obj.session_uid, object_name=obj.name)
    kept = variants.find(obj, place.run)
    if kept is not None and kept.material is not None:  # its maps may have followed the file since
        left = dataclasses.replace(left, output=variants.folder_of(kept))
    left.output.mkdir(parents=True, exist_ok=True)
    if left.ending == "done":
        interrupted.show_what_is_done(left)
    variant = variants.find(obj, place.run)
    if variant is None or variant.material is None or len(images.find(place.run)) < len(protocol.MAP_NAMES):
        placing.put_again(place, obj, left.output)
    elif not material.is_on(obj, place.run):
        placing.show(obj, variant)
    if left.ending == "done":
        for name, image in images.find(place.run).items():
            images.show(image, images.map_file(left.output, name))
        interrupted.took(left.folder)
    else:
        session.begin(jobs.Job(place, left.folder, left.output))


def take_back(session: jobs.Session) -> None:
    """After a headless run that failed: the old material again, and no start files where the maps should be."""
    job = session.ended
    if job is None or not isinstance(job.outcome, protocol.Failed):
        return
    _take_off(job.place)
    if not job.shown:
        _remove_start_files(job.output)


def _remove_start_files(output: Path) -> None:
    of_members = [file.name for file in output.glob(variants.MEMBER_UVS.format(number="*"))]
    for name in (*(f"{name}.png" for name in protocol.MAP_NAMES), variants.UVS, *of_members):
        (output / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: it was there before
        output.rmdir()


def output_root() -> Path:
    """`//patina` of a saved file, else a folder of the user's that `saving` moves from. Raises OSError."""
    if bpy.data.filepath:
        return Path(bpy.data.filepath).parent / "patina"
    return unsaved_root()


def unsaved_root() -> Path:
    return preferences.data_folder() / "unsaved"


def require_backend() -> None:
    """The backend is installed, or may be downloaded. Raises SettingsProblem."""
    ready = environment.environment_ready(preferences.data_folder() / "backend-env")
    if ready or bpy.app.online_access or preferences.wheels() is not None:
        return
    raise settings.SettingsProblem(
        "Patina must install its backend once, and Blender may not go online. "
        "Allow it in Preferences > System > Network, give a folder of wheels in Patina's preferences, "
        "or choose a Python that has it with PATINA_PYTHON."
    )


def geometry(
    context: bpy.types.Context,
    obj: bpy.types.Object,
    slot: int | None,
    folder: protocol.JobFolder,
    undo: contextlib.ExitStack,
    limited: bool = False,
) -> tuple[str, Path | None, dict[str, np.ndarray], str]:
    """UV layer, the file of its UVs if Patina made them, the arrays of mesh.npz, a note for the panel."""
    with mesh_io.evaluated(context, obj) as shown:
        if not len(shown.polygons):
            raise MeshProblem(f"{obj.name} has no faces. Add some, or check its modifiers.")
        uv_layer, note = mesh_io.choose_uv_layer(obj, shown, slot)
        if uv_layer:
            made_earlier = uv_layer.startswith(unwrap.LAYER_NAME) and uv_layer in obj.data.uv_layers
            own_uvs = _save_uvs(unwrap.uvs_of(obj.data, uv_layer), folder) if made_earlier else None
            return uv_layer, own_uvs, mesh_io.read(obj, shown, uv_layer, slot, limited), note
    uvs = unwrap.unwrap(context, obj)
    uv_layer = unwrap.add_layer(obj.data, uvs)
    undo.callback(remove_layer, obj.data, uv_layer)
    own_uvs = _save_uvs(uvs, folder)
    with mesh_io.evaluated(context, obj) as shown:
        found = uv_layer in shown.uv_layers
        chosen, problem = mesh_io.choose_uv_layer(obj, shown, slot) if found else ("", "a modifier drops UV layers")
        if chosen != uv_layer:
            raise MeshProblem(
                f"{obj.name} has no usable UVs and unwrapping it did not help: {problem}. "
                "Apply its modifiers or unwrap it by hand."
            )
        arrays = mesh_io.read(obj, shown, uv_layer, slot, limited)
    return uv_layer, own_uvs, arrays, f"New UV layer {uv_layer}, because {note}."


def _save_uvs(uvs: np.ndarray, folder: protocol.JobFolder) -> Path:
    """UVs that Patina made go with the maps: the .blend may be closed without them."""
    path = folder.path / variants.UVS
    np.save(path, uvs, allow_pickle=False)
    return path


def remove_layer(mesh: bpy.types.Mesh, name: str) -> None:
    layer = mesh.uv_layers.get(name)
    if layer is not None:
        mesh.uv_layers.remove(layer)
