# SPDX-License-Identifier: GPL-3.0-or-later
"""What lights the pictures of a run: random lights, the scene's world, or a folder of panoramas; put into its request.

A world is whatever its nodes make of it, so Cycles is asked what it looks like from the middle; nothing of the scene
is in that picture, and neither the world nor the last render result changes.
"""

# ruff: noqa: F722, F821

import contextlib
import dataclasses
import math
from pathlib import Path

import bpy
from bpy.props import EnumProperty, StringProperty

from . import protocol
from .rendering import blender_is_rendering

_HEIGHT = 256  # rows of the panorama: what the backend keeps of one
_SAMPLES = 8
_FILE_ENDINGS = (".exr", ".hdr")


class LightProblem(ValueError):
    """The light that was chosen is none; the text is a sentence for a person."""


class PATINA_PG_light(bpy.types.PropertyGroup):
    source: EnumProperty(
        name="Light",
        description="Under which light the maps are painted; it turns at every step, so that none ends up in them",
        items=(
            ("NEUTRAL", "Neutral", "Ever new lights of all kinds; what suits most materials"),
            ("WORLD", "Scene World", "The world of this scene as it lights things, whatever its nodes are"),
            ("FOLDER", "Folder", "The .hdr and .exr panoramas of a folder, by turns"),
        ),
    )
    folder: StringProperty(
        name="Folder", description="A folder with .hdr or .exr panoramas, twice as wide as high", subtype="DIR_PATH"
    )


def prepare(
    scene: bpy.types.Scene, folder: protocol.JobFolder, request: protocol.TextureRequest
) -> protocol.TextureRequest:
    """The request with the scene's light, a picture of the world in the job folder if it is asked for.

    Raises LightProblem, RuntimeError, OSError.
    """
    light = scene.patina.light
    if light.source == "WORLD":
        folder.lights.mkdir(parents=True, exist_ok=True)
        write_world(scene, folder.lights / "world.exr")
        return dataclasses.replace(request, panoramas=folder.lights.name)
    if light.source == "FOLDER":
        return dataclasses.replace(request, panoramas=str(panoramas_folder(light)))
    return request


def take_over(request: protocol.TextureRequest, scene: bpy.types.Scene) -> None:
    """Set the light that a request was made with."""
    light, of_the_job = scene.patina.light, protocol.JobFolder(Path()).lights.name
    light.source = "NEUTRAL" if not request.panoramas else "WORLD" if request.panoramas == of_the_job else "FOLDER"
    if light.source == "FOLDER":
        light.folder = request.panoramas


def panoramas_folder(light: PATINA_PG_light) -> Path:
    """Raises LightProblem."""
    if not light.folder:
        raise LightProblem("Choose the folder with the panoramas under Lighting, or set Light to Neutral.")
    if light.folder.startswith("//") and not bpy.data.filepath:
        raise LightProblem("The folder of panoramas is relative to the .blend, which is not saved yet.")
    path = Path(bpy.path.abspath(light.folder))
    if not path.is_dir():
        raise LightProblem(f"There is no folder {path}. Choose the one with the panoramas under Lighting.")
    if not any(file.suffix.lower() in _FILE_ENDINGS for file in path.iterdir()):
        raise LightProblem(f"{path} holds no .hdr or .exr file. Choose a folder with panoramas under Lighting.")
    return path


def write_world(scene: bpy.types.Scene, path: Path) -> None:
    """An OpenEXR panorama of the light that the scene's world sends out. Raises LightProblem, RuntimeError, OSError.

    It is seen through glass that bends nothing, because many worlds show the camera something else than they light
    things with.
    """
    if scene.world is None:
        raise LightProblem("This scene has no world. Choose one under World, or set Light to Neutral.")
    if blender_is_rendering():
        raise LightProblem("Blender is rendering. Wait for it, then press Generate again.")
    with contextlib.ExitStack() as undo:
        world = _made(bpy.data.worlds, scene.world.copy(), undo)
        for name in ("camera", "diffuse", "glossy", "transmission", "scatter"):
            if hasattr(world, "cycles_visibility"):
                setattr(world.cycles_visibility, name, True)
        stage = _made(bpy.data.scenes, bpy.data.scenes.new("Patina world"), undo)
        stage.world, stage.frame_current = world, scene.frame_current
        try:
            stage.render.engine = "CYCLES"
            world.cycles.sampling_method = "NONE"  # a map for sampling takes seconds and serves nothing here
        except (TypeError, AttributeError) as error:
            raise LightProblem(
                "The world is looked at with Cycles, which is switched off. Enable it in Preferences > Add-ons, or set "
                "Light to Neutral."
            ) from error
        _look_around(stage, undo)
        _set_up(stage, path)
        bpy.ops.render.render(write_still=True, scene=stage.name)
    if not path.is_file():
        raise LightProblem("Blender made no picture of the world. Set Light to Neutral.")


def _look_around(stage: bpy.types.Scene, undo: contextlib.ExitStack) -> None:
    """A panoramic camera that looks as environment textures are laid out, in a box of glass."""
    camera = _made(bpy.data.cameras, bpy.data.cameras.new("Patina world"), undo)
    camera.type = "PANO"
    (camera if hasattr(camera, "panorama_type") else camera.cycles).panorama_type = "EQUIRECTANGULAR"
    eye = _made(bpy.data.objects, bpy.data.objects.new("Patina world", camera), undo)
    eye.rotation_euler = (math.pi / 2, 0, -math.pi / 2)
    glass = _made(bpy.data.materials, bpy.data.materials.new("Patina world"), undo)
    if glass.node_tree is None:  # before Blender 5.0
        glass.use_nodes = True
    nodes = glass.node_tree.nodes
    nodes.clear()
    bend = nodes.new("ShaderNodeBsdfRefraction")
    bend.inputs["IOR"].default_value, bend.inputs["Roughness"].default_value = 1.0, 0.0
    glass.node_tree.links.new(bend.outputs[0], nodes.new("ShaderNodeOutputMaterial").inputs["Surface"])
    mesh = _made(bpy.data.meshes, bpy.data.meshes.new("Patina world"), undo)
    corners = [(x, y, z) for x in (-4, 4) for y in (-4, 4) for z in (-4, 4)]
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    mesh.from_pydata(corners, [], sides)
    mesh.materials.append(glass)
    box = _made(bpy.data.objects, bpy.data.objects.new("Patina world box", mesh), undo)
    for obj in (eye, box):
        stage.collection.objects.link(obj)
    stage.camera = eye


def _set_up(stage: bpy.types.Scene, path: Path) -> None:
    render, cycles = stage.render, stage.cycles
    render.resolution_x, render.resolution_y, render.resolution_percentage = 2 * _HEIGHT, _HEIGHT, 100
    render.use_compositing = render.use_sequencer = False
    render.film_transparent = False
    cycles.device, cycles.samples, cycles.use_adaptive_sampling, cycles.use_denoising = "CPU", _SAMPLES, False, False
    cycles.sample_clamp_direct = cycles.sample_clamp_indirect = 0.0
    files = render.image_settings
    files.file_format, files.color_mode, files.color_depth = "OPEN_EXR", "RGB", "32"
    render.filepath, render.use_file_extension, render.use_overwrite = str(path), False, True


def _made(kind, datablock, undo: contextlib.ExitStack):
    undo.callback(kind.remove, datablock)
    return datablock


def register() -> None:
    bpy.utils.register_class(PATINA_PG_light)


def unregister() -> None:
    bpy.utils.unregister_class(PATINA_PG_light)
