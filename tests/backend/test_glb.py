# SPDX-License-Identifier: GPL-3.0-or-later
"""The .glb for those who work without Blender, read back by trimesh and by our own reader."""

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from backend.glb import write_glb
from backend.maps import write_maps
from backend.mesh import load_mesh_file


@pytest.fixture
def maps(tmp_path):
    colours = {"base_color": (200, 10, 30), "metallic": 255, "roughness": 64, "normal": (128, 128, 255)}
    for name, value in colours.items():
        Image.new("RGB" if isinstance(value, tuple) else "L", (8, 8), value).save(tmp_path / f"{name}.png")
    return tmp_path


def test_what_is_written_reads_back(maps, tmp_path):
    (tmp_path / "box.obj").write_text(
        "v 0 0 0\nv 1 0 0\nv 1 2 0\nv 0 2 3\nvt 0 0\nvt .5 0\nvt .5 1\nvt 0 .75\nf 1/1 2/2 3/3 4/4\n"
    )
    arrays = load_mesh_file(tmp_path / "box.obj")
    write_glb(tmp_path / "box.glb", arrays, maps)
    again = load_mesh_file(tmp_path / "box.glb")
    for name in ("positions", "uvs", "normals"):
        order = [np.lexsort(np.round(a["positions"].mean(1), 4).T) for a in (arrays, again)]
        assert np.allclose(arrays[name][order[0]].mean(1), again[name][order[1]].mean(1), atol=1e-4), name
    (shape,) = trimesh.load_scene(tmp_path / "box.glb").geometry.values()
    material = shape.visual.material
    assert material.baseColorTexture.convert("RGB").getpixel((3, 3)) == (200, 10, 30)
    assert material.metallicRoughnessTexture.convert("RGB").getpixel((3, 3)) == (255, 64, 255)
    assert material.metallicFactor == 1 and material.roughnessFactor == 1


@pytest.mark.parametrize(("file_format", "bits"), [("png", 16), ("exr", 32)])
def test_maps_of_every_format_go_in(file_format, bits, tmp_path):
    colours = {"base_color": (200, 10, 30), "metallic": (255,), "roughness": (64,), "normal": (128, 128, 255)}
    made = {name: torch.tensor(value).float().expand(8, 8, -1) / 255 for name, value in colours.items()}
    write_maps(tmp_path, made, torch.ones(8, 8, dtype=torch.bool), file_format=file_format, bits=bits)
    (tmp_path / "box.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 2 0\nvt 0 0\nvt 1 0\nvt 1 1\nf 1/1 2/2 3/3\n")
    write_glb(tmp_path / "box.glb", load_mesh_file(tmp_path / "box.obj"), tmp_path)
    (shape,) = trimesh.load_scene(tmp_path / "box.glb").geometry.values()
    material = shape.visual.material
    assert material.baseColorTexture.convert("RGB").getpixel((3, 3)) == (200, 10, 30)
    assert material.metallicRoughnessTexture.convert("RGB").getpixel((3, 3)) == (255, 64, 255)
