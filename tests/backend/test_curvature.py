# SPDX-License-Identifier: GPL-3.0-or-later
"""Newton steps: the written-out solution against LAPACK's, bounds, and what they are for; and the mean descent."""

import pytest
import torch

from backend import curvature, descent, ggx_tables, lighting, material
from backend.evaluate._known import flat_points
from backend.shading import linear_to_srgb, shade

TABLES = ggx_tables.load()
DAMPING = 1e-3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def told_of(jacobian, uv):
    """What random signs tell of points with one jacobian (3, 7) each, over many steps."""
    told, generator = curvature.nothing_told(8), torch.Generator().manual_seed(1)
    for _ in range(400):
        signs = torch.randint(0, 2, (len(uv), 3), generator=generator).float() * 2 - 1
        curvature.observe(told, uv, torch.einsum("nc,nck->nk", signs, jacobian))
    return told


def test_random_signs_tell_the_products_of_the_whole_derivative():
    """One texel is read at 4000 points; the mean over them and the last ten steps is J'J."""
    uv = torch.full((4000, 2), 0.5 + 0.5 / 8)
    jacobian = normal(1, 3, 7).expand(4000, 3, 7)
    told = told_of(jacobian, uv)[0, :, 4, 4]
    mean = told[:-1] / told[-1]
    whole = jacobian[0].T @ jacobian[0]
    wanted = torch.stack([whole[i, j] for i, j in curvature.PAIRS])
    assert torch.allclose(mean, wanted, atol=0.03 * float(wanted.abs().max()))
    assert abs(float(told[-1]) - 4000 / (1 - curvature.MEMORY)) < 1


def test_the_written_out_solution_is_that_of_the_whole_system():
    root = normal(50, 7, 7, seed=2)
    matrix = root @ root.transpose(1, 2) + 0.1 * torch.eye(7)
    right = normal(50, 7, seed=3)
    found = curvature._solve({(i, j): matrix[:, i, j] for i, j in curvature.PAIRS}, right)
    assert torch.allclose(found, torch.linalg.solve(matrix, right), rtol=1e-2, atol=1e-3)


def test_before_anything_is_told_every_value_moves_alike():
    told = curvature.nothing_told(8)
    slope = torch.full((1, 7), 1e-3)
    step = curvature.newton_step(told, torch.full((1, 2), 0.5), slope, torch.full((1, 3), 1e3), DAMPING)
    assert torch.allclose(step, slope / (curvature.EXPECTED + DAMPING), rtol=1e-4)


def test_one_pixel_never_goes_farther_than_its_residual():
    """The step, followed along the pixel's own derivative, removes at most what the pixel wants removed."""
    uv = torch.rand(200, 2, generator=torch.Generator().manual_seed(4))
    told = told_of(normal(200, 3, 7, seed=5), uv)
    jacobian = 20 * normal(200, 3, 7, seed=6)
    residual = 1e-3 * normal(200, 3, seed=7)
    slope = torch.einsum("nck,nc->nk", jacobian, residual)
    step = curvature.newton_step(told, uv, slope, residual, DAMPING)
    removed = torch.einsum("nc,nck,nk->n", torch.nn.functional.normalize(residual, dim=1), jacobian, step)
    assert (removed <= 1.001 * residual.norm(dim=1)).all() and (removed > 0.2 * residual.norm(dim=1)).all()
    assert curvature.newton_step(told, uv, 1e6 * slope, residual, DAMPING).abs().max() <= curvature.FARTHEST


@pytest.mark.parametrize("target", [(0.9, 0.7, 0.3, 1.0, 0.35, 0.5, 0.5), (0.12, 0.25, 0.6, 0.0, 0.2, 0.55, 0.45)])
def test_uniform_materials_are_found_in_few_steps(target):
    """Under many lights, from grey and undecided."""
    generator = torch.Generator().manual_seed(5)
    points, lights = flat_points(1000, 64, 70.0, generator), lighting.sample(64, generator)

    def render(stored):
        linear = shade(points, material.surface_maps(stored.expand(1000, 7)), lights, TABLES)
        return linear_to_srgb(material.limited(linear, 0.0, 1.0)) * 2 - 1

    shown, told = render(torch.tensor([target])), curvature.nothing_told(1)
    raw, uv = torch.tensor([material.START]), torch.full((1000, 2), 0.5)
    for _ in range(60):
        stored = material.stored_values(raw).expand(1000, 7).clone().requires_grad_(True)
        rendered = render(stored)
        signs = torch.randint(0, 2, (1000, 3), generator=generator).float() * 2 - 1
        curvature.observe(told, uv, torch.autograd.grad(rendered, stored, signs, retain_graph=True)[0])
        residual = (rendered - shown).detach()
        slope = torch.autograd.grad(rendered, stored, residual)[0]
        moves = curvature.newton_step(told, uv, slope, residual, DAMPING)
        raw = raw - material.raw_moves(raw.expand(1000, 7), moves).mean(0, keepdim=True)
    error = (material.stored_values(raw)[0] - torch.tensor(target)).abs()
    print([round(e, 4) for e in error.tolist()])
    assert error.max() < 0.02


def test_texels_move_by_the_mean_wish_however_often_they_are_seen():
    parameter = torch.zeros(1, 7, 4, 4)
    sums = descent.no_sums([parameter])
    seen = torch.zeros(1, 1, 4, 4)
    seen[0, 0, 0], seen[0, 0, 1] = 1000.0, 3.0
    for _ in range(40):
        descent.descend([parameter], sums, [((parameter - 0.7) * seen, seen)], [0.5], [0.0])
    assert torch.allclose(parameter[0, :, 0], torch.tensor(0.7), atol=5e-3)
    assert torch.allclose(parameter[0, :, 1], torch.tensor(0.7), atol=2e-2)
    assert not parameter[0, :, 2:].any()


def test_what_nothing_asks_for_fades_and_what_was_not_read_stays():
    read, unread = torch.ones(1, 7, 2, 2), torch.ones(1, 7, 2, 2)
    sums = descent.no_sums([read, unread])
    nothing = torch.zeros(1, 7, 2, 2), torch.zeros(1, 1, 2, 2)
    descent.descend([read, unread], sums, [(nothing[0], nothing[1]), None], [1.0, 1.0], [0.1, 0.1])
    assert torch.allclose(read, torch.tensor(0.9)) and torch.equal(unread, torch.ones(1, 7, 2, 2))


def test_the_highlights_of_mirrors_do_not_overflow():
    """Their derivatives grow to millions, and few of them leave a matrix that float32 cannot solve."""
    told, uv = curvature.nothing_told(8), torch.full((3, 2), 0.5)
    for seed in range(4):
        curvature.observe(told, uv, 1e7 * normal(3, 7, seed=seed))
    step = curvature.newton_step(told, uv, normal(3, 7), torch.full((3, 3), 0.1), DAMPING)
    assert torch.isfinite(step).all() and step.abs().max() > 0
