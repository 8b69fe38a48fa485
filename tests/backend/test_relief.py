# SPDX-License-Identifier: GPL-3.0-or-later
"""Normal maps that belong to a surface stay, and what goes round in circles is taken out of the others."""

from dataclasses import replace

import oracle_for_tests as oracle
import shapes_for_tests as shapes
import torch
from test_extra_maps import in_two_islands, normal_map
from test_texturing import RED, REQUEST, Shelf, job_in, run

from backend import material, relief
from backend.evaluate import _known as known
from backend.evaluate._shapes import SHAPES
from backend.maps import read_map
from backend.mesh import load_job_mesh

SIZE = 256


def scene(whirl: float = 0.0):
    """A mesh of two UV islands, its texels, their values (K, 7) with a known relief, and the same with a whirl of so
    much slope added, which is no relief's."""
    mesh = in_two_islands()
    image, where, _ = normal_map(mesh, SIZE)
    values = torch.full((len(where.index), 7), 0.4)
    vectors = image.view(-1, 3)[where.index] * 2 - 1
    values[:, material.NORMAL] = vectors[:, :2] * 0.5 + 0.5
    x, y = where.position[:, 0], where.position[:, 1]
    tangents = torch.from_numpy(mesh.tangents)[where.triangle].mean(1)
    tangent = tangents[:, :2]
    bitangent = tangents[:, 3:] * torch.stack((-tangent[:, 1], tangent[:, 0]), dim=1)
    around = whirl * torch.stack((-torch.cos(11 * y), torch.cos(13 * x)), dim=1)
    around = torch.stack(((around * tangent).sum(1), (around * bitangent).sum(1)), dim=1)
    lean = vectors[:, :2] / vectors[:, 2:] + around
    unit = torch.nn.functional.normalize(torch.cat((lean, torch.ones(len(lean), 1)), dim=1), dim=1)
    spoilt = values.clone()
    spoilt[:, material.NORMAL] = unit[:, :2] * 0.5 + 0.5
    return mesh, where, values, spoilt


def share(mesh, where, values):
    return relief.curl_share(mesh, where, material.split_maps(values, where)["normal"])


def test_a_relief_stays_as_it_is():
    mesh, where, values, _ = scene()
    after = relief.without_curl(mesh, where, values, SIZE)
    assert share(mesh, where, values) < 0.03
    assert (after - values).abs().mean() < 1 / 255 and torch.equal(after[:, :5], values[:, :5])


def test_what_no_surface_has_is_taken_out_and_the_relief_stays():
    mesh, where, values, spoilt = scene(0.15)
    after = relief.without_curl(mesh, where, spoilt, SIZE)
    before = [share(mesh, where, spoilt), (spoilt - values).abs().mean()]
    left = [share(mesh, where, after), (after - values).abs().mean()]
    print(f"curl {before[0]:.3f} -> {left[0]:.3f}, distance {before[1]:.4f} -> {left[1]:.4f}")
    assert before[0] > 0.4 and left[0] < 0.06
    assert left[1] < 0.4 * before[1]  # at the rim of a sheet a part of the whirl is a relief's, too


def test_a_larger_map_loses_the_same():
    """Fitted at half the size, the correction is taken out of the map between the texels it was fitted at."""
    mesh, where, values, spoilt = scene(0.15)
    after = relief.without_curl(mesh, where, spoilt, SIZE // 2)
    assert (after - values).abs().mean() < 0.4 * (spoilt - values).abs().mean()


def test_halves_that_share_their_texels_are_not_taken_for_neighbours():
    """Mirrored UVs: what lies side by side in the image may lie on both sides of the mesh."""
    mesh = SHAPES["mirrored"]()
    where = material.texels(mesh, SIZE)
    values = known.hammered(*where.uv.unbind(1))
    once = relief.without_curl(mesh, where, values, SIZE)
    twice = relief.without_curl(mesh, where, once, SIZE)
    assert share(mesh, where, values) > 0.08 and share(mesh, where, once) < 0.03
    assert (twice - once).abs().mean() < 1 / 255


def whirling(gbuffer):
    """A model's wish that no surface can meet."""
    values = torch.tensor(RED).repeat(len(gbuffer.uv), 1)
    values[:, 5] += 0.12 * torch.sin(25 * gbuffer.uv[:, 1])
    values[:, 6] += 0.12 * torch.sin(25 * gbuffer.uv[:, 0])
    return values


def test_a_run_writes_the_normals_of_a_relief(tmp_path, monkeypatch):
    shares = []
    for number, correct in enumerate((relief.without_curl, lambda mesh, where, values, finest: values)):
        monkeypatch.setattr(relief, "without_curl", correct)
        job = job_in(tmp_path / str(number), shapes.torus(24, 12))
        run(job, replace(REQUEST, steps=40), shelf=Shelf(oracle.Oracle(whirling, 32)))
        mesh = load_job_mesh(job.mesh)
        where = material.texels(mesh, REQUEST.texture_size)
        shares.append(relief.curl_share(mesh, where, torch.from_numpy(read_map(job.maps / "normal.png"))))
    print("curl of a run's normals, with and without the correction", shares)
    assert shares[0] < 0.1 and shares[1] > 0.3
