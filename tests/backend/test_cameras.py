# SPDX-License-Identifier: GPL-3.0-or-later
"""Cameras: the one axis convention, and what the sampled views see."""

import numpy as np
import pytest
import torch

from backend import cameras
from backend.prompts import view_words


def camera(azimuth_deg, elevation_deg, distance=3.0, tan_half_fov=0.4):
    azimuth_deg = torch.atleast_1d(torch.as_tensor(azimuth_deg, dtype=torch.float32))
    same = torch.ones_like(azimuth_deg)
    return cameras.look_at(azimuth_deg, elevation_deg * same, distance * same, tan_half_fov * same)


def in_picture(made, index, points):
    """x to the right and y down, 0..1, of points (N, 3): written out by hand from the module's drawing."""
    right, up, backward = made.rotation[index].double().numpy()
    towards = np.asarray(points, float) - made.position[index].double().numpy()
    depth = -towards @ backward
    spread = 2 * float(made.tan_half_fov[index]) * depth
    return 0.5 + towards @ right / spread, 0.5 - towards @ up / spread, depth


@pytest.mark.parametrize(
    "azimuth_deg, elevation_deg, where",
    [(0, 0, (0, -1, 0)), (90, 0, (1, 0, 0)), (180, 0, (0, 1, 0)), (270, 0, (-1, 0, 0)), (0, 90, (0, 0, 1)),
     (45, 0, (0.70711, -0.70711, 0)), (0, -30, (0, -0.86603, -0.5))],
)  # fmt: skip
def test_azimuth_starts_in_front_and_grows_counter_clockwise(azimuth_deg, elevation_deg, where):
    found = cameras.direction(torch.tensor(float(azimuth_deg)), torch.tensor(float(elevation_deg)))
    assert torch.allclose(found, torch.tensor(where, dtype=torch.float32), atol=1e-5)
    assert torch.allclose(camera(azimuth_deg, float(elevation_deg)).position[0], 3 * found, atol=1e-5)


def test_from_the_front_plus_x_is_on_the_right_and_plus_z_at_the_top():
    made = camera(0.0, 0.0)
    x, y, depth = in_picture(made, 0, [(0, 0, 0), (0.5, 0, 0), (0, 0, 0.5), (0, -0.5, 0)])
    assert np.allclose(x, [0.5, 0.5 + 0.5 / 2.4, 0.5, 0.5]) and np.allclose(y, [0.5, 0.5, 0.5 - 0.5 / 2.4, 0.5])
    assert np.allclose(depth, [3, 3, 3, 2.5])
    assert torch.allclose(made.extent, torch.tensor([1.2]))


@pytest.mark.parametrize("elevation_deg", [-90.0, -89.99, -45.0, 0.0, 60.0, 89.999, 90.0])
def test_rotations_are_right_handed_everywhere(elevation_deg):
    made = camera(torch.arange(0.0, 360.0, 15.0), elevation_deg)
    identity = torch.eye(3).expand(len(made), 3, 3)
    assert torch.allclose(made.rotation @ made.rotation.mT, identity, atol=1e-4)
    assert torch.allclose(torch.linalg.det(made.rotation), torch.ones(len(made)), atol=1e-4)
    assert torch.allclose(made.rotation[:, 2], made.position / 3, atol=1e-4)


def test_a_camera_inside_the_object_is_refused():
    with pytest.raises(ValueError, match="outside the unit sphere"):
        camera(0.0, 0.0, distance=1.0)


def test_full_views_hold_the_whole_sphere_and_go_all_round():
    made = cameras.sample_full(64, torch.Generator().manual_seed(3))
    points = np.random.default_rng(0).normal(size=(4000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for index in range(len(made)):
        x, y, depth = in_picture(made, index, points)
        assert depth.min() > 0.2
        assert min(x.min(), y.min()) > 0 and max(x.max(), y.max()) < 1
        assert x.max() - x.min() > 0.6, "the object is small in the picture"
    strata = torch.sort(made.azimuth_deg)[0] / (360 / 64)
    assert torch.equal(strata.floor(), torch.arange(64.0))
    assert (made.elevation_deg < -20).any() and (made.elevation_deg > 60).any()
    assert torch.allclose(cameras.direction(made.azimuth_deg, made.elevation_deg) * made.position.norm(dim=1)[:, None],
                          made.position, atol=1e-4)  # fmt: skip


def test_close_views_aim_at_the_surface_from_outside():
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(200, 3, generator=generator)
    points = points / points.norm(dim=1, keepdim=True) * torch.rand(200, 1, generator=generator)
    normals = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=1)
    made = cameras.sample_close(100, points, normals, generator)
    assert (made.position.norm(dim=1) > 2).all()
    angles = cameras.direction(made.azimuth_deg, made.elevation_deg)
    assert torch.allclose(angles, torch.nn.functional.normalize(made.position, dim=1), atol=1e-3)
    for index in range(len(made)):
        x, y, depth = in_picture(made, index, points.numpy())
        at_centre = (np.abs(x - 0.5) < 1e-4) & (np.abs(y - 0.5) < 1e-4)
        assert at_centre.any(), "the camera looks past every surface point"
        half_width = float(made.tan_half_fov[index]) * depth[at_centre]
        assert ((half_width > 0.249) & (half_width < 0.701)).any()


def test_the_same_seed_draws_the_same_cameras():
    one, two, other = (cameras.sample_full(8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.position, two.position) and torch.equal(one.rotation, two.rotation)
    assert not torch.equal(one.position, other.position)
    assert torch.equal(one[torch.tensor([3])].position[0], one.position[3]) and len(one[2:5]) == 3


def test_view_words_are_the_objects():
    assert [view_words(a, 0) for a in (0, 44, 46, 134, 136, 180, 224, 226, 314, 316, 359, -10, 725)] == [
        f"{side} view" for side in "front front side side back back back side side front front front front".split()
    ]
    assert view_words(180, 61) == "overhead view" and view_words(180, -80) == "back view"
