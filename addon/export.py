# SPDX-License-Identifier: GPL-3.0-or-later
"""A variant's maps for other programs: packed, named and written as they want them; and a .glb with the material.

Knows the four maps as arrays and what the engines expect; knows no panel and no job.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np

from . import images, png, protocol


@dataclass(frozen=True)
class Texture:
    """One file of a template. `channels`: for each channel a map's name with the index of its channel, "1" (white),
    or "~" before a map's name for its opposite (smoothness of roughness). An extra map that was not made is white."""

    suffix: str
    channels: tuple[str, ...]
    is_color: bool = False
    is_normal: bool = False
    only_with: str = ""  # an extra map without which there is no such file


@dataclass(frozen=True)
class Template:
    prefix: str
    textures: tuple[Texture, ...]
    directx: bool = False  # green of the normal map points down


_COLOR = ("base_color.0", "base_color.1", "base_color.2")
_NORMAL = ("normal.0", "normal.1", "normal.2")
_ORM = ("ambient_occlusion.0", "roughness.0", "metallic.0")
TEMPLATES = {
    "SEPARATE": Template(
        "",
        (
            Texture("base_color", _COLOR, is_color=True),
            Texture("metallic", ("metallic.0",)),
            Texture("roughness", ("roughness.0",)),
            Texture("normal", _NORMAL, is_normal=True),
            Texture("ambient_occlusion", ("ambient_occlusion.0",), only_with="ambient_occlusion"),
            Texture("height", ("height.0",), only_with="height"),
        ),
    ),
    "GLTF": Template(
        "",
        (
            Texture("baseColor", _COLOR, is_color=True),
            Texture("occlusionRoughnessMetallic", _ORM),
            Texture("normal", _NORMAL, is_normal=True),
            Texture("height", ("height.0",), only_with="height"),
        ),
    ),
    "UNREAL": Template(
        "T_",
        (
            Texture("BC", _COLOR, is_color=True),
            Texture("ORM", _ORM),
            Texture("N", _NORMAL, is_normal=True),
            Texture("H", ("height.0",), only_with="height"),
        ),
        directx=True,
    ),
    "UNITY": Template(
        "",
        (
            Texture("AlbedoTransparency", (*_COLOR, "1"), is_color=True),
            Texture("MetallicSmoothness", ("metallic.0", "metallic.0", "metallic.0", "~roughness.0")),
            Texture("Normal", _NORMAL, is_normal=True),
            Texture("Occlusion", ("ambient_occlusion.0",), only_with="ambient_occlusion"),
            Texture("Height", ("height.0",), only_with="height"),
        ),
    ),
}


_NOT_SELECTABLE = "{name} is hidden or cannot be selected. Make it visible and selectable in the Outliner, try again."


class ExportProblem(ValueError):
    """Nothing was written; the text is a sentence for a person."""


def maps_of(run: str, folder: Path) -> dict[str, np.ndarray]:
    """The maps as the open file shows them, and the extra maps in `folder`: (H, W, C) in 0..1 as stored, all as large
    as the base colour, since a packed file takes its channels from several.

    Raises ExportProblem, RuntimeError."""
    found = images.find(run)
    if len(found) < len(protocol.MAP_NAMES):
        raise ExportProblem("The maps are not in this file any more. Show the variant first.")
    maps = {name: images.texels(found[name]) for name in protocol.MAP_NAMES}
    for name in protocol.EXTRA_MAPS:
        if images.map_file(folder, name).is_file():
            maps[name] = images.read_data(images.map_file(folder, name))[..., :1]
    size = maps["base_color"].shape[:2]
    sized = {name: images.resized(values, *size) for name, values in maps.items()}
    if sized["normal"] is not maps["normal"]:  # what lies between two directions is shorter than either
        vectors = sized["normal"] * 2 - 1
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        sized["normal"] = vectors / np.maximum(length, 1e-6) * 0.5 + 0.5
    return sized


def write(
    folder: Path,
    name: str,
    maps: dict[str, np.ndarray],
    template: str,
    directx: bool,
    bits: int,
    file_format: str,
    overwrite: bool,
) -> list[Path]:
    """Write the files of a template; `bits` 8 or 16 for PNG, EXR holds floats (colours linear).

    Nothing is written when one of them exists and `overwrite` is False. Raises ExportProblem, OSError, RuntimeError.
    """
    kind = TEMPLATES[template]
    ending = "exr" if file_format == "OPEN_EXR" else "png"
    textures = [texture for texture in kind.textures if not texture.only_with or texture.only_with in maps]
    paths = [folder / f"{kind.prefix}{name}_{texture.suffix}.{ending}" for texture in textures]
    there = [path.name for path in paths if path.exists()]
    if there and not overwrite:
        raise ExportProblem(f"{there[0]} exists in {folder}. Choose another folder, or allow Overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    for texture, path in zip(textures, paths, strict=True):
        values = packed(texture, maps, directx)
        if ending == "exr":
            _write_exr(path, linear(values) if texture.is_color else values)
        else:
            # Eight bits are steps that a displaced surface shows.
            depth = 16 if texture.only_with == "height" else bits
            protocol.write_beside(path, png.encode(png.quantised(values, depth)))
    return paths


def packed(texture: Texture, maps: dict[str, np.ndarray], directx: bool) -> np.ndarray:
    """(H, W, C) of one file."""
    size = maps["base_color"].shape[:2]
    channels = []
    for wanted in texture.channels:
        if wanted == "1":
            channels.append(np.ones(size, np.float32))
            continue
        name, index = wanted.lstrip("~").split(".")
        if name not in maps and name in protocol.EXTRA_MAPS:
            channels.append(np.ones(size, np.float32))
            continue
        values = maps[name][..., int(index)]
        channels.append(1 - values if wanted.startswith("~") else values)
    if texture.is_normal and directx:
        channels[1] = 1 - channels[1]
    return np.stack(channels, axis=-1)


def linear(values: np.ndarray) -> np.ndarray:
    """Display values to linear ones; a fourth channel stays."""
    color = values[..., :3]
    color = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return np.concatenate([color, values[..., 3:]], axis=-1)


def _write_exr(path: Path, values: np.ndarray) -> None:
    """By Blender, through an image that lives for the moment."""
    height, width, channels = values.shape
    image = bpy.data.images.new("Patina export", width, height, float_buffer=True, is_data=True, alpha=channels == 4)
    beside = path.with_name(f".{path.stem}.part.exr")
    try:
        pixels = np.ones((height, width, 4), np.float32)
        pixels[..., : max(channels, 3)] = values
        image.pixels.foreach_set(np.ascontiguousarray(pixels[::-1]).ravel())
        image.filepath_raw, image.file_format = str(beside), "OPEN_EXR"
        image.save()
        beside.replace(path)
    finally:
        bpy.data.images.remove(image)
        beside.unlink(missing_ok=True)


def write_glb(obj: bpy.types.Object, path: Path, overwrite: bool) -> None:
    """The object with its material, by Blender's exporter; selection and mode as before.

    Raises ExportProblem, RuntimeError."""
    if path.exists() and not overwrite:
        raise ExportProblem(f"{path.name} exists in {path.parent}. Choose another folder, or allow Overwrite.")
    if not hasattr(bpy.types, "EXPORT_SCENE_OT_gltf"):
        raise ExportProblem("Blender's glTF exporter is off. Enable the glTF 2.0 add-on in Preferences > Add-ons.")
    layer = bpy.context.view_layer
    if obj.name not in layer.objects:
        raise ExportProblem(_NOT_SELECTABLE.format(name=obj.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    active, selected = layer.objects.active, [other for other in layer.objects if other.select_get()]
    mode = active.mode if active is not None else "OBJECT"
    in_mode = [other for other in layer.objects if other.mode == mode and other.visible_get()]
    try:
        for other in selected:
            other.select_set(False)
        obj.select_set(True)
        if not obj.select_get():  # Blender's exporter would write a file without any object
            raise ExportProblem(_NOT_SELECTABLE.format(name=obj.name))
        layer.objects.active = obj
        bpy.ops.export_scene.gltf(filepath=str(path), export_format="GLB", use_selection=True, export_apply=True)
    finally:
        obj.select_set(False)
        layer.objects.active = active
        if active is not None and active.mode != mode:  # the exporter leaves Edit Mode
            for other in in_mode:  # the mode is entered by all that are selected
                other.select_set(True)
            bpy.ops.object.mode_set(mode=mode)
            for other in in_mode:
                other.select_set(False)
        for other in selected:
            other.select_set(True)
    if not path.is_file():
        raise ExportProblem(f"{path} was not written by Blender's exporter.")


def mark_as_asset(material: bpy.types.Material, prompt: str, picture: Path) -> None:
    """Put a variant's material into the asset browser, with its picture as the preview."""
    material.asset_mark()
    material.asset_data.description = prompt
    material.asset_data.tags.new("Patina", skip_if_exists=True)
    if picture.is_file():
        with bpy.context.temp_override(id=material), contextlib.suppress(RuntimeError):
            bpy.ops.ed.lib_id_load_custom_preview(filepath=str(picture))
