# SPDX-License-Identifier: GPL-3.0-or-later
"""The objects of the parity table, and the textures of the textured one. Knows bpy and numpy."""

from __future__ import annotations

import math
from pathlib import Path

import bpy
import numpy as np

SHAPES = ("sphere", "suzanne", "textured", "hard")
MEAN_TILT_DEG = 9.0
TEXTURE_SIZE = 512


def make(name: str, folder: Path) -> bpy.types.Object:
    """One of SHAPES inside the unit sphere; textures are written into `folder`."""
    if name in ("sphere", "textured"):
        segments = (256, 128) if name == "sphere" else (128, 64)
        bpy.ops.mesh.primitive_uv_sphere_add(segments=segments[0], ring_count=segments[1], radius=1.0)
        bpy.context.object.data.shade_smooth()
        if name == "textured":
            write_textures(folder)
    elif name == "suzanne":
        bpy.ops.mesh.primitive_monkey_add(size=1.4)
        bpy.context.object.data.shade_smooth()
        bpy.context.object.modifiers.new("Subdivision", "SUBSURF").render_levels = 2
        bpy.context.object.modifiers[0].levels = 2
    else:
        _hard_surface()
    obj = bpy.context.object
    obj.name = name
    return obj


def _hard_surface() -> None:
    """Bevelled box with sunk panels, a round boss on top and a rod through it; smooth faces between sharp edges."""
    import bmesh

    mesh = bpy.data.meshes.new("hard")
    shape = bmesh.new()
    bmesh.ops.create_cube(shape, size=1.0)
    bmesh.ops.bevel(
        shape, geom=shape.edges[:], offset=0.08, segments=2, profile=0.5, affect="EDGES", clamp_overlap=True
    )
    panels = [face for face in shape.faces if face.calc_area() > 0.4]
    for face in panels:
        bmesh.ops.inset_individual(shape, faces=[face], thickness=0.14, depth=0.0)
        bmesh.ops.inset_individual(shape, faces=[face], thickness=0.03, depth=-0.1)
    from mathutils import Matrix

    turn = Matrix.Rotation(math.pi / 2, 4, "Y")
    place = Matrix.Translation((0, 0, 0.5))
    bmesh.ops.create_cone(shape, cap_ends=True, segments=48, radius1=0.25, radius2=0.2, depth=0.5, matrix=place)
    bmesh.ops.create_cone(shape, cap_ends=True, segments=32, radius1=0.09, radius2=0.09, depth=1.6, matrix=turn)
    bmesh.ops.recalc_face_normals(shape, faces=shape.faces[:])
    shape.to_mesh(mesh)
    shape.free()
    obj = bpy.data.objects.new("hard", mesh)
    bpy.context.scene.collection.objects.link(obj)
    bpy.ops.object.select_all(action="DESELECT")  # the operators below work on all that is selected
    bpy.context.view_layer.objects.active = obj
    obj.select_set(True)
    mesh.shade_smooth()
    mesh.set_sharp_from_angle(angle=math.radians(35))
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.mesh.select_all(action="SELECT")
    bpy.ops.uv.smart_project(angle_limit=math.radians(66), island_margin=0.01)
    bpy.ops.object.mode_set(mode="OBJECT")


def write_textures(folder: Path) -> None:
    """Smooth, tiling 8 bit textures: sRGB base colour, metallic, roughness, and a normal map of MEAN_TILT_DEG."""
    rng = np.random.default_rng(11)
    color = np.stack([_noise(rng, 6) for _ in range(3)], axis=-1) * 0.16 + [0.65, 0.5, 0.4]
    _save(folder / "base_color.png", color)
    _save(folder / "metallic.png", 0.5 + 0.45 * np.tanh(2 * _noise(rng, 4)))
    _save(folder / "roughness.png", 0.5 + 0.16 * _noise(rng, 5))
    height = _noise(rng, 14)
    du = (np.roll(height, -1, 1) - np.roll(height, 1, 1)) / 2
    dv = (np.roll(height, 1, 0) - np.roll(height, -1, 0)) / 2  # v grows upwards, rows downwards
    steepness = np.hypot(du, dv)
    scale = 1.0
    for _ in range(40):
        scale *= MEAN_TILT_DEG / np.degrees(np.arctan(scale * steepness)).mean()
    normal = np.stack((-scale * du, -scale * dv, np.ones_like(du)), axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    _save(folder / "normal.png", normal * 0.5 + 0.5)


def _noise(rng: np.random.Generator, highest: int) -> np.ndarray:
    """(T, T) of standard deviation 1 that tiles, of waves with up to `highest` periods (half of that along v)."""
    t = np.arange(TEXTURE_SIZE) / TEXTURE_SIZE * 2 * np.pi
    total = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE))
    for _ in range(24):
        across, along = rng.integers(-highest, highest + 1), rng.integers(0, highest // 2 + 1)
        total += np.cos(across * t[None] + along * t[:, None] + rng.uniform(0, 2 * np.pi))
    return (total - total.mean()) / total.std()


def _save(file: Path, values: np.ndarray) -> None:
    """8 bit PNG of display values 0..1, row 0 at the top."""
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=-1)
    image = bpy.data.images.new(file.stem, TEXTURE_SIZE, TEXTURE_SIZE)
    image.colorspace_settings.name = "Non-Color"
    texels = np.round(np.clip(values, 0, 1) * 255) / 255
    pixels = np.concatenate((texels[::-1], np.ones((*texels.shape[:2], 1))), axis=-1).astype(np.float32)
    image.pixels.foreach_set(pixels.ravel())
    image.file_format, image.filepath_raw = "PNG", str(file)
    image.save()
    bpy.data.images.remove(image)
