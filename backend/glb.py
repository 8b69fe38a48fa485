# SPDX-License-Identifier: Apache-2.0
"""A textured mesh as one .glb file, for those who work without Blender: what the maps fit, new UVs included.

Knows job arrays and map files; trimesh writes the format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from addon.protocol import write_beside

from .maps import find_map, read_map


def write_glb(file: Path, arrays: dict[str, np.ndarray], maps: Path) -> None:
    """Write the triangles of MESH_ARRAYS with the four maps of folder `maps`. Raises OSError."""

    def corners(name: str) -> np.ndarray:
        values = arrays[name].reshape(-1, arrays[name].shape[-1])
        # +Z up, front -Y, to glTF's +Y up.
        return values if name == "uvs" else np.stack((values[:, 0], values[:, 2], -values[:, 1]), axis=1)

    material = PBRMaterial(
        name=file.stem,
        baseColorTexture=_picture(maps, "base_color"),
        metallicRoughnessTexture=_packed(maps),
        normalTexture=_picture(maps, "normal"),
        metallicFactor=1.0,
        roughnessFactor=1.0,
    )
    count = len(arrays["positions"])
    shape = trimesh.Trimesh(
        vertices=corners("positions"),
        faces=np.arange(3 * count).reshape(count, 3),
        vertex_normals=corners("normals"),
        visual=TextureVisuals(uv=corners("uvs"), material=material),
        process=False,
    )
    shape.merge_vertices(merge_norm=False, merge_tex=False)
    write_beside(file, trimesh.Scene({file.stem: shape}).export(file_type="glb", include_normals=True))


def _picture(maps: Path, name: str) -> Image.Image:
    """The map with 8 bits, which is what glTF takes."""
    return Image.fromarray(np.round(read_map(find_map(maps, name)) * 255).astype(np.uint8))


def _packed(maps: Path) -> Image.Image:
    """glTF's metallic-roughness picture: roughness in green, metallic in blue."""
    metallic, roughness = (_picture(maps, name) for name in ("metallic", "roughness"))
    return Image.merge("RGB", (Image.new("L", metallic.size, 255), roughness, metallic))
