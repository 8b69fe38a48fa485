# SPDX-License-Identifier: GPL-3.0-or-later
"""With a model that knows the answer, optimisation is inverse rendering: known maps must come back.

What is judged are the baked images, under lights and from cameras that the run never had.
"""

import math
from dataclasses import dataclass

import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch

TAU = 2 * math.pi
ENOUGH_DB = 35.0


def smooth(u, v):
    """Colours and roughness that change slowly; a dielectric."""
    red = 0.5 + 0.3 * torch.cos(TAU * u) * torch.cos(TAU * v)
    green = 0.45 + 0.25 * torch.sin(TAU * (u + v))
    blue = 0.4 + 0.2 * torch.sin(TAU * (2 * u - v))
    rough = 0.45 + 0.15 * torch.sin(TAU * (u + 2 * v))
    even = torch.full_like(u, 0.5)
    return torch.stack((red, green, blue, 0.1 * even, rough, even, even), dim=-1)


def patterned(u, v):
    """Gold and blue lacquer in turns: metallic, colour and roughness all change at once.

    The lacquer is glossy: whether a rough one is a metal cannot be told from pictures (36 dB either way).
    """
    share = torch.sigmoid(12 * torch.sin(TAU * 6 * u) * torch.sin(TAU * 3 * v))[..., None]
    gold = torch.tensor([1.0, 0.84, 0.45, 0.95, 0.4, 0.5, 0.5])
    lacquer = torch.tensor([0.15, 0.3, 0.65, 0.03, 0.25, 0.5, 0.5])
    return share * gold + (1 - share) * lacquer


def bumpy(u, v, times=8):
    """One glossy colour with a relief in the normal map, tilted up to 17 degrees."""
    even = torch.ones_like(u)
    tilt_x = 0.5 + 0.15 * torch.cos(TAU * times * u)
    tilt_y = 0.5 + 0.15 * torch.sin(TAU * times / 2 * v)
    return torch.stack((0.6 * even, 0.35 * even, 0.3 * even, 0.05 * even, 0.35 * even, tilt_x, tilt_y), dim=-1)


def bumpy_wide(u, v):
    return bumpy(u, v, times=4)


def recover(paint, arrays, side, render_size, **plan):
    """Stored values (7, S, S) known and found, coverage (S, S), and dB (over all views, worst view)."""
    mesh = shapes.mesh_of(arrays)
    image = oracle.image(paint, side)
    known = oracle.from_image(image)
    model = oracle.Oracle(known, render_size)
    state = oracle.optimise(model, mesh, oracle.plan_for(render_size=render_size, finest=side, **plan))
    found, covered = oracle.baked(state, mesh, side)
    quality = oracle.relit_psnr(known, oracle.from_image(found), mesh, render_size)
    error = ((found - image)[:, covered] ** 2).mean(1).sqrt()
    print(f"{paint.__name__}: {quality[0]:.1f} dB, worst view {quality[1]:.1f} dB")
    print("errors by channel:", [round(e, 3) for e in error.tolist()])
    return image, found, covered, quality


def test_a_smooth_material_comes_back():
    image, found, covered, (quality, _) = recover(smooth, shapes.sphere(), 64, 48, steps=120)
    assert quality > ENOUGH_DB
    assert ((found - image)[:3, covered].abs().mean(1) < 0.04).all()


def test_a_relief_comes_back():
    image, found, covered, (quality, _) = recover(bumpy_wide, shapes.torus(), 64, 48, steps=200)
    assert quality > ENOUGH_DB
    for channel in (5, 6):  # to the right side, and not flattened
        one, other = (x[channel][covered] - 0.5 for x in (image, found))
        assert 0.8 < float((one * other).sum() / (one * one).sum()) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize(
    "paint, shape, plan",
    [
        (smooth, shapes.sphere, {"steps": 300, "views": 2}),
        (patterned, shapes.torus, {"steps": 400, "views": 2}),
        (bumpy, shapes.torus, {"steps": 300, "views": 2}),
    ],
)
def test_known_maps_come_back_at_full_size(paint, shape, plan):
    image, found, covered, (quality, worst) = recover(paint, shape(), 256, 256, **plan)
    assert quality > ENOUGH_DB and worst > ENOUGH_DB - 3
    if paint is patterned:
        metal = (image[3] > 0.8) & covered
        other = (image[3] < 0.15) & covered
        assert found[3][metal].mean() - found[3][other].mean() > 0.45, "metal and lacquer are not told apart"


# --- the object's frame -----------------------------------------------------------------------------


def view_azimuth_deg(gbuffer):
    """(B,) the azimuth of each picture's camera, found again from the directions towards it."""
    azimuth = torch.zeros(gbuffer.coverage.shape[0])
    for view in range(len(azimuth)):
        mine = gbuffer.view == view
        # All rays to the camera meet in it: the point nearest to all lines, by least squares.
        away = torch.eye(3) - gbuffer.to_camera[mine][:, :, None] * gbuffer.to_camera[mine][:, None]
        camera = torch.linalg.lstsq(away.sum(0), (away @ gbuffer.position[mine][..., None]).sum(0)).solution[:, 0]
        azimuth[view] = torch.rad2deg(torch.atan2(camera[0], -camera[1])) % 360
    return azimuth


RED, GREEN, BLUE = ([*colour, 0.05, 0.6, 0.5, 0.5] for colour in ((0.8, 0.1, 0.1), (0.1, 0.7, 0.1), (0.1, 0.1, 0.8)))


def by_view(gbuffer):
    """Red from the front, blue from behind, green from the sides: as a model paints that is told view words."""
    off = (view_azimuth_deg(gbuffer) + 180) % 360 - 180
    words = torch.where(off.abs() < 45, 0, torch.where(off.abs() > 135, 2, 1))
    return torch.tensor([RED, GREEN, BLUE])[words[gbuffer.view]]


def by_place(gbuffer):
    """Red in front (-Y), blue behind, whichever way it is looked at."""
    return torch.tensor([RED, BLUE])[(gbuffer.position[:, 1] > 0).long()]


@dataclass
class Strip:
    """Mean colour over the middle of the sphere's map between two azimuths."""

    found: torch.Tensor

    def __call__(self, low_deg, high_deg):
        side = self.found.shape[-1]
        rows = slice(int(0.35 * side), int(0.65 * side))
        columns = (torch.arange(int(low_deg / 360 * side), int(high_deg / 360 * side))) % side
        return self.found[:3, rows][:, :, columns].mean((1, 2))


@pytest.mark.parametrize("known", [by_view, by_place])
def test_front_is_painted_in_front_and_back_behind(known):
    mesh = shapes.mesh_of(shapes.sphere())
    plan = oracle.plan_for(steps=60, render_size=32, finest=32, views=6)
    found, _ = oracle.baked(oracle.optimise(oracle.Oracle(known, 32), mesh, plan), mesh, 64)
    colour = Strip(found)
    front, right, back, left = colour(-20, 20), colour(70, 110), colour(160, 200), colour(250, 290)
    assert front.argmax() == 0 and front[0] > front[2] + 0.15
    assert back.argmax() == 2 and back[2] > back[0] + 0.15
    if known is by_view:
        assert right.argmax() == 1 and left.argmax() == 1
    else:
        assert colour(5, 70)[0] > 0.5 and colour(290, 355)[0] > 0.5
        assert colour(110, 175)[2] > 0.5 and colour(185, 250)[2] > 0.5
        assert colour(110, 250)[0] < 0.35 and colour(-70, 70)[2] < 0.35
