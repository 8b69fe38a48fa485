# SPDX-License-Identifier: GPL-3.0-or-later
"""The rasteriser against rays cast at every triangle in float64."""

import importlib.util
import sys
import time

import numpy as np
import pytest
import shapes_for_tests as shapes
import torch

from backend import cameras, rasterize, rasterizers
from backend.rasterize import Triangles

SIZE = 48
RASTERIZERS = ["torch", "embree"] if importlib.util.find_spec("embreex") else ["torch"]
SHAPES = {
    "sphere": lambda: shapes.sphere(18, 9),
    "torus": lambda: shapes.torus(20, 10),
    "slivers": lambda: shapes.fan(200),
    "crowd": lambda: shapes.together(
        shapes.moved(shapes.torus(14, 7), 0.6, (0.1, -0.3, 0.1)),
        shapes.moved(shapes.sphere(10, 5), 0.5, (-0.2, 0.3, -0.1)),
        shapes.moved(shapes.fan(60), 0.5, (0.3, 0.2, 0.2)),
    ),
}


def views(count=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    full = cameras.sample_full(count, generator)
    points = 0.6 * torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=1)
    close = cameras.sample_close(2, points, points, generator)
    return cameras.Cameras(*(torch.cat(p) for p in zip(full.__dict__.values(), close.__dict__.values(), strict=True)))


def rays(made, index, size, x, y):
    """Origin (3,) and directions (N, 3) through the picture's points x, y in pixels, float64."""
    right, up, backward = made.rotation[index].double().numpy()
    tan = float(made.tan_half_fov[index])
    across, upward = (2 * x / size - 1) * tan, (1 - 2 * y / size) * tan
    return made.position[index].double().numpy(), across[:, None] * right + upward[:, None] * up - backward


def centres(size):
    y, x = np.mgrid[:size, :size] + 0.5
    return x.ravel(), y.ravel()


def cast(positions, origin, towards, slack=1e-3):
    """Every ray at every triangle: nearest triangle (N,) or -1, its barycentrics (N, 3), distance (N,), and whether
    some triangle as near as that is met within `slack` (in barycentrics) of one of its edges."""
    least, distance, bary = meetings(positions, origin, towards)
    met = np.where(least >= 0, distance, np.inf)
    winner = met.argmin(1)
    row = np.arange(len(towards))
    nearest = met[row, winner]
    unsure = ((np.abs(least) < slack) & (distance <= nearest[:, None] + 1e-6)).any(1)
    hit = np.isfinite(nearest)
    found = np.stack([part[row, winner] for part in bary], axis=1)
    return np.where(hit, winner, -1), found, nearest, unsure


def meetings(positions, origin, towards):
    """Of every ray with the plane of every triangle, (N, F) each: least barycentric (-9: never), distance (inf: behind
    or never) and the three barycentrics."""
    a, b, c = (positions[:, i].astype(np.float64) for i in range(3))
    normal = np.cross(b - a, c - a)
    volume = towards @ normal.T
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.einsum("fj,fj->f", a - origin, normal) / volume
        bary = [
            np.einsum("nj,fj->nf", towards, np.cross(p - origin, q - origin)) / volume
            for p, q in ((b, c), (c, a), (a, b))
        ]
    least = np.nan_to_num(np.minimum(np.minimum(*bary[:2]), bary[2]), nan=-9.0, neginf=-9.0, posinf=-9.0)
    return least, np.where(distance > 0, distance, np.inf), bary


def picture_of(made, index, triangles, size=SIZE, rasterizer=None):
    seen = rasterize.look(triangles, made, index, size, rasterizer)
    identity = np.full(size * size, -1)
    identity[seen.pixel.numpy()] = seen.triangle.numpy()
    bary = np.zeros((size * size, 3))
    bary[seen.pixel.numpy()] = seen.barycentrics.numpy()
    return seen, identity, bary


def with_degenerate(arrays):
    """The same surface with triangles without area among its own: points, lines and copies of edges."""
    extra = {name: array[:60].copy() for name, array in arrays.items()}
    extra["positions"][:20] = extra["positions"][:20, :1]
    extra["positions"][20:40, 2] = extra["positions"][20:40, 1]
    extra["positions"][40:, 2] = (extra["positions"][40:, 0] + extra["positions"][40:, 1]) / 2
    return shapes.together(extra, arrays)


AWKWARD = {**SHAPES, "degenerate": lambda: with_degenerate(shapes.torus(20, 10)), "thin": lambda: shapes.fan(3000)}


@pytest.mark.parametrize("rasterizer", RASTERIZERS)
def test_nearly_all_pixels_show_what_a_ray_meets(rasterizer):
    """At least 0.9999 of the pixels of all shapes, those on shared edges too: one of the neighbours, never a hole.

    A pixel is right when its triangle is the nearest that its ray meets, to a rounding of 1e-5 of the picture's width
    at the edges; at the outline nothing is right as well.
    """
    made = views(4)
    right = total = on_edges = 0
    for name, make in AWKWARD.items():
        arrays = make()
        triangles = Triangles.of(shapes.mesh_of(arrays))
        chosen = rasterizers.pick(triangles.positions, rasterizer)
        for index in range(len(made)):
            positions, tan = arrays["positions"], float(made.tan_half_fov[index])
            identity = chosen(made, index, (SIZE,))[0][0].numpy()
            origin, towards = rays(made, index, SIZE, *centres(SIZE))
            least, distance, _ = meetings(positions, origin, towards)
            # Rounding moves an edge by a length: in barycentrics that is more the thinner the triangle is.
            high = heights(positions, origin)
            slack = 1e-5 * 2 * tan * np.linalg.norm(made.position[index].numpy()) / np.maximum(high, 1e-9)
            surely, maybe = (least > slack) & (high > 1e-9), (least > -slack) & (high > 1e-9)
            first = np.where(surely, distance, np.inf).min(1)
            behind = np.where(maybe, distance, np.inf) > first[:, None] * (1 + 1e-5)
            allowed = maybe & ~behind
            row = np.arange(len(towards))
            good = np.where(identity >= 0, allowed[row, identity.clip(0)], ~surely.any(1))
            counted = maybe.any(1) | (identity >= 0)
            right, total = right + int(good[counted].sum()), total + int(counted.sum())
            on_edges += int((counted & (allowed.sum(1) > 1)).sum())
        print(f"{rasterizer}, up to {name}: {right} of {total} pixels right, {on_edges} on edges")
    assert total > 25_000 and on_edges > 50
    assert right >= 0.9999 * total


def heights(positions, origin):
    """(F,) least height of each triangle as seen from `origin`: what its narrowest side covers there."""
    corners = positions.astype(np.float64)
    sides = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=2).max(1)
    towards = corners.mean(1) - origin
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.abs(np.einsum("fj,fj->f", normal, towards))
    return area / np.maximum(sides, 1e-12)


def test_edges_through_pixel_centres_leave_no_hole():
    """A sheet whose every edge runs through centres, in both directions and across."""
    arrays = shapes.grid(quads=8, half=0.5)
    triangles = Triangles.of(shapes.mesh_of(arrays))
    one = torch.ones(1)
    made = cameras.look_at(0 * one, 90 * one, 2 * one, 0.25 * 17 / 16 * one)  # 17 pixels wide, 2 a quad
    for name in RASTERIZERS:
        triangle, bary = rasterizers.pick(triangles.positions, name)(made, 0, (17,))[0]
        assert (triangle.view(17, 17)[1:-1, 1:-1] >= 0).all(), name
        assert torch.allclose(bary.sum(1)[triangle >= 0], torch.ones(())), name


@pytest.mark.parametrize("rasterizer", RASTERIZERS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_pixel_is_what_a_ray_meets(name, rasterizer):
    arrays = SHAPES[name]()
    triangles, made = Triangles.of(shapes.mesh_of(arrays)), views()
    chosen = rasterizers.pick(triangles.positions, rasterizer)
    compared = wrong = far_off = worst = edge_pixels = coverage_wrong = 0
    for index in range(len(made)):
        seen, identity, bary = picture_of(made, index, triangles, rasterizer=chosen)
        wanted, wanted_bary, _, unsure = cast(arrays["positions"], *rays(made, index, SIZE, *centres(SIZE)))
        sure = ~unsure & (wanted >= 0)
        compared += sure.sum()
        wrong += (identity != wanted)[sure].sum()
        same = sure & (identity == wanted)
        off = np.abs(bary - wanted_bary)[same].max(1)
        far_off += (off > 1e-3).sum()
        worst = max(worst, off.max())
        # A pixel whose centre meets nothing may be claimed by one of its quarters only.
        fine, _, _, fine_unsure = cast(arrays["positions"], *rays(made, index, 2 * SIZE, *centres(2 * SIZE)))
        quarters = lambda a: a.reshape(SIZE, 2, SIZE, 2).transpose(0, 2, 1, 3).reshape(-1, 4)  # noqa: E731
        fine, fine_sure = quarters(fine), ~quarters(fine_unsure).any(1) & ~unsure
        claimed = (wanted < 0) & fine_sure & (identity >= 0)
        edge_pixels += claimed.sum()
        assert (fine[claimed] == identity[claimed, None]).any(1).all()
        assert ((fine >= 0).any(1) == (identity >= 0))[(wanted < 0) & fine_sure].all(), "an edge pixel is left out"
        expected = (fine >= 0).mean(1)
        expected[(expected == 0) & (wanted >= 0)] = 0.25
        coverage_wrong += (np.abs(seen.coverage.numpy().ravel() - expected) > 1e-6)[fine_sure].sum()
    print(f"{name}: {compared} pixels, {wrong} wrong triangles, {edge_pixels} at the outline")
    print(f"{name}: {far_off} wrong places, the worst by {worst:.1e}")
    assert compared > 2500 and edge_pixels > 20
    assert wrong <= 1e-4 * compared
    assert far_off <= 5e-4 * compared and worst < 0.02  # of triangles seen all but edge on
    assert coverage_wrong <= 2


@pytest.mark.parametrize("name", ["sphere", "torus"])
def test_coverage_is_the_share_of_the_pixel(name):
    """Four samples a pixel against 64: at most a quarter off anywhere, right on average."""
    arrays = SHAPES[name]()
    triangles, made = Triangles.of(shapes.mesh_of(arrays)), views(6)
    error = []
    for index in (0, 1, 2, 6):
        seen, _, _ = picture_of(made, index, triangles, 16)
        fine = cast(arrays["positions"], *rays(made, index, 16 * 8, *centres(16 * 8)))[0] >= 0
        share = fine.reshape(16, 8, 16, 8).mean((1, 3))
        coverage = seen.coverage.numpy()
        assert coverage.min() >= 0 and coverage.max() <= 1
        off = coverage - share
        edge = (share > 0) & (share < 1)
        error.append(off[edge])
        assert np.abs(off).max() <= 0.5
        assert (coverage[share == 1] == 1).all() and (coverage[share == 0] == 0).all()
    error = np.concatenate(error)
    print(f"{name}: mean {error.mean():+.3f}, mean absolute {np.abs(error).mean():.3f} over {error.size} edge pixels")
    assert np.abs(error).mean() < 0.15 and abs(error.mean()) < 0.04


@pytest.mark.parametrize("name", ["sphere", "torus"])
def test_what_a_pixel_shows_of_the_surface(name):
    """Position, uv, footprint and frames of the points of the G-buffer, with the footprint by finite differences."""
    arrays = SHAPES[name]()
    triangles, made = Triangles.of(shapes.mesh_of(arrays)), views()
    picks = [0, 4, 2]
    chosen = made[torch.tensor(picks)]
    pictures = [rasterize.look(triangles, chosen, i, SIZE) for i in range(3)]
    gbuffer = rasterize.gather(triangles, chosen, pictures)
    faces = torch.cat([p.triangle for p in pictures]).numpy()
    uv_of, corners = arrays["uvs"].astype(float)[faces], arrays["positions"].astype(float)[faces]
    view, pixel = gbuffer.view.numpy(), gbuffer.pixel.numpy() % SIZE**2
    assert (gbuffer.pixel.numpy() // SIZE**2 == view).all()

    def on_plane(dx, dy):
        """uv (N, 2) and position (N, 3) where the ray through the shifted pixel meets the point's own plane."""
        bary = np.zeros((len(view), 3))
        place = np.zeros((len(view), 3))
        for i in range(3):
            mine = view == i
            x, y = pixel[mine] % SIZE + 0.5 + dx, pixel[mine] // SIZE + 0.5 + dy
            origin, towards = rays(chosen, i, SIZE, x, y)
            a, b, c = corners[mine].transpose(1, 0, 2)
            normal = np.cross(b - a, c - a)
            along = np.einsum("nj,nj->n", a - origin, normal) / np.einsum("nj,nj->n", towards, normal)
            place[mine] = origin + along[:, None] * towards
            area = np.einsum("nj,nj->n", normal, normal)
            sides = [np.cross(q - p, place[mine] - p) for p, q in ((b, c), (c, a), (a, b))]
            bary[mine] = np.stack([np.einsum("nj,nj->n", s, normal) / area for s in sides], axis=1)
        return np.einsum("nk,nkc->nc", bary, uv_of), place, bary

    uv, place, bary = on_plane(0, 0)
    centre = bary.min(1) > 1e-3  # the pixel's centre lies on the triangle; the outline's others are left out
    assert centre.mean() > 0.8
    assert np.abs(gbuffer.position.numpy() - place)[centre].max() < 1e-3
    assert np.abs(gbuffer.uv.numpy() - uv)[centre].max() < 1e-3
    step = 1e-3
    along_x = (on_plane(step, 0)[0] - on_plane(-step, 0)[0]) / (2 * step)
    along_y = (on_plane(0, step)[0] - on_plane(0, -step)[0]) / (2 * step)
    longer = np.linalg.svd(np.stack((along_x, along_y), axis=-1), compute_uv=False)[:, 0]
    relative = np.abs(gbuffer.footprint.numpy() / longer - 1)[centre]
    print(f"{name}: footprint off by {np.median(relative):.1e}, worst {relative.max():.1e}")
    assert np.quantile(relative, 0.99) < 1e-3 and relative.max() < 0.03

    towards = made.position[torch.tensor(picks)].double().numpy()[view] - gbuffer.position.numpy()
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    assert np.abs(gbuffer.to_camera.numpy() - towards).max() < 1e-5
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.abs(gbuffer.geometric_normal.numpy() - flat)[centre].max() < 1e-3  # closed surfaces show their front
    smooth = np.einsum("nk,nkc->nc", bary, arrays["normals"].astype(float)[faces])
    assert np.abs(gbuffer.normal.numpy() - smooth)[centre].max() < 2e-3


def test_the_back_of_a_sheet_has_its_frame_turned_round():
    arrays = shapes.grid()
    triangles = Triangles.of(shapes.mesh_of(arrays))
    angle = torch.tensor([10.0, 10.0])
    made = cameras.look_at(angle, torch.tensor([60.0, -60.0]), torch.full((2,), 3.0), torch.full((2,), 0.4))
    front, back = (rasterize.gather(triangles, made[i : i + 1], [rasterize.look(triangles, made, i, 32)])
                   for i in range(2))  # fmt: skip
    for gbuffer, side in ((front, 1.0), (back, -1.0)):
        up = torch.tensor([0.0, 0.0, side])
        assert gbuffer.pixel.numel() > 200
        assert torch.allclose(gbuffer.normal, up.expand_as(gbuffer.normal), atol=1e-5)
        assert torch.allclose(gbuffer.geometric_normal, up.expand_as(gbuffer.normal), atol=1e-5)
        assert (gbuffer.to_camera @ up > 0).all()
        # The bitangent stays along +v on both sides: sign (N x T) with N turned round and the sign too.
        bitangent = gbuffer.tangent[:, 3:] * torch.linalg.cross(gbuffer.normal, gbuffer.tangent[:, :3])
        along_v = torch.tensor([0.0, 1.0, 0.0])
        assert torch.allclose(bitangent, along_v.expand_as(bitangent), atol=1e-5)
        assert torch.allclose(gbuffer.position[:, :2], 0.7 * (2 * gbuffer.uv - 1), atol=1e-5)


def test_a_picture_is_put_over_its_background_by_coverage():
    triangles = Triangles.of(shapes.mesh_of(shapes.sphere()))
    made = views()[torch.tensor([0, 2])]
    gbuffer = rasterize.gather(triangles, made, [rasterize.look(triangles, made, i, 32) for i in range(2)])
    background = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    values = torch.rand(gbuffer.pixel.numel(), 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    picture = gbuffer.picture(values, background)
    share = gbuffer.coverage.flatten()[gbuffer.pixel][:, None]
    expected = background.reshape(-1, 3).clone()
    expected[gbuffer.pixel] = share * values.detach() + (1 - share) * expected[gbuffer.pixel]
    assert torch.allclose(picture.detach().reshape(-1, 3), expected, atol=1e-6)
    picture.sum().backward()
    assert torch.allclose(values.grad, share.expand_as(values))
    assert torch.equal(gbuffer.coverage.flatten() > 0, expected.new_zeros(2048).index_fill(0, gbuffer.pixel, 1) > 0)


def test_points_can_be_selected():
    triangles = Triangles.of(shapes.mesh_of(shapes.sphere()))
    made = views()[:1]
    gbuffer = rasterize.gather(triangles, made, [rasterize.look(triangles, made, 0, 32)])
    keep = gbuffer.position[:, 2] > 0
    some = rasterize.select(gbuffer, keep)
    assert 0 < some.pixel.numel() == int(keep.sum()) < gbuffer.pixel.numel()
    assert (some.position[:, 2] > 0).all() and torch.equal(some.uv, gbuffer.uv[keep])
    assert some.coverage is gbuffer.coverage


@pytest.mark.parametrize("size", [16, 61, 128])
def test_each_texel_is_covered_once_and_lies_where_its_uv_says(size):
    arrays = shapes.grid(quads=7)
    arrays["uvs"] = np.float32(0.1 + 0.8 * arrays["uvs"])
    index, position, triangle = rasterize.texels_of(Triangles.of(shapes.mesh_of(arrays)), size)
    assert len(torch.unique(index)) == len(index)
    centre = (np.arange(size) + 0.5) / size
    inside = (centre > 0.1) & (centre < 0.9)
    assert sorted(index.tolist()) == np.flatnonzero(np.outer(inside, inside)).tolist()
    row, column = index // size, index % size
    u, v = (column + 0.5) / size, 1 - (row + 0.5) / size  # row 0 is the top of the image
    wanted = torch.stack((1.4 * (u - 0.1) / 0.8 - 0.7, 1.4 * (v - 0.1) / 0.8 - 0.7, torch.zeros_like(u)), dim=1)
    assert torch.allclose(position, wanted, atol=1e-4)
    uvs = torch.from_numpy(arrays["uvs"])[triangle]
    low, high = uvs.amin(1), uvs.amax(1)
    there = torch.stack((u, v), dim=1)
    assert ((there > low - 1e-4) & (there < high + 1e-4)).all()


def test_where_uvs_overlap_the_lowest_triangle_has_the_texel():
    once = shapes.grid(quads=3)
    twice = shapes.together(once, shapes.moved(once, 0.5, (0.0, 0.0, 0.3)))
    index, position, triangle = rasterize.texels_of(Triangles.of(shapes.mesh_of(twice)), 40)
    assert len(index) == 1600 and len(torch.unique(index)) == 1600
    assert int(triangle.max()) < len(once["uvs"]) and position[:, 2].abs().max() < 1e-6


def test_nothing_in_the_picture_is_an_empty_picture():
    far = shapes.moved(shapes.sphere(8, 4), 0.05, (0.0, 0.0, 0.9))
    triangles = Triangles.of(shapes.mesh_of(far))
    one = torch.ones(1)
    made = cameras.look_at(0 * one, 0 * one, 3 * one, 0.1 * one)
    seen = rasterize.look(triangles, made, 0, 32)
    assert seen.pixel.numel() == 0 and not seen.coverage.any()
    gbuffer = rasterize.gather(triangles, made, [seen])
    background = torch.rand(1, 32, 32, 3)
    assert torch.equal(gbuffer.picture(torch.zeros(0, 3), background), background)


def test_a_long_mesh_is_rasterised_in_bounded_time():
    """300 000 triangles, and 20 000 slivers that all cross the whole picture."""
    many = Triangles.of(shapes.mesh_of(shapes.torus(612, 246)))
    assert many.positions.shape[0] > 300_000
    made = views()
    start = time.process_time()
    seen = rasterize.look(many, made, 0, 64)
    seconds = time.process_time() - start
    slivers = Triangles.of(shapes.mesh_of(shapes.fan(20_000)))
    start = time.process_time()
    crossed = rasterize.look(slivers, made, 0, 256)
    print(f"{many.positions.shape[0]} triangles {seconds:.2f} s, slivers {time.process_time() - start:.2f} s")
    assert seen.pixel.numel() > 300 and crossed.pixel.numel() > 3000
    assert seconds < 4 and time.process_time() - start < 4


def test_the_same_picture_every_time():
    triangles, made = Triangles.of(shapes.mesh_of(SHAPES["crowd"]())), views()
    one, two = (rasterize.look(triangles, made, 1, 64) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.__dict__.values(), two.__dict__.values(), strict=True))


def test_a_picture_takes_eight_bytes_a_pixel_and_keeps_what_it_shows():
    generator = torch.Generator().manual_seed(0)
    triangle = torch.randint(-1, 20_000_000, (4000,), generator=generator)
    triangle[:3] = torch.tensor([0, -1, 19_999_999])
    bary = torch.rand(4000, 3, generator=generator) ** 4
    bary = bary / bary.sum(1, keepdim=True)
    bary[0] = torch.tensor([0.0, 1.0, 0.0])
    bary[4] = torch.tensor([0.5, 0.5, 0.0])  # both halves are rounded up
    coverage = torch.randint(1, 5, (4000,), generator=generator) / 4
    seen = rasterize.Visibility(rasterize.pack(triangle, bary, coverage).view(40, 100))
    assert seen.packed.element_size() * seen.packed.nelement() == 8 * 4000
    there = triangle >= 0
    assert seen.points == int(there.sum()) and torch.equal(seen.pixel, torch.nonzero(there)[:, 0])
    assert torch.equal(seen.triangle, triangle[there])
    assert (seen.barycentrics - bary[there]).abs().max() < 2 / 65535
    assert seen.barycentrics.min() >= 0 and torch.allclose(seen.barycentrics.sum(1), torch.ones(()))
    assert torch.equal(seen.coverage.flatten(), torch.where(there, coverage, 0.0))


def test_rasterisers_that_cannot_be_used_say_so(monkeypatch):
    positions = torch.from_numpy(shapes.sphere(8, 4)["positions"])
    with pytest.raises(rasterizers.RasterizerError, match="There is no rasteriser 'gpu'; there are auto, torch"):
        rasterizers.pick(positions, "gpu")
    with pytest.raises(rasterizers.RasterizerError, match="nvdiffrast works on CUDA alone"):
        rasterizers.pick(positions, "nvdiffrast")
    monkeypatch.setitem(sys.modules, "embreex", None)
    monkeypatch.setitem(sys.modules, "embreex.mesh_construction", None)
    with pytest.raises(rasterizers.RasterizerError, match="pip install embreex"):
        rasterizers.pick(positions, "embree")
    triangle, _ = rasterizers.pick(positions)(views(), 0, (16,))[0]
    assert (triangle >= 0).any()  # without Embree the portable one


def test_clip_coordinates_are_what_opengl_takes():
    """What nvdiffrast is given: the same x and y as the portable one's, y upwards, depth growing with distance."""
    made = views()
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    clip = rasterizers.clip_positions(points, made, 1)
    local = (points - made.position[1]) @ made.rotation[1].T
    assert torch.allclose(clip[:, 0] / clip[:, 3], local[:, 0] / -local[:, 2] / made.tan_half_fov[1], atol=1e-5)
    assert torch.allclose(clip[:, 1] / clip[:, 3], local[:, 1] / -local[:, 2] / made.tan_half_fov[1], atol=1e-5)
    depth = clip[:, 2] / clip[:, 3]
    assert depth.min() > -1 and depth.max() < 1
    assert torch.equal(depth.argsort(), clip[:, 3].argsort())
