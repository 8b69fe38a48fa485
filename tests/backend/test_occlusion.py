# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mesh hides from itself, against rays cast at every triangle."""

from dataclasses import replace

import numpy as np
import pytest
import shapes_for_tests as shapes
import torch

from backend import cameras, ggx_tables, lighting, occlusion
from backend.rasterize import Triangles, gather, look
from backend.shading import SurfaceMaps, shade

TABLES = ggx_tables.load()


def soup(corners):
    """Triangles (F, 3, 3) with flat normals."""
    corners = torch.as_tensor(corners, dtype=torch.float32)
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = torch.nn.functional.normalize(normal, dim=1)[:, None].expand(-1, 3, 3)
    return Triangles(corners, normal, torch.zeros(len(corners), 3, 4), torch.zeros(len(corners), 3, 2))


def quad(a, b, c, d):
    return [[a, b, c], [a, c, d]]


def floor_and_wall():
    """A floor z = 0 and a wall x = 0.3 that stands on it, its lit side towards -x."""
    return soup(
        quad((-0.7, -0.6, 0), (0.7, -0.6, 0), (0.7, 0.6, 0), (-0.7, 0.6, 0))
        + quad((0.3, -0.6, 0), (0.3, -0.6, 0.6), (0.3, 0.6, 0.6), (0.3, 0.6, 0))
    )


def blocked(triangles, start, towards):
    """(N,) bool by Moeller and Trumbore, every ray against every triangle."""
    a, b, c = triangles.positions.double().unbind(1)
    e1, e2 = b - a, c - a
    p = torch.linalg.cross(towards[:, None].expand(-1, len(a), 3), e2[None].expand(len(start), -1, 3))
    det = (e1 * p).sum(-1)
    s = start[:, None] - a
    u = (s * p).sum(-1) / det
    q = torch.linalg.cross(s, e1[None].expand_as(s))
    v = (towards[:, None] * q).sum(-1) / det
    t = (e2 * q).sum(-1) / det
    return ((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 1e-4) & (det.abs() > 1e-12)).any(1)


def test_depth_maps_agree_with_rays():
    generator = torch.Generator().manual_seed(3)
    centre = torch.nn.functional.normalize(torch.randn(60, 1, 3, generator=generator), dim=-1) * 0.6
    triangles = soup(centre + 0.25 * torch.randn(60, 3, 3, generator=generator).clamp(-1.4, 1.4))
    sky = occlusion.look_from(triangles, occlusion.even_directions(24), 512)
    corners = triangles.positions.double()
    weights = torch.rand(60, 3, generator=generator).double() + 0.3
    weights = weights / weights.sum(1, keepdim=True)
    points = torch.einsum("fk,fki->fi", weights, corners)
    normals = triangles.normals[:, 0].double()
    agree = []
    for k, towards in enumerate(sky.direction.double()):
        facing = normals * torch.sign(normals @ towards)[:, None]
        share = occlusion.open_share(replace_k(sky, k), points.float(), facing.float())[:, 0]
        clear = ~blocked(triangles, points + 1e-3 * facing, towards.expand_as(points))
        steep = (facing @ towards) < 0.15  # a ray along the surface: either answer
        agree.append(((share > 0.5) == clear)[~steep])
    agree = torch.cat(agree).float().mean()
    print(f"{agree:.2%} of rays agree")
    assert agree > 0.98


def replace_k(sky, k):
    return occlusion.Sky(sky.direction[k : k + 1], sky.frame[k : k + 1], sky.depth[k : k + 1])


def picture_of_floor(triangles):
    view = cameras.look_at(torch.tensor([-60.0]), torch.tensor([50.0]), torch.tensor([4.0]), torch.tensor([0.3]))
    points = gather(triangles, view, [look(triangles, view, 0, 64)])
    return points, points.position[:, 2].abs() < 1e-3


def matt(count):
    return SurfaceMaps(torch.full((count, 3), 0.5), torch.zeros(count), torch.ones(count))


def test_a_wall_throws_a_shadow_of_the_right_length():
    triangles = floor_and_wall()
    points, on_floor = picture_of_floor(triangles)
    slope = 2.0
    towards = torch.tensor([[[slope, 0.0, 1.0]]]) / (1 + slope**2) ** 0.5
    lights = lighting.with_suns(lighting.uniform(1, 0.0), towards, torch.ones(1, 1, 3))
    suns = occlusion.open_share(occlusion.look_from(triangles, lights.sun_direction[0], 1024), points.position,
                                points.geometric_normal)  # fmt: skip
    openness = occlusion.Openness(torch.zeros(0, 3), None, suns)
    lit = shade(points, matt(len(suns)), lights, TABLES, openness=openness)[:, 0]
    x = points.position[:, 0]
    dark = on_floor & (x < 0.27) & (x > -0.67) & (points.position[:, 1].abs() < 0.55)  # a wall of 0.6 reaches 1.2 far
    assert dark.sum() > 200 and lit[dark].max() < 1e-6
    beyond = on_floor & (x > 0.35)
    assert beyond.sum() > 5 and lit[beyond].min() > 0.02


def test_the_sky_darkens_a_corner_by_what_the_wall_covers():
    triangles = floor_and_wall()
    points, on_floor = picture_of_floor(triangles)
    sky = occlusion.look_from(triangles, occlusion.even_directions())
    openness = occlusion.Openness(
        sky.direction, occlusion.open_share(sky, points.position, points.geometric_normal), None
    )
    lights = lighting.uniform(1)
    share = occlusion.diffuse_share(openness, points, points.geometric_normal, lights)[:, 0]
    # Lambert's form factor of the wall (0.6 high, long along y) for a floor point in its middle, by quadrature.
    for distance in (0.15, 0.4):
        x, y = points.position[:, 0], points.position[:, 1]
        near = on_floor & ((x - 0.3 + distance).abs() < 0.02) & (y.abs() < 0.1)
        y, z = np.meshgrid(np.linspace(-0.6, 0.6, 601), np.linspace(0.0, 0.6, 301), indexing="ij")
        r2 = distance**2 + y**2 + z**2
        covered = (z * distance / (np.pi * r2**2)).sum() * (1.2 / 600) * (0.6 / 300)
        found = 1 - float(share[near].mean())
        print(f"distance {distance}: {found:.3f}, wanted {covered:.3f}")
        assert near.sum() > 3 and abs(found - covered) < 0.03


def test_a_convex_body_hides_nothing_from_itself():
    triangles = Triangles.of(shapes.mesh_of(shapes.sphere()))
    view = cameras.look_at(torch.tensor([10.0]), torch.tensor([20.0]), torch.tensor([4.0]), torch.tensor([0.3]))
    points = gather(triangles, view, [look(triangles, view, 0, 48)])
    sky = occlusion.look_from(triangles, occlusion.even_directions())
    openness = occlusion.Openness(
        sky.direction, occlusion.open_share(sky, points.position, points.geometric_normal), None
    )
    lights = lighting.sample(1, torch.Generator().manual_seed(1))
    lights = replace(lights, sun_irradiance=torch.zeros_like(lights.sun_irradiance))
    normal = torch.nn.functional.normalize(points.normal, dim=1)
    for share in (
        occlusion.diffuse_share(openness, points, normal, lights),
        occlusion.glossy_share(openness, points, normal, torch.full((len(normal),), 0.6), lights),
    ):
        inner = (normal * points.to_camera).sum(1) > 0.3
        print(f"{share[inner].min():.3f} to {share.max():.3f}")
        assert share.max() <= 1.0001 and share[inner].mean() > 0.985 and share[inner].min() > 0.95


def test_suns_move_to_the_skys_directions():
    triangles = floor_and_wall()
    sky = occlusion.look_from(triangles, occlusion.even_directions(), 32)
    lights = lighting.sample(50, torch.Generator().manual_seed(2))
    moved, index = occlusion.snapped(lights, sky)
    assert torch.equal(moved.sun_direction, sky.direction[index])
    angle = torch.rad2deg(torch.acos((moved.sun_direction * lights.sun_direction).sum(-1).clamp(-1, 1)))
    assert angle.max() < 14 and angle.mean() < 8
    assert torch.equal(moved.sun_irradiance, lights.sun_irradiance)


@pytest.mark.parametrize("count", [1, 128])
def test_directions_are_even(count):
    found = occlusion.even_directions(count)
    assert torch.allclose(found.norm(dim=1), torch.ones(count))
    if count > 1:
        assert found.mean(0).abs().max() < 0.02
