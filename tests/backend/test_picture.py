# SPDX-License-Identifier: GPL-3.0-or-later
"""The small picture of a textured object shows its maps."""

import numpy as np
import shapes_for_tests as shapes
import torch
from PIL import Image

from backend import picture
from backend.mesh import load_job_mesh
from backend.rasterize import Triangles


def flat_maps(color, metallic, roughness, size=64):
    values = {"base_color": color, "metallic": [metallic], "roughness": [roughness], "normal": [0.5, 0.5, 1.0]}
    return {name: torch.tensor(value).expand(size, size, -1) for name, value in values.items()}


def test_the_picture_shows_the_maps(tmp_path):
    shapes.write_job_mesh(tmp_path / "mesh.npz", shapes.torus(32, 16))
    seen = picture.still(Triangles.of(load_job_mesh(tmp_path / "mesh.npz")))
    picture.write(tmp_path / "red.png", seen, flat_maps([0.8, 0.1, 0.1], 0.0, 0.6))
    red = np.asarray(Image.open(tmp_path / "red.png")).astype(float)
    assert red.shape == (picture.SIZE, picture.SIZE, 4)
    on = red[..., 3] > 200
    assert 0.15 < on.mean() < 0.8 and red[0, 0, 3] == 0
    assert red[on, 0].mean() > 2 * red[on, 1].mean()
    blue = picture.render(seen, flat_maps([0.1, 0.1, 0.8], 0.0, 0.6))
    assert blue[on, 2].mean() > 2 * blue[on, 0].mean()
    half = flat_maps([0.8, 0.1, 0.1], 0.0, 0.6)
    colors = half["base_color"].clone()
    colors[:32] = torch.tensor([0.1, 0.8, 0.1])  # the upper half of the map: v from a half to 1
    two = picture.render(seen, {**half, "base_color": colors})
    assert (two[on, 1] > two[on, 0]).mean() > 0.05 and (two[on, 0] > two[on, 1]).mean() > 0.05
