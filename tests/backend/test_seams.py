# SPDX-License-Identifier: GPL-3.0-or-later
"""UV seams: found where they are, read by bilinear lookups, and closed without touching what differs on purpose."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend import material, seams
from backend.evaluate import _shapes as shapes

SIZE = 96


def noisy_maps(spread=0.03):
    maps = material.new_maps(64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return maps


def stacked(images):
    return torch.cat((images["base_color"], images["metallic"], images["roughness"], images["normal"][..., :2]), dim=2)


@pytest.mark.parametrize("name", ["sphere", "torus", "box"])
def test_both_sides_of_a_cut_show_the_same(name, monkeypatch):
    mesh, maps = shapes.SHAPES[name](), noisy_maps()
    where = material.texels(mesh, SIZE)
    closed = stacked(material.bake(maps, where))
    monkeypatch.setattr(seams, "stitch", lambda cuts, index, values, border, size: values)
    left = stacked(material.bake(maps, where))
    before, after = (seams.jumps(where.cuts, image).abs().mean(0) for image in (left, closed))
    print([round(x, 4) for x in before.tolist()], [round(x, 4) for x in after.tolist()])
    assert before[:5].min() > 0.01 and (after < 0.1 * before + 1e-4).all()
    # Inside the islands nothing changes.
    near = torch.zeros(SIZE * SIZE, dtype=torch.bool)
    for uv in (where.cuts.uv_a, where.cuts.uv_b):
        near[seams.bilinear(uv, SIZE)[0].flatten()] = True
    assert torch.equal(closed.view(-1, 7)[~near], left.view(-1, 7)[~near])
    assert not torch.equal(closed.view(-1, 7)[near], left.view(-1, 7)[near])


def test_the_two_sides_of_a_cut_are_one_place():
    mesh = shapes.torus(24, 12)
    cuts = seams.find(mesh, SIZE)
    places = []
    for uv in (cuts.uv_a, cuts.uv_b):
        flat, towards = mesh.uvs.reshape(-1, 2), uv.numpy()
        nearest = np.linalg.norm(flat[None] - towards[:, None], axis=2).argmin(1)
        places.append(mesh.positions.reshape(-1, 3)[nearest])
    assert len(cuts.uv_a) > 100 and (cuts.uv_a - cuts.uv_b).norm(dim=1).min() > 0.1
    assert np.median(np.linalg.norm(places[0] - places[1], axis=1)) < 1e-6
    assert np.linalg.norm(places[0] - places[1], axis=1).max() < 0.3  # the nearer corner is not the same one for all


def test_normals_are_compared_in_one_frame():
    """A cut between islands turned by a quarter: what points along u on one side points along v on the other."""
    square = np.float32([[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]]) * 0.5
    uv = np.float32([[[0.1, 0.1], [0.4, 0.1], [0.4, 0.4]], [[0.6, 0.1], [0.9, 0.4], [0.6, 0.4]]])
    turned = uv.copy()
    turned[1] = np.stack((1.0 - uv[1, :, 1], uv[1, :, 0] - 0.5), axis=1)
    from backend.frames import mikktspace_tangents

    normals = np.broadcast_to(np.float32([0, 0, 1]), (2, 3, 3)).copy()
    box = shapes.box()
    mesh = replace(
        box, positions=square, normals=normals, uvs=turned, tangents=mikktspace_tangents(square, normals, turned),
        material_slot=np.zeros(2, np.int32), face_mask=np.ones(2, bool),
    )  # fmt: skip
    cuts = seams.find(mesh, SIZE)
    assert len(cuts.uv_a) and cuts.smooth.all()
    lean = torch.zeros(SIZE, SIZE, 7) + 0.5
    world = torch.tensor([0.3, 0.1])  # the same lean in space on both sides
    tangent = torch.from_numpy(mesh.tangents)
    for face in (0, 1):
        t, sign = tangent[face, 0, :2], tangent[face, 0, 3]
        b = sign * torch.stack((-t[1], t[0]))
        columns = slice(0, SIZE // 2) if mesh.uvs[face, :, 0].mean() < 0.5 else slice(SIZE // 2, SIZE)
        lean[:, columns, 5], lean[:, columns, 6] = 0.5 + 0.5 * (world @ t), 0.5 + 0.5 * (world @ b)
    assert not torch.allclose(lean[:, 0, 5], lean[:, -1, 5])
    assert seams.jumps(cuts, lean).abs().max() < 1e-5


def test_a_step_of_the_material_stays():
    mesh = shapes.torus(24, 12)
    where = material.texels(mesh, SIZE)
    values = torch.full((len(where.index), 7), 0.5)
    u = (where.index % SIZE + 0.5) / SIZE
    values[:, 0] = torch.where(u < 0.5, 0.1, 0.9)  # meets at the cut u = 0 = 1: another material, not noise
    fitted = seams.stitch(where.cuts, where.index, values, where.border, SIZE)
    v = 1 - (where.index // SIZE + 0.5) / SIZE
    across = (v > 0.1) & (v < 0.9)  # the other cut runs along u and is alike on both sides
    assert (fitted - values)[across].abs().max() < 0.02


def test_texels_beside_an_island_are_those_that_lookups_on_its_border_read():
    mesh = shapes.box()
    where = material.texels(mesh, 256)
    covered = material.coverage(where).flatten()
    read, weight = seams.bilinear(where.cuts.border_uv, 256)
    assert covered[read[weight > 0]].all()
    assert len(torch.unique(where.index)) == len(where.index)
    # Every island of one texel has its texel: 32 squares of the box's top.
    tiny = mesh.uvs[np.ptp(mesh.uvs[..., 0], axis=1) < 1.5 / 256].mean(1)
    assert len(tiny) >= 64
    texel = (tiny * 256).astype(int)
    assert covered.view(256, 256)[255 - texel[:, 1], texel[:, 0]].all()
    assert float((where.position - 0).norm(dim=1).max()) < math.sqrt(3)
