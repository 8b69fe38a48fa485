# SPDX-License-Identifier: GPL-3.0-or-later
"""A contact sheet of an object: Cycles renders from around it (columns) under two lights (rows).

Works in a scene of its own, which it removes again. Knows nothing of how the material came about.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bpy
import numpy as np
from mathutils import Vector

AZIMUTHS_DEG = (20.0, 110.0, 200.0, 290.0)  # 0: Blender's front (-Y), counter-clockwise from above
ELEVATION_DEG = 18.0
_FOCAL_MM, _SENSOR_MM = 70.0, 36.0
_BACKDROP = 0.25  # linear grey behind the object
# The room that metal mirrors: (centre azimuth, centre elevation, half width, half height in degrees, radiance).
# Azimuths are relative to the camera, so each view is lit alike.
_STUDIO = ((-55.0, 35.0, 32.0, 26.0, 7.0), (70.0, 15.0, 14.0, 45.0, 3.5), (180.0, 55.0, 60.0, 14.0, 2.5))
_OUTDOOR = ((40.0, 42.0, 7.0, 7.0, 90.0),)


def render(obj: bpy.types.Object, file: Path, size: int = 256, samples: int = 24) -> None:
    """Write the sheet as PNG, len(AZIMUTHS_DEG) x 2 pictures of `size` pixels. Raises OSError, RuntimeError."""
    scene = bpy.data.scenes.new("Patina Turntable")
    made: list = []
    try:
        camera = _set_up(scene, obj, size, samples, made)
        centre, radius = _sphere_around(obj)
        with tempfile.TemporaryDirectory(prefix="patina-") as folder:
            rows = []
            for room in (_room_image(_STUDIO, False, made), _room_image(_OUTDOOR, True, made)):
                row = []
                for azimuth in AZIMUTHS_DEG:
                    _aim(camera, centre, radius, azimuth)
                    _light(scene.world, room, azimuth)
                    picture = Path(folder) / f"{len(rows)}_{len(row)}.png"
                    scene.render.filepath = str(picture)
                    with _quiet():
                        bpy.ops.render.render(write_still=True, scene=scene.name)
                    row.append(_pixels(picture, size))
                rows.append(np.concatenate(row, axis=1))
        _write(np.concatenate(rows[::-1], axis=0), file)  # Blender counts rows from below
    finally:
        for block, collection in reversed(made):
            collection.remove(block)
        bpy.data.scenes.remove(scene)


def _set_up(scene, obj, size: int, samples: int, made: list) -> bpy.types.Object:
    scene.collection.objects.link(obj)
    world = scene.world = bpy.data.worlds.new("Patina Turntable")
    made.append((world, bpy.data.worlds))
    if world.node_tree is None:  # before Blender 5.0
        world.use_nodes = True
    # The map that sun and windows are aimed at with: by default 2048 pixels wide, seconds of work for every picture.
    world.cycles.sampling_method, world.cycles.sample_map_resolution = "MANUAL", 256
    lens = bpy.data.cameras.new("Patina Turntable")
    made.append((lens, bpy.data.cameras))
    lens.lens, lens.sensor_width = _FOCAL_MM, _SENSOR_MM
    camera = bpy.data.objects.new("Patina Turntable", lens)
    made.append((camera, bpy.data.objects))
    scene.collection.objects.link(camera)
    scene.camera = camera
    render_settings = scene.render
    render_settings.engine = "CYCLES"
    scene.cycles.device = "CPU"
    scene.cycles.samples = samples
    scene.cycles.use_adaptive_sampling = False
    scene.cycles.use_denoising = True
    scene.cycles.max_bounces = 4
    render_settings.use_persistent_data = True
    render_settings.resolution_x = render_settings.resolution_y = size
    render_settings.resolution_percentage = 100
    render_settings.image_settings.file_format = "PNG"
    render_settings.image_settings.color_mode = "RGB"
    scene.view_settings.view_transform = "Standard"  # what the optimiser saw; AgX is paler
    return camera


def _aim(camera, centre: Vector, radius: float, azimuth_deg: float) -> None:
    azimuth, elevation = math.radians(azimuth_deg), math.radians(ELEVATION_DEG)
    away = Vector(
        (math.sin(azimuth) * math.cos(elevation), -math.cos(azimuth) * math.cos(elevation), math.sin(elevation))
    )
    distance = 1.02 * radius / math.sin(math.atan(_SENSOR_MM / 2 / _FOCAL_MM))
    camera.location = centre + away * distance
    camera.rotation_euler = (-away).to_track_quat("-Z", "Y").to_euler()
    camera.data.clip_start, camera.data.clip_end = distance * 0.01, distance * 10


def _sphere_around(obj: bpy.types.Object) -> tuple[Vector, float]:
    """Centre and radius, in the world, of a sphere that holds what is rendered of the object."""
    shown = obj.evaluated_get(bpy.context.evaluated_depsgraph_get())
    mesh = shown.to_mesh()
    try:
        points = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", points)
    finally:
        shown.to_mesh_clear()
    matrix = np.array(obj.matrix_world)
    points = points.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    return Vector(centre), float(np.linalg.norm(points - centre, axis=1).max()) or 1.0


def _light(world, room: bpy.types.Image, azimuth_deg: float) -> None:
    """Surround with a picture of the lights for everything but the camera, which sees plain grey."""
    tree = world.node_tree
    tree.nodes.clear()
    where, turn = tree.nodes.new("ShaderNodeTexCoord"), tree.nodes.new("ShaderNodeMapping")
    turn.inputs["Rotation"].default_value[2] = -math.radians(azimuth_deg)  # the lights go with the camera
    surround = tree.nodes.new("ShaderNodeTexEnvironment")
    surround.image = room
    lit, plain = tree.nodes.new("ShaderNodeBackground"), tree.nodes.new("ShaderNodeBackground")
    plain.inputs["Color"].default_value = (_BACKDROP, _BACKDROP, _BACKDROP, 1.0)
    ray, mix = tree.nodes.new("ShaderNodeLightPath"), tree.nodes.new("ShaderNodeMixShader")
    output = tree.nodes.new("ShaderNodeOutputWorld")
    tree.links.new(where.outputs["Generated"], turn.inputs["Vector"])
    tree.links.new(turn.outputs["Vector"], surround.inputs["Vector"])
    tree.links.new(surround.outputs["Color"], lit.inputs["Color"])
    tree.links.new(ray.outputs["Is Camera Ray"], mix.inputs[0])
    tree.links.new(lit.outputs["Background"], mix.inputs[1])
    tree.links.new(plain.outputs["Background"], mix.inputs[2])
    tree.links.new(mix.outputs["Shader"], output.inputs["Surface"])


def _room(lights, sky: bool) -> np.ndarray:
    """Radiance (128, 256, 3) of an equirectangular room, row 0 at the bottom."""
    elevation = ((np.arange(128) + 0.5) / 128 * 180 - 90)[:, None]
    # Blender: u = 0.5 - atan2(y, x) / 2 pi; our azimuth is 0 at -Y and grows counter-clockwise.
    around = (0.5 - (np.arange(256) + 0.5) / 256)[None, :] * 360 + 90
    up = elevation / 90
    if sky:
        above = np.array([0.50, 0.68, 1.0]) * (1.15 - 0.7 * np.clip(up, 0, 1))[..., None]
        ground = np.array([0.20, 0.17, 0.14]) * np.ones_like(up)[..., None]
        room = np.where(up[..., None] > 0, above, ground) * np.ones((1, 256, 1))
    else:
        room = (0.10 + 0.22 * (up + 1) / 2)[..., None] * np.ones((1, 256, 3))
    for centre, height, half_width, half_height, radiance in lights:
        turn = np.abs((around - centre + 180) % 360 - 180) / half_width
        tilt = np.abs(elevation - height) / half_height
        edge = np.clip((1.15 - np.maximum(turn, tilt)) / 0.3, 0, 1)[..., None]
        tint = np.array([1.0, 0.92, 0.80]) if sky else np.ones(3)
        room = room * (1 - edge) + edge * radiance * tint
    return room


def _room_image(lights, sky: bool, made: list) -> bpy.types.Image:
    image = bpy.data.images.new("Patina Turntable", 256, 128, float_buffer=True)
    made.append((image, bpy.data.images))
    pixels = np.ones((128, 256, 4), np.float32)
    pixels[..., :3] = _room(lights, sky)
    image.pixels.foreach_set(pixels.ravel())
    return image


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Cycles' hundreds of progress lines off the terminal."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _pixels(file: Path, size: int) -> np.ndarray:
    image = bpy.data.images.load(str(file))
    try:
        values = np.empty(size * size * 4, np.float32)
        image.pixels.foreach_get(values)
    finally:
        bpy.data.images.remove(image)
    return values.reshape(size, size, 4)


def _write(pixels: np.ndarray, file: Path) -> None:
    height, width = pixels.shape[:2]
    image = bpy.data.images.new("Patina Turntable Sheet", width, height)
    try:
        image.pixels.foreach_set(np.ascontiguousarray(pixels).ravel())
        image.file_format = "PNG"
        image.save(filepath=str(file))
    finally:
        bpy.data.images.remove(image)
