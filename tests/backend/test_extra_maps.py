# SPDX-License-Identifier: GPL-3.0-or-later
"""Ambient occlusion against its closed form, height against the relief a normal map was made of, and their files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import shapes_for_tests as shapes
import torch
from test_occlusion import floor_and_wall
from test_texturing import REQUEST, job_in, run

from addon import protocol
from backend import ambient_occlusion, height, material
from backend.maps import read_map
from backend.rasterize import Triangles


def test_nothing_hides_the_sky_from_a_ball():
    shares = ambient_occlusion.of_texels(Triangles.of(shapes.mesh_of(shapes.sphere())), 256)
    assert shares.shape == (256, 256, 1) and float(shares[20:-20].min()) > 0.97


def test_a_wall_hides_what_its_closed_form_says():
    scene = floor_and_wall()
    # The floor fills the left half of the texture, u along x and v along y.
    x, y = scene.positions[:2, :, 0], scene.positions[:2, :, 1]
    uvs = torch.full((4, 3, 2), 0.9)
    uvs[:2] = torch.stack((0.5 * (x + 0.7) / 1.4, (y + 0.6) / 1.2), dim=-1)
    shares = ambient_occlusion.of_texels(replace(scene, uvs=uvs), 512)[..., 0]
    row = shares[256]  # half way along the wall, y = 0
    position = (torch.arange(512) + 0.5) / 512 / 0.5 * 1.4 - 0.7
    for place in (-0.4, -0.1, 0.1, 0.2):
        distance, tall, half = 0.3 - place, 0.6, 0.6
        # The view factor from a point to an upright rectangle whose foot lies before it, twice for its two halves.
        slanted = np.hypot(distance, tall)
        factor = (np.arctan(half / distance) - distance / slanted * np.arctan(half / slanted)) / np.pi
        found = float(row[int((position - place).abs().argmin())])
        print(f"at {place}: {found:.3f}, closed form {1 - factor:.3f}")
        assert found == pytest.approx(1 - factor, abs=0.02)
    assert float(row[:20].mean()) > 0.85


def relief(x, y):
    """Height, and its slopes along x and y."""
    wave = 0.02 * np.sin(9 * x) * np.cos(7 * y) + 0.05 * x * y + 0.06 * x  # the halves differ in their mean
    by_x = 0.18 * np.cos(9 * x) * np.cos(7 * y) + 0.05 * y + 0.06
    return wave, by_x, -0.14 * np.sin(9 * x) * np.sin(7 * y) + 0.05 * x


def in_two_islands():
    """A square in the XY plane; the right half lies turned by a quarter and smaller elsewhere in the texture."""
    arrays = shapes.grid(8)
    right = arrays["positions"][..., 0].mean(1) > 0
    uvs = arrays["uvs"].copy() * 0.6
    turned = np.stack((-arrays["uvs"][right][..., 1], arrays["uvs"][right][..., 0]), axis=-1)
    uvs[right] = turned * 0.4 + np.float32([0.97, 0.3])
    return shapes.mesh_of(shapes.job_arrays(arrays["positions"], arrays["normals"], uvs))


def normal_map(mesh, size):
    """What the relief looks like as a tangent-space normal map of `mesh`."""
    where = material.texels(mesh, size)
    x, y = where.position[:, 0].numpy(), where.position[:, 1].numpy()
    _, by_x, by_y = relief(x, y)
    tangents = mesh.tangents[where.triangle.numpy()].mean(1)
    tangent = tangents[:, :2]
    bitangent = tangents[:, 3:] * np.stack((-tangent[:, 1], tangent[:, 0]), axis=1)  # +Z times the tangent
    along = np.stack((by_x, by_y), axis=1)
    vectors = np.stack((-(along * tangent).sum(1), -(along * bitangent).sum(1), np.ones(len(x))), axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    image = torch.full((size * size, 3), 0.5)
    image[where.index] = torch.from_numpy(vectors * 0.5 + 0.5).float()
    return image.view(size, size, 3), where, relief(x, y)[0]


@pytest.mark.parametrize("size", [256, 512])
def test_a_relief_comes_back_from_its_normals_across_a_cut(size, monkeypatch):
    monkeypatch.setattr(height, "SIZE", 256)  # 512 is halved on the way
    mesh = replace(in_two_islands(), radius=3.0)
    image, where, wanted = normal_map(mesh, size)
    values, tall = height.from_normals(mesh, image, material.coverage(where))
    assert values.shape == (size, size, 1) and float(values.min()) >= 0 and float(values.max()) <= 1
    found = (values.reshape(-1)[where.index].numpy() - 0.5) * tall / mesh.radius
    error = (found - found.mean()) - (wanted - wanted.mean())
    print(f"relief {wanted.std():.4f}, error {error.std():.5f}, worst {np.abs(error).max():.5f}")
    assert error.std() < 0.02 * wanted.std() and np.abs(error).max() < 0.1 * wanted.std()


def test_a_flat_normal_map_is_no_relief():
    mesh = shapes.mesh_of(shapes.torus(16, 8))
    where = material.texels(mesh, 128)
    flat = torch.tensor([0.5, 0.5, 1.0]).expand(128, 128, 3)
    values, tall = height.from_normals(mesh, flat, material.coverage(where))
    assert tall < 1e-6 and float((values - 0.5).abs().max()) < 0.51


def test_a_run_writes_the_extra_maps_it_is_asked_for(tmp_path):
    job = job_in(tmp_path / "job", shapes.sphere(16, 8))
    done = run(job, replace(REQUEST, extra_maps=["height", "ambient_occlusion"]))[-1]
    assert done.maps["height"] == "maps/height.png" and done.maps["ambient_occlusion"] == "maps/ambient_occlusion.png"
    bits = [(job.maps / f"{name}.png").read_bytes()[24] for name in protocol.EXTRA_MAPS]
    assert bits == [8, 16]
    assert read_map(job.maps / "ambient_occlusion.png")[60:-60].min() > 0.9
    assert json.loads(job.report.read_text())["height_range"] > 0
    plain = run(job_in(tmp_path / "plain"))[-1]
    assert set(plain.maps) == set(protocol.MAP_NAMES)
    with pytest.raises(protocol.ProtocolError, match="extra_maps may hold"):
        replace(REQUEST, extra_maps=["displacement"])
