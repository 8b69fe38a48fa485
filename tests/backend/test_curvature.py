# SPDX-License-Identifier: GPL-3.0-or-later
"""Newton steps: the closed form against solving whole matrices, bounds, and what they are for."""

import pytest
import torch

from backend import curvature, descent, ggx_tables, lighting, material
from backend.shading import linear_to_srgb, shade

TABLES = ggx_tables.load()


@pytest.fixture(scope="module")
def table():
    return curvature.table(TABLES)


def some_values(count, seed=0):
    values = torch.rand(count, 7, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1
    values[:, 5:] = 0.5
    return values


def test_the_table_is_a_curvature_and_the_same_every_time(table):
    assert table.shape == (1, 7, *curvature.SIDES) and torch.isfinite(table).all()
    bb, bm, br, mm, mr, rr, nn = table[0]
    assert (torch.stack((bb, mm, rr, nn)) > 0).all()
    assert (bm**2 <= bb * mm).all() and (br**2 <= bb * rr).all() and (mr**2 <= mm * rr).all()
    assert torch.equal(table, curvature.table(TABLES))
    # A rough surface's normal shows less than a glossy metal's.
    assert nn[3, -1, 2] > 3 * nn[3, 0, -1]


def test_the_closed_form_is_the_solution_of_the_whole_system(table):
    values = some_values(50)
    slope = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * 1e-3
    residual = torch.full((50, 3), 1e3)  # so large that the pixel's own curvature is nothing
    step = curvature.newton_step(table, values, slope, residual)
    rows = curvature._look_up(table, values)
    whole = torch.zeros(50, 7, 7)
    bb, bm, br, mm, mr, rr, nn = rows
    for c in range(3):
        whole[:, c, c] = bb[:, c]
        whole[:, c, 3] = whole[:, 3, c] = bm[:, c]
        whole[:, c, 4] = whole[:, 4, c] = br[:, c]
    whole[:, 3, 3], whole[:, 4, 4] = mm.sum(1), rr.sum(1)
    whole[:, 3, 4] = whole[:, 4, 3] = mr.sum(1)
    whole[:, 5, 5] = whole[:, 6, 6] = nn.sum(1)
    wanted = torch.linalg.solve(whole + curvature.DAMPING * torch.eye(7), slope)
    assert torch.allclose(step, wanted, rtol=1e-3, atol=1e-6)


def test_one_pixel_never_goes_farther_than_its_residual(table):
    """The step, followed along the pixel's own derivative, removes at most what the pixel wants removed."""
    values = some_values(200, 2)
    jacobian = 20 * torch.randn(200, 3, 7, generator=torch.Generator().manual_seed(3))
    residual = 1e-3 * torch.randn(200, 3, generator=torch.Generator().manual_seed(4))
    slope = torch.einsum("nck,nc->nk", jacobian, residual)
    step = curvature.newton_step(table, values, slope, residual)
    along = torch.nn.functional.normalize(residual, dim=1)
    removed = torch.einsum("nc,nck,nk->n", along, jacobian, step)
    assert (removed <= 1.001 * residual.norm(dim=1)).all() and (removed > 0.2 * residual.norm(dim=1)).all()
    assert curvature.newton_step(table, values, 1e6 * slope, residual).abs().max() <= curvature.FARTHEST


def test_uniform_materials_are_found_in_few_steps(table):
    """Under many lights, from grey and undecided."""
    generator = torch.Generator().manual_seed(5)
    wanted = torch.tensor([[0.9, 0.7, 0.3, 1.0, 0.35, 0.5, 0.5], [0.12, 0.25, 0.6, 0.0, 0.2, 0.55, 0.45]])
    for target in wanted:
        points = curvature.flat_points(1000, 64, 70.0, generator)
        lights = lighting.sample(64, generator)

        def render(stored, points=points, lights=lights):
            values = material.surface_maps(stored.expand(1000, 7))
            return linear_to_srgb(shade(points, values, lights, TABLES)) * 2 - 1

        shown = render(target)
        raw = torch.tensor([material.START])
        for _ in range(50):
            stored = material.stored_values(raw).expand(1000, 7).clone().requires_grad_(True)
            rendered = render(stored)
            slope = torch.autograd.grad(rendered, stored, (rendered - shown).detach())[0]
            moves = curvature.newton_step(table, stored.detach(), slope, (rendered - shown).detach())
            raw = raw - material.raw_moves(raw.expand(1000, 7), moves).mean(0, keepdim=True)
        error = (material.stored_values(raw)[0] - target).abs()
        print([round(e, 4) for e in error.tolist()])
        assert error.max() < 0.02


def test_texels_move_by_the_mean_wish_however_often_they_are_seen():
    parameter = torch.zeros(1, 7, 4, 4, requires_grad=True)
    optimiser = descent.MeanDescent([{"params": [parameter]}], lr=0.5)
    seen = torch.zeros(1, 1, 4, 4)
    seen[0, 0, 0], seen[0, 0, 1] = 1000.0, 3.0
    for _ in range(40):
        parameter.grad = (parameter.detach() - 0.7) * seen
        optimiser.step([seen])
    assert torch.allclose(parameter[0, :, 0], torch.tensor(0.7), atol=5e-3)
    assert torch.allclose(parameter[0, :, 1], torch.tensor(0.7), atol=2e-2)
    assert not parameter[0, :, 2:].any()
