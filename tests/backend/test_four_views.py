# SPDX-License-Identifier: GPL-3.0-or-later
"""Four views painted together: a known texture comes back where they see it, and only there."""

import json
from dataclasses import replace

import numpy as np
import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch
from PIL import Image
from test_oracle import smooth
from test_texturing import job_in

from addon import protocol
from backend import four_views, ggx_tables, material, object_start, planning, texturing
from backend.diffusion.interface import Prediction
from backend.distillation import Options
from backend.rasterize import Triangles, gather, look
from backend.tiling import tile

TABLES = ggx_tables.load()
SURFACE = torch.tensor([0.5, 0.5, 0.5, 0.05, 0.45, 0.5, 0.5])
SIDE = 64
PATTERN = 1.0, torch.zeros(3)


def coloured(u, v):
    """smooth's colours on one plain surface."""
    values = smooth(u, v)
    return torch.cat((values[..., :3], SURFACE[3:].expand(*u.shape, 4)), dim=-1)


class Tiled(oracle.Oracle):
    """Knows the answer, and paints four views as one picture."""

    sees_geometry = False

    def predict(self, noisy, timestep, scene, guided=True):
        each = super().predict(noisy, timestep, scene).conditional
        asked.append((tuple(noisy.shape), scene.tiles, int(timestep[0])))
        together = tile(each) if scene.tiles else each
        return Prediction(together, -torch.ones_like(together))


asked = []


@pytest.fixture(scope="module")
def mesh():
    return shapes.mesh_of(shapes.torus(24, 12))


def painted_by(model, mesh, options=None):
    generator = torch.Generator().manual_seed(0)
    options = options or Options(grid_steps=2)
    arguments = SURFACE, TABLES, 1.0, options, PATTERN, generator, model.render_size
    work = four_views.paint(model, Triangles.of(mesh), *arguments)
    return oracle.result_of(work)


def test_a_known_texture_comes_back_where_the_views_see_it(mesh):
    known = oracle.image(coloured, SIDE)
    triangles, where = Triangles.of(mesh), material.texels(mesh, SIDE)
    row, column = where.index // SIDE, where.index % SIDE
    wanted = known[:3, SIDE - 1 - row, column].T
    for kind, size in ((Tiled, 256), (oracle.Oracle, 128)):
        asked.clear()
        painted = painted_by(kind(oracle.from_image(known), size), mesh)
        assert painted.pictures.shape == (4, 3, 128, 128)
        if kind is Tiled:
            assert asked[0][:2] == ((1, 3, 256, 256), (0, 1, 2, 3)), "one picture of the model's own size"
        points = four_views.base_color_of(painted, SURFACE, TABLES)
        colors, weight = four_views.project(painted, points, triangles, where)
        seen = weight > 0
        quality = oracle.psnr(colors[seen], wanted[seen])
        print(f"{kind.__name__}: {quality:.1f} dB on {float(seen.float().mean()):.0%} of the texels")
        assert quality > 30 and 0.5 < seen.float().mean() < 0.95
    # From above and from the sides, 20 degrees up: the underside of the tube and the inner wall stay hidden.
    below = where.position[:, 2] < -0.95 * where.position[:, 2].abs().max()
    assert not seen[below].any() and seen[where.position[:, 2] > 0.9 * where.position[:, 2].max()].all()


def test_what_is_hidden_behind_the_object_is_not_painted_through_it(mesh, monkeypatch):
    """Level with it, the far inner wall of the ring faces the front camera, and its front part hides it. A much finer
    picture says what is hidden."""
    monkeypatch.setattr(four_views, "ELEVATION_DEG", 0.0)
    triangles, where = Triangles.of(mesh), material.texels(mesh, SIDE)
    painted = painted_by(oracle.Oracle(oracle.from_image(oracle.image(coloured, SIDE)), 64), mesh)
    colors = (painted.scene.gbuffer.view == 0)[:, None].expand(-1, 3).float()  # white is what the front view sees
    found, weight = four_views.project(painted, colors, triangles, where)
    cameras, size = four_views.cameras_of(), 512
    fine = gather(triangles, cameras[:1], [look(triangles, cameras, 0, size)])
    depth = torch.full((size * size,), torch.inf)
    depth[fine.pixel] = (fine.position - cameras.position[0]).norm(dim=1)
    right, up, back = ((where.position - cameras.position[0]) @ cameras.rotation[0].T).unbind(1)
    column, row = (((side / (-back * cameras.tan_half_fov[0]) + 1) / 2 * size).long() for side in (right, -up))
    away = (where.position - cameras.position[0]).norm(dim=1)
    corners = triangles.positions[where.triangle]
    plane = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    towards = (torch.nn.functional.normalize(plane, dim=1) * (cameras.position[0] - where.position)).sum(1) / away
    hidden = (away > depth[row * size + column] + 0.15) & (towards > 0.3)
    assert hidden.sum() > 30
    wrong = (found[hidden].amax(1) > 0.05) & (weight[hidden] > 0)
    assert wrong.float().mean() < 0.1, "more than what lies within a pixel of the outline"


def known_of(mesh, size=128):
    """(the colours found, how much is known, the colours wanted) of a mesh's texels."""
    stored = oracle.image(coloured, SIDE)
    triangles, where = Triangles.of(mesh), material.texels(mesh, SIDE)
    painted = painted_by(oracle.Oracle(oracle.from_image(stored), size), mesh)
    points = four_views.base_color_of(painted, SURFACE, TABLES)
    row, column = where.index // SIDE, where.index % SIDE
    return *four_views.project(painted, points, triangles, where), stored[:3, SIDE - 1 - row, column].T


def turned_over(arrays):
    """The same surface with its front where its back was."""
    over = {name: part[:, ::-1].copy() if part.ndim > 1 else part for name, part in arrays.items()}
    return shapes.job_arrays(over["positions"], -over["normals"], over["uvs"])


def test_a_sheet_that_shows_its_back_is_painted_there():
    """Blender shades back faces, so pictures show them."""
    for arrays in (turned_over(shapes.grid()), turned_over(shapes.torus(24, 12))):
        found, weight, wanted = known_of(shapes.mesh_of(arrays))
        seen = weight > 0
        quality = oracle.psnr(found[seen], wanted[seen])
        print(f"{quality:.1f} dB on {float(seen.float().mean()):.0%} of the texels")
        assert quality > 30 and seen.float().mean() > 0.5


def test_the_far_side_of_something_thin_does_not_take_the_near_sides_colours():
    """The far side is nearer to the near one than a pixel can tell."""
    up = shapes.moved(shapes.grid(), 1.0, (0, 0, 0.005))
    down = shapes.moved(turned_over(shapes.grid()), 1.0, (0, 0, -0.005))
    for part, offset in ((up, 0.0), (down, 0.5)):
        part["uvs"] = part["uvs"] * np.float32([0.5, 1]) + np.float32([offset, 0])
    mesh = shapes.mesh_of(shapes.together(up, down))
    _, weight, _ = known_of(mesh, 64)
    above = material.texels(mesh, SIDE).position[:, 2] > 0
    assert not (weight[~above] > 0).any() and (weight[above] > 0).float().mean() > 0.8


def test_where_nothing_is_known_the_first_material_stays_and_it_is_said(mesh, tmp_path, monkeypatch):
    where, maps = material.texels(mesh, SIDE), material.new_maps(SIDE)
    four_views.settle(maps, torch.zeros(len(where.index), 3), torch.zeros(len(where.index)), where)
    assert all(not level.any() for level in maps.pyramid)
    monkeypatch.setattr(object_start, "FIT_STEPS", 20)
    model = Tiled(lambda gbuffer: SURFACE.expand(len(gbuffer.uv), 7), 32)
    shelf = type("Shelf", (), {"get": lambda self, name, device: model})()
    request = protocol.TextureRequest(
        prompt="x", texture_size=512, start="four_views", guidance="none", device="cpu", options={"grid_steps": "2"}
    )
    wire = shapes.grid()
    wire["positions"] *= np.float32([1, 0.004, 1])  # so thin that it fills no pixel
    job = job_in(tmp_path / "wire", wire)
    events = list(texturing.run(request, job, shelf, lambda: None))
    told = [event.message for event in events if isinstance(event, protocol.Warning)]
    assert four_views.NOTHING_SEEN in told and four_views.NOTHING_SEEN in json.loads(job.report.read_text())["warnings"]
    color = np.asarray(Image.open(job.path / events[-1].maps["base_color"])).reshape(-1, 3)
    assert color.min() > 60, "painted black"


def test_the_maps_take_the_colours_and_hidden_texels_their_neighbours(mesh):
    where = material.texels(mesh, SIDE)
    maps = material.new_maps(SIDE)
    with torch.no_grad():
        maps.volumes[1].uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(0))
    row, column = where.index // SIDE, where.index % SIDE
    colors = oracle.image(coloured, SIDE)[:3, SIDE - 1 - row, column].T
    weight = torch.ones(len(colors))
    weight[where.position[:, 2] < -0.2] = 0.0
    wrong = torch.where(weight[:, None] > 0, colors, torch.tensor([1.0, 0.0, 1.0]))
    four_views.settle(maps, wrong, weight, where)
    baked = material.bake(maps, where)["base_color"].view(-1, 3)[where.index]
    known = (weight > 0) & ~where.border
    assert (baked - colors)[known].abs().max() < 0.02
    magenta = (baked - torch.tensor([1.0, 0.0, 1.0])).abs().sum(1) < 0.4
    assert not magenta.any()


def test_where_the_pictures_begin(mesh):
    model = Tiled(oracle.from_image(oracle.image(coloured, 32)), 64)
    scene = painted_by(model, mesh).scene
    model.background = None
    grey = four_views._begin(model, scene, SURFACE, TABLES, "render")
    blob = four_views._begin(model, scene, SURFACE, TABLES, "blob")
    assert grey.shape == blob.shape == (4, 3, 32, 32)
    assert grey[:, :, 0, 0].min() == 1 and blob[:, :, 0, 0].min() > 0.9, "white behind"
    covered = scene.gbuffer.coverage == 1
    assert grey.permute(0, 2, 3, 1)[covered].std() < 0.1, "under an even world a grey object is grey"
    assert blob[0, :, 16, 16].max() < 0.1 and (blob[0] == blob[2]).all()
    asked.clear()
    model.background = 0.5
    painted_by(model, mesh, Options(grid_steps=3, grid_strength=0.5))
    assert [time for *_, time in asked] == [499, 259, 19]
    model.background = 1.0
    whole, same, less = (
        painted_by(model, mesh, Options(grid_steps=3, guidance_scale_end=end)).pictures for end in (None, 1, 0.5)
    )
    assert torch.equal(whole, same) and not torch.allclose(whole, less, atol=0.05)


def test_as_the_fast_method_and_as_a_warm_start(tmp_path, monkeypatch):
    monkeypatch.setattr(object_start, "FIT_STEPS", 20)
    known = oracle.from_image(oracle.image(coloured, SIDE))
    shelf = type("Shelf", (), {"get": lambda self, name, device: Tiled(known, 32)})()
    request = protocol.TextureRequest(
        prompt="x", texture_size=512, start="four_views", guidance="none", device="cpu", options={"grid_steps": "2"}
    )
    job = job_in(tmp_path / "fast")
    events = list(texturing.run(request, job, shelf, lambda: None))
    assert isinstance(events[-1], protocol.Done) and events[0].total_steps == 0
    stages = [event.stage for event in events if isinstance(event, protocol.Progress)]
    assert "Painting four views" in stages and all(
        event.fraction <= 1 for event in events if isinstance(event, protocol.Progress)
    )
    asked.clear()
    smaller = job_in(tmp_path / "smaller")
    list(texturing.run(replace(request, render_size=24), smaller, shelf, lambda: None))
    assert {shape for shape, tiles, _ in asked if tiles} == {(1, 3, 24, 24)}, "who has little memory asked for less"
    warm = replace(request, guidance="clamped", steps=2, views=2)
    plan = planning.make_plan(warm, Tiled(known, 32))
    assert plan.options.highest == (0.5, 0.5) and plan.all_detail_at == 0 and plan.steps == 2
    with pytest.raises(protocol.ProtocolError, match="or none with the start four_views or latent_paint"):
        next(texturing.run(replace(request, start="uniform"), job, shelf, lambda: None))
