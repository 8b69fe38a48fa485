# SPDX-License-Identifier: GPL-3.0-or-later
"""The learnable maps: bounded values, filtered lookups, and images that hold what the lookup gave."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import shapes_for_tests as shapes
import torch

from backend import material
from backend.material import BASE_COLOR, METALLIC, NORMAL, ROUGHNESS

FINEST = 64


def some_points(count=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    position = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1) * 0.9
    return position, torch.rand(count, 2, generator=generator)


def random_maps(spread=0.5, seed=1):
    maps = material.new_maps(FINEST)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return maps


def read(maps, position, uv, footprint, detail=1.0):
    points = SimpleNamespace(position=position, uv=uv, footprint=torch.as_tensor(footprint).expand(len(uv)))
    return material.look_up(maps, points, detail)


def test_a_fresh_map_is_plain_and_flat():
    position, uv = some_points()
    stored = read(material.new_maps(FINEST), position, uv, 1e-4).detach()
    assert stored.shape == (500, 7) and torch.allclose(stored, stored[:1].expand_as(stored), atol=1e-6)
    assert torch.allclose(stored[0, BASE_COLOR], stored[0, 0].expand(3)) and 0.2 < stored[0, 0] < 0.8
    assert torch.allclose(material.tangent_normal(stored[:1]), torch.tensor([[0.0, 0.0, 1.0]]), atol=1e-6)


def test_values_stay_in_range_however_far_the_optimiser_goes():
    raw = torch.linspace(-1e4, 1e4, 2001)[:, None].expand(-1, 7)
    stored = material.stored_values(raw)
    assert stored.min() >= 0 and stored.max() <= 1 and torch.isfinite(stored).all()
    assert (stored[1:] >= stored[:-1]).all() and stored[-1, 0] == 1 and stored[0, METALLIC] == 0
    normal = material.tangent_normal(stored)
    assert normal[:, 2].min() > 0.1, "a normal lies in its surface or below"


def test_normals_are_unit_vectors():
    raw = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 1.5)
    stored = material.stored_values(0.6 * raw)
    normal = material.tangent_normal(stored)
    assert torch.allclose(normal.norm(dim=1), torch.ones(1000), atol=1e-5)
    assert torch.allclose(normal[:, :2], stored[:, NORMAL] * 2 - 1, atol=1e-6)
    maps = material.surface_maps(stored)
    assert torch.equal(maps.normal, normal) and torch.equal(maps.roughness, stored[:, ROUGHNESS])
    # Colours are display values, the shader's are linear.
    assert torch.allclose(maps.base_color, ((stored[:, :3] + 0.055) / 1.055) ** 2.4, atol=2e-3)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_images_hold_what_the_lookup_gives(size):
    mesh, maps = shapes.mesh_of(shapes.sphere(24, 12)), random_maps()
    where = material.texels(mesh, size)
    images, covered = material.bake(maps, where), material.coverage(where)
    assert covered.float().mean() > 0.9
    v, u = torch.nonzero(covered, as_tuple=True)
    uv = torch.stack(((u + 0.5) / size, 1 - (v + 0.5) / size), dim=1)  # row 0 is the top of the image
    # The texel lies where the sphere's own formula puts its uv, but for the flatness of triangles.
    around, rise = 2 * np.pi * uv[:, 0], np.pi * (uv[:, 1] - 0.5)
    round_one = torch.stack(
        (rise.cos() * around.sin(), -rise.cos() * around.cos(), rise.sin()), dim=1)  # fmt: skip
    position = where.position[torch.argsort(where.index)]
    assert (position - round_one).norm(dim=1).max() < 0.15
    stored = read(maps, position, uv, 1 / size).detach()
    for name, part in (("base_color", stored[:, :3]), ("metallic", stored[:, 3:4]), ("roughness", stored[:, 4:5])):
        assert torch.allclose(images[name][covered], part, atol=1e-5), name
        assert not images[name][~covered].any()
    normal = images["normal"][covered] * 2 - 1
    assert torch.allclose(normal.norm(dim=1), torch.ones(len(normal)), atol=0.03)  # the steepest are a little long
    assert torch.allclose(normal, material.tangent_normal(stored), atol=1e-5)


def test_the_top_of_the_image_is_the_top_of_the_uvs():
    maps = material.new_maps(FINEST)
    with torch.no_grad():
        maps.pyramid[-1][0, 0, -FINEST // 4 :] = 2.0  # red where v > 3/4: rows of parameters begin at v = 0
        maps.pyramid[-1][0, 2, :, : FINEST // 4] = 2.0  # blue where u < 1/4
    image = material.bake(maps, material.texels(shapes.mesh_of(shapes.grid()), FINEST))["base_color"]
    assert (image[: FINEST // 4 - 1, :, 0] > 0.9).all() and (image[FINEST // 4 + 1 :, :, 0] < 0.6).all()
    assert (image[:, : FINEST // 4 - 1, 2] > 0.9).all() and (image[:, FINEST // 4 + 1 :, 2] < 0.6).all()


def test_a_wide_pixel_reads_coarse_levels_and_a_narrow_one_all():
    position, uv = some_points()

    def reach(footprint):
        maps = random_maps(0.1)
        read(maps, position, uv, footprint).sum().backward()
        return [float(p.grad.abs().sum()) > 0 for p in maps.pyramid]

    levels = [p.shape[-1] for p in random_maps().pyramid]
    assert levels[-1] == FINEST and len(levels) >= 2
    assert all(reach(0.1 / FINEST))
    assert reach(2.5 / FINEST) == [side < FINEST for side in levels]
    assert not any(reach(1.0))
    # In between it fades and does not jump.
    maps = random_maps()
    with torch.no_grad():
        one = [read(maps, position, uv, f) for f in np.geomspace(0.2 / FINEST, 8 / FINEST, 400)]
        steps = [float((a - b).abs().max()) for a, b in zip(one[1:], one, strict=False)]
    assert max(steps) < 0.1


def test_detail_opens_levels_from_coarse_to_fine():
    position, uv = some_points()
    opened = []
    for detail in (0.0, 0.3, 0.6, 1.0):
        maps = material.new_maps(FINEST)
        read(maps, position, uv, 1e-5, detail).sum().backward()
        opened.append([p.grad is not None and bool(p.grad.any()) for p in maps.parameters()])
    counts = [sum(row) for row in opened]
    assert counts[0] == 1 and counts == sorted(counts) and counts[-1] == len(opened[0])
    assert all(row == sorted(row, reverse=True) for row in opened), "a finer level opens before a coarser one"


def test_most_texels_of_a_large_map_get_a_gradient_from_small_pictures():
    """Filtered lookups: without them 64 px views touch under one in a hundred texels of a 512 map a step."""
    import oracle_for_tests as oracle

    mesh = shapes.mesh_of(shapes.sphere())
    gbuffer = oracle.new_pool(mesh, 64, 1).gbuffer([0, 1, 2, 3])
    maps = material.new_maps(512)
    material.look_up(maps, gbuffer).sum().backward()
    shares = [float((p.grad.abs().sum((0, 1)) > 0).float().mean()) for p in maps.pyramid]
    print([round(share, 2) for share in shares])
    assert max(shares) > 0.5


def test_gradients_through_maps_and_shading_are_finite_differences_in_float64():
    """From the display colours under a world and suns to every level of the maps, at points within the limits."""
    from backend import ggx_tables, lighting
    from backend.evaluate._known import flat_points
    from backend.shading import linear_to_srgb, shade

    generator = torch.Generator().manual_seed(4)
    points = flat_points(60, 5, 60.0, generator)
    position, uv = some_points(60)
    points = replace(points, **{
        name: value.double()
        for name, value in {**points.__dict__, "position": position, "uv": uv}.items() if value.is_floating_point()
    })  # fmt: skip
    points = replace(points, footprint=torch.full((60,), 0.7 / FINEST, dtype=torch.float64))
    maps = random_maps(0.04)
    maps = material.LearnableMaps(
        *(tuple(p.detach().double().requires_grad_(True) for p in part) for part in (maps.volumes, maps.pyramid))
    )
    lights = lighting.sample(5, generator).to("cpu", torch.float64)
    tables = ggx_tables.load().to("cpu", torch.float64)
    weights = torch.randn(60, 3, generator=generator, dtype=torch.float64)

    def total():
        maps_here = material.surface_maps(material.look_up(maps, points))
        return (linear_to_srgb(shade(points, maps_here, lights, tables)) * weights).sum()

    total().backward()
    compared, worst = 0, 0.0
    for parameter in maps.parameters():
        by_channel = parameter.grad.abs().view(material.CHANNELS, -1)
        assert (by_channel.amax(1) > 0).all(), "a map gets no gradient from this level"
        for channel in range(material.CHANNELS):
            place = channel * by_channel.shape[1] + int(by_channel[channel].argmax())
            slope, found = float(parameter.grad.view(-1)[place]), []
            with torch.no_grad():
                for step in (1e-5, 2e-5):  # where a clip or a table's kink lies between, the two differ
                    parameter.view(-1)[place] += step
                    high = float(total())
                    parameter.view(-1)[place] -= 2 * step
                    low = float(total())
                    parameter.view(-1)[place] += step
                    found.append((high - low) / (2 * step))
            if abs(found[0] - found[1]) < 1e-7 * abs(slope):
                compared += 1
                worst = max(worst, abs(found[0] - slope) / abs(slope))
    print(f"{compared} derivatives, the worst off by {worst:.1e}")
    assert compared > 25 and worst < 1e-6


def test_limits_are_reached_and_left_again():
    raw = torch.tensor([[-2.0] * 7, [2.0] * 7, [0.1] * 7], requires_grad=True)
    stored = material.stored_values(raw)
    assert (stored[0, :5] == 0).all() and (stored[1, :5] == 1).all()
    assert torch.allclose(stored[:2, 5:] * 2 - 1, torch.tensor([[-1.0], [1.0]]) * material.TILT_MAX)
    for sign in (1.0, -1.0):  # a descent step goes against the gradient
        (gradient,) = torch.autograd.grad(material.stored_values(raw).sum() * sign, raw)
        held, free = (0, 1) if sign > 0 else (1, 0)
        assert not gradient[held].any() and gradient[free].all() and gradient[2].all()
        slope = torch.full((3, 7), sign)
        moves = material.raw_moves(raw.detach(), 0.1 * slope)
        assert not moves[held].any() and torch.allclose(moves[2], 0.1 * slope[2] / torch.tensor(material.SLOPE))
        # Back from beyond a limit the move begins at the limit itself.
        left = material.stored_values(raw.detach() - moves)[free]
        edge = material.stored_values(raw.detach())[free]
        assert torch.allclose(left, edge - 0.1 * sign, atol=1e-5)


def test_scatter_is_the_transpose_of_reading():
    position, uv = some_points(200)
    footprint = torch.full((200,), 0.1 / FINEST)
    points = SimpleNamespace(position=position, uv=uv, footprint=footprint)
    maps = material.new_maps(FINEST)
    values = torch.randn(200, 7, generator=torch.Generator().manual_seed(1))
    raw = material.raw_values(maps, position, uv, footprint, 0.7)
    wanted = torch.autograd.grad(raw, maps.parameters(), values, allow_unused=True)
    found = material.scatter(maps, points, values, 0.7)
    assert [x is None for x in found] == [x is None for x in wanted] and found[-1] is None
    for one, other in zip(found, wanted, strict=True):
        assert one is None or torch.allclose(one[0], other, atol=1e-5)


def test_a_texels_reach_is_its_share_in_the_points():
    position, uv = some_points(200)
    points = SimpleNamespace(position=position, uv=uv, footprint=torch.full((200,), 0.1 / FINEST))
    maps = material.new_maps(FINEST)
    found = material.scatter(maps, points, torch.zeros(200, 7))
    for parameter, (_, seen) in zip(maps.parameters(), found, strict=True):
        assert seen.shape == (1, 1, *parameter.shape[2:]) and abs(float(seen.sum()) - 200) < 0.01
    assert material.scatter(maps, points, torch.zeros(200, 7), 0.0)[1:] == [None] * (len(maps.parameters()) - 1)
