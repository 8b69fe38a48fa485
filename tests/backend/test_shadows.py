# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that paints shadows leaves none in the base colour, because the renderer knows them."""

from dataclasses import dataclass, replace

import pytest
import torch
from test_texturing import job_in

from addon import protocol
from backend import ggx_tables, material, occlusion, optimisation, texturing, views
from backend.diffusion.interface import Prediction, Scene
from backend.evaluate import _known as known
from backend.evaluate import recovery
from backend.evaluate._shapes import SHAPES
from backend.occlusion import Openness, even_directions, look_from, open_share
from backend.rasterize import Triangles
from backend.shading import SurfaceMaps, linear_to_srgb, shade, srgb_to_linear

TABLES = ggx_tables.load()
GREY, ROUGHNESS = 0.6, 0.7


@dataclass
class Painter(known.Oracle):
    """Paints grey clay with all its shadows: finer ones than the optimiser's, and of the suns where they stand."""

    triangles: Triangles | None = None
    fine: occlusion.Sky | None = None

    @torch.no_grad()
    def predict(self, noisy, timestep, scene: Scene, guided=True):
        gbuffer, lights = scene.gbuffer, scene.lights
        at = gbuffer.position, gbuffer.geometric_normal
        suns = torch.ones(len(gbuffer.view), lights.sun_direction.shape[1])
        for picture, towards in enumerate(lights.sun_direction):
            here = gbuffer.view == picture
            suns[here] = open_share(look_from(self.triangles, towards, 256), at[0][here], at[1][here])
        openness = Openness(self.fine.direction, open_share(self.fine, *at), suns)
        flat = torch.ones(len(gbuffer.view))
        maps = SurfaceMaps(srgb_to_linear(GREY * torch.ones(len(flat), 3)), 0 * flat, ROUGHNESS * flat)
        rendered = linear_to_srgb(shade(gbuffer, maps, lights, TABLES, openness=openness)) * 2 - 1
        behind = torch.zeros(*gbuffer.coverage.shape, 3)
        picture = gbuffer.picture(rendered, behind).permute(0, 3, 1, 2)
        return Prediction(picture, picture)


def darkness_inside(shadows: bool) -> float:
    """How much darker the hole of a torus is painted than its rim, as a share."""
    mesh = SHAPES["torus"](32, 16)
    triangles, generator = Triangles.of(mesh), torch.Generator().manual_seed(0)
    plan = recovery.plan_for(32, 32, steps=40)
    sky = look_from(triangles, even_directions()) if shadows else None
    pool = views.new_pool(triangles, torch.ones(len(mesh.positions)), 32, generator, sky=sky)
    fine = look_from(triangles, even_directions(200))
    painter = Painter(torch.zeros(7, 1, 1), 32, TABLES, triangles=triangles, fine=fine)
    state = optimisation.new_state(plan, torch.device("cpu"))
    while state.step < plan.steps:
        optimisation.step(state, plan, painter, pool, TABLES)
    rows = material.bake(state.average, material.texels(mesh, 32))["base_color"].mean((1, 2))  # along the tube
    return 1 - float(rows[13:19].mean() / torch.cat((rows[:3], rows[-3:])).mean())


@pytest.mark.slow
def test_shadows_stay_out_of_the_base_colour_where_the_renderer_knows_them():
    unknown, known_to_it = darkness_inside(shadows=False), darkness_inside(shadows=True)
    print(f"the hole is darker than the rim by {unknown:.1%} without shadows and by {known_to_it:.1%} with them")
    assert unknown > 0.08 and abs(known_to_it) < 0.02


@pytest.mark.parametrize(("wish", "paints_shadows", "expected"), [
    ("auto", True, True), ("auto", False, False), ("on", False, True), ("off", True, False),
])  # fmt: skip
def test_who_renders_with_shadows(tmp_path, monkeypatch, wish, paints_shadows, expected):
    pools, new_pool = [], views.new_pool
    monkeypatch.setattr(views, "new_pool", lambda *a: pools.append(new_pool(*a)) or pools[-1])
    model = known.Oracle(torch.full((7, 8, 8), 0.5), 32, TABLES)
    model.sees_geometry = not paints_shadows
    shelf = type("Shelf", (), {"get": lambda self, name, device: model})()
    request = protocol.TextureRequest(prompt="x", texture_size=512, steps=1, device="cpu", options={"shadows": wish})
    events = list(texturing.run(request, job_in(tmp_path / "job"), shelf, lambda: None))
    assert isinstance(events[-1], protocol.Done) and (pools[0].sky is not None) == expected


def test_an_unknown_wish_is_told():
    with pytest.raises(ValueError, match="Shadows are “auto”, “on” or “off”, not “dark”"):
        replace(recovery.plan_for(8, 8).options, shadows="dark")


def test_the_optimisers_shares_are_constants_to_the_maps():
    mesh = SHAPES["torus"](24, 12)
    pool = views.new_pool(Triangles.of(mesh), torch.ones(len(mesh.positions)), 24, torch.Generator().manual_seed(0))
    gbuffer, lights = pool.gbuffer([0]), pool.lights(1, torch.Generator().manual_seed(0))
    lights, frozen = occlusion.opened(look_from(pool.triangles, even_directions(24)), gbuffer, lights)
    for openness, told in ((frozen, False), (replace(frozen, frozen=False), True)):
        roughness = torch.full((len(gbuffer.view),), 0.5, requires_grad=True)
        share = occlusion.glossy_share(openness, gbuffer, gbuffer.normal, roughness, lights)
        assert share.requires_grad == told


def test_a_second_stage_takes_the_sky_that_is_there():
    triangles = Triangles.of(SHAPES["torus"](8, 6))
    model, plan = known.Oracle(torch.zeros(7, 1, 1), 32, TABLES), recovery.plan_for(32, 32)
    plan = replace(plan, options=replace(plan.options, shadows="on"))
    sky = look_from(triangles, even_directions(4), 16)
    assert texturing._sky(plan, model, triangles, sky) is sky
    assert texturing._sky(plan, model, triangles, None) is not None
