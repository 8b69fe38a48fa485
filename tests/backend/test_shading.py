# SPDX-License-Identifier: GPL-3.0-or-later
"""Shading against finite differences, Monte-Carlo integration and energy that cannot come from nowhere."""

from dataclasses import replace

import numpy as np
import pytest
import shapes_for_tests as shapes
import torch

from backend import cameras, ggx_tables, lighting, occlusion, panoramas
from backend.rasterize import GBuffer, Triangles, gather, look
from backend.shading import SurfaceMaps, linear_to_srgb, shade, shading_normal, srgb_to_linear

WIDE = torch.float64
TABLES = ggx_tables.load().to("cpu", WIDE)


def unit(*shape, generator):
    return torch.nn.functional.normalize(torch.randn(*shape, 3, generator=generator, dtype=WIDE), dim=-1)


def points(count, seed=0, lowest_cosine=0.25):
    """`count` points with frames of their own, each seen in a picture of its own, within `lowest_cosine` of face on."""
    generator = torch.Generator().manual_seed(seed)
    normal = unit(count, generator=generator)
    to_camera = unit(count, generator=generator)
    cosine = lowest_cosine + (1 - lowest_cosine) * torch.rand(count, 1, generator=generator, dtype=WIDE)
    sideways = torch.nn.functional.normalize(to_camera - (to_camera * normal).sum(1, keepdim=True) * normal, dim=1)
    to_camera = cosine * normal + torch.sqrt(1 - cosine**2) * sideways
    tangent = torch.nn.functional.normalize(torch.linalg.cross(normal, unit(count, generator=generator)), dim=1)
    sign = torch.where(torch.rand(count, 1, generator=generator) < 0.5, -1.0, 1.0).to(WIDE)
    zero = torch.zeros(count, dtype=WIDE)
    return GBuffer(
        view=torch.arange(count), pixel=torch.arange(count), position=0.5 * normal, geometric_normal=normal,
        normal=normal, tangent=torch.cat((tangent, sign), dim=1), uv=torch.zeros(count, 2, dtype=WIDE),
        footprint=zero, to_camera=to_camera, back=zero > 0,
        coverage=torch.ones(count, 1, 1, dtype=WIDE),
    )  # fmt: skip


def materials(count, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def even(*shape, low, high):
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=WIDE)

    tilt = even(count, 2, low=-0.3, high=0.3)
    normal = torch.cat((tilt, torch.sqrt(1 - (tilt**2).sum(1, keepdim=True))), dim=1)
    return SurfaceMaps(
        even(count, 3, low=0.1, high=0.9), even(count, low=0.1, high=0.9), even(count, low=0.15, high=0.95), normal
    )


def plain(count, base=1.0, metallic=0.0, roughness=0.5):
    def full(*shape, value):
        return torch.full(shape, float(value), dtype=WIDE)

    return SurfaceMaps(full(count, 3, value=base), full(count, value=metallic), full(count, value=roughness))


def lights_of(kind, count, seed=3):
    lights = lighting.sample(count, torch.Generator().manual_seed(seed)).to("cpu", WIDE)
    if kind == "suns":
        nothing = lighting.uniform(count, 0.0).to("cpu", WIDE)
        return replace(lights, constant=nothing.constant, linear=nothing.linear, quadratic=nothing.quadratic)
    return replace(lights, sun_irradiance=torch.zeros_like(lights.sun_irradiance)) if kind == "world" else lights


# --- gradients ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment():
    """A panorama with a wide lamp and a small one, both of which become suns."""
    w = panoramas.directions(128)
    sky = 0.3 + np.where(w[..., 2:] > 0, [0.2, 0.3, 0.5], [0.1, 0.08, 0.05]) * np.abs(w[..., 2:])
    for towards, strength, sharpness in (((0.6, -0.48, 0.64), 60.0, 300.0), ((-0.8, 0.6, 0.0), 400.0, 3000.0)):
        sky = sky + strength * np.exp(sharpness * (w @ np.array(towards) - 1))[..., None]
    return panoramas.from_panorama(sky)


def far_from_edges(gbuffer, maps, lights):
    """The lights without the suns that graze a point: where light is cut off, no difference says anything."""
    normal = shading_normal(gbuffer, maps.normal)
    cosine = torch.einsum("nsi,ni->ns", lights.sun_direction, normal)
    flat = torch.einsum("nsi,ni->ns", lights.sun_direction, gbuffer.geometric_normal)
    bad = ((cosine.abs() < 1e-2) | (flat.abs() < 1e-3)) & (lights.sun_irradiance.sum(-1) > 0)
    return replace(lights, sun_irradiance=torch.where(bad[..., None], 0.0, lights.sun_irradiance))


@pytest.mark.parametrize("kind", ["suns", "world", "panorama", "occlusion", "openness"])
@pytest.mark.parametrize("name", ["base_color", "metallic", "roughness", "normal"])
def test_gradients_of_every_map_are_finite_differences(name, kind, environment):
    count, step = 200, 1e-6
    gbuffer, maps = points(count), materials(count)
    generator = torch.Generator().manual_seed(4)
    shadows = {}
    if kind == "panorama":
        lights = panoramas.lights([environment], torch.zeros(count).long(), generator).to("cpu", WIDE)
        assert lights.sun_spread.max() > 0.01 and (lights.sun_irradiance[0].sum(-1) > 0).sum() > 4
    else:
        lights = lights_of(kind if kind in ("suns", "world") else "all", count)
    if kind == "occlusion":
        shadows["occlusion"] = torch.rand(count, generator=generator, dtype=WIDE)
    if kind == "openness":
        sky, suns = (torch.rand(count, n, generator=generator, dtype=WIDE) for n in (48, lights.sun_direction.shape[1]))
        shadows["openness"] = occlusion.Openness(occlusion.even_directions(48).double(), sky.round(), suns)
    if kind != "world":
        lights = far_from_edges(gbuffer, maps, lights)
    weights = torch.rand(count, 3, generator=torch.Generator().manual_seed(9), dtype=WIDE)

    def total(values):
        radiance = shade(gbuffer, replace(maps, **{name: values}), lights, TABLES, **shadows)
        return (radiance * weights).sum(1)

    values = getattr(maps, name).clone().requires_grad_(True)
    total(values).sum().backward()
    channels = range(values.shape[1]) if values.dim() > 1 else [None]
    for channel in channels:
        offset = torch.zeros_like(values)
        offset[..., slice(None) if channel is None else channel] = step
        with torch.no_grad():
            up, here, down = (total(values + k * offset) for k in (1, 0, -1))
        difference = (up - down) / (2 * step)
        slope = values.grad if channel is None else values.grad[:, channel]
        # Not where a knot of a table lies within reach, so that the slope jumps.
        jump = ((up - here) - (here - down)).abs() / step
        lit = (jump < 1e-3 * difference.abs().clamp(min=1e-2)) & (here > 0)
        assert lit.sum() > 0.9 * (here > 0).sum() > 60
        error = (slope - difference)[lit].abs() / difference[lit].abs().clamp(min=1e-2)
        print(f"{name}, {kind}: relative error {error.max():.1e} at {int(lit.sum())} of {count} points")
        assert error.max() < 1e-6
        assert (difference[lit].abs() > 1e-3).float().mean() > 0.5, "the map does not matter here"


# --- the tables -----------------------------------------------------------------------------------


def monte_carlo_moments(roughness, mu, samples=400_000, seed=0):
    """int f g {1, n, t, nn, tt, nt} dL by sampling the normals D N.H (not the visible ones), in numpy."""
    rng = np.random.default_rng(seed)
    alpha = roughness**2
    # Stratified in both numbers, so that the noise is small.
    side = int(samples**0.5)
    i, j = (a.ravel() for a in np.mgrid[:side, :side])
    u1, u2 = (i + rng.random(i.size)) / side, (j + rng.random(j.size)) / side
    cos_h = np.sqrt((1 - u1) / (1 + (alpha**2 - 1) * u1))
    sin_h, phi = np.sqrt(1 - cos_h**2), 2 * np.pi * u2
    half = np.stack((sin_h * np.cos(phi), sin_h * np.sin(phi), cos_h), axis=1)
    view = np.array([np.sqrt(1 - mu**2), 0, mu])
    v_h = half @ view
    light = 2 * v_h[:, None] * half - view
    n, t = light[:, 2], light[:, 0]
    good = (n > 0) & (v_h > 0)

    def lam(cosine):
        return (np.sqrt(1 + alpha**2 * (1 / cosine**2 - 1)) - 1) / 2

    with np.errstate(all="ignore"):
        # D G2 / (4 n.v n.l) n.l dL with pdf D n.h / (4 v.h)
        weight = np.where(good, v_h / (mu * cos_h) / (1 + lam(mu) + lam(np.maximum(n, 1e-9))), 0)
    c = np.clip(v_h, 0, 1)
    g = np.sqrt(1.5**2 - 1 + c**2)
    exact = 0.5 * ((g - c) / (g + c)) ** 2 * (1 + ((c * (g + c) - 1) / (c * (g - c) + 1)) ** 2)
    f0 = 0.04
    fresnel = (np.ones_like(c), (1 - c) ** 5, (exact - f0) / (1 - f0))
    return np.array([[(weight * f * s).mean() for s in (np.ones_like(n), n, t, n * n, t * t, n * t)] for f in fresnel])


@pytest.mark.parametrize("roughness", [0.2, 0.45, 0.7, 1.0])
@pytest.mark.parametrize("mu", [0.3, 0.62, 0.95])
def test_tables_are_what_monte_carlo_finds(roughness, mu):
    found, _ = ggx_tables.lookup(TABLES, torch.tensor([roughness], dtype=WIDE), torch.tensor([mu], dtype=WIDE))
    wanted = monte_carlo_moments(roughness, mu)
    found = found.view(3, 6).numpy()
    print(f"roughness {roughness} mu {mu}: albedo {found[0, 0]:.4f}, off by {found[0, 0] / wanted[0, 0] - 1:+.2%}")
    assert abs(found[0, 0] / wanted[0, 0] - 1) < 0.005
    assert np.abs(found - wanted).max() < 0.006


def test_the_average_albedo_is_the_integral_over_the_view():
    roughness = torch.tensor([0.3, 0.6, 1.0], dtype=WIDE)
    middle = (np.arange(12) + 0.5) / 12
    for r, found in zip(roughness, ggx_tables.lookup(TABLES, roughness, roughness)[1], strict=True):
        wanted = np.mean([2 * mu * monte_carlo_moments(float(r), mu, 40_000)[0, 0] for mu in middle])
        assert abs(found / wanted - 1) < 0.01


def test_the_tables_can_be_made_again():
    made = ggx_tables.integrate(resolution=5, samples=32)
    at = torch.linspace(0, 1, 5, dtype=WIDE)
    for i in (1, 2, 4):
        for j in (1, 3, 4):
            shipped, average = ggx_tables.lookup(TABLES, at[i : i + 1], at[j : j + 1])
            assert np.abs(shipped[0] - made.moments[:, i, j]).max() < 0.01


# --- whole shader ---------------------------------------------------------------------------------


@pytest.mark.parametrize("roughness", [0.1, 0.3, 0.5, 0.8, 1.0])
def test_a_white_metal_in_a_white_world_cannot_be_seen(roughness):
    gbuffer = points(300, lowest_cosine=0.15)
    radiance = shade(gbuffer, plain(300, 1.0, 1.0, roughness), lighting.uniform(300).to("cpu", WIDE), TABLES)
    print(f"roughness {roughness}: {radiance.min():.4f} to {radiance.max():.4f}")
    assert (radiance - 1).abs().max() < 0.02


@pytest.mark.parametrize("roughness", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("metallic", [0.0, 0.5])
def test_a_white_dielectric_neither_makes_light_nor_eats_much(roughness, metallic):
    gbuffer = points(300, lowest_cosine=0.15)
    radiance = shade(gbuffer, plain(300, 1.0, metallic, roughness), lighting.uniform(300).to("cpu", WIDE), TABLES)
    print(f"roughness {roughness}: {radiance.min():.4f} to {radiance.max():.4f}")
    assert radiance.max() < 1.01 and radiance.min() > 0.97


@pytest.mark.parametrize("metallic, roughness", [(1.0, 0.4), (1.0, 0.9), (0.0, 0.35), (0.0, 0.8)])
def test_a_world_is_the_integral_of_its_parts(metallic, roughness):
    """The moments against the same surface under very many small suns in place of the world."""
    count, suns = 4, 2000
    gbuffer, maps = points(count, seed=8, lowest_cosine=0.5), plain(count, 0.6, metallic, roughness)
    maps = replace(maps, base_color=maps.base_color * torch.tensor([1.0, 0.7, 0.3], dtype=WIDE))
    world = lights_of("world", count)
    k = torch.arange(suns, dtype=WIDE) + 0.5  # a Fibonacci sphere
    z, around = 1 - 2 * k / suns, k * torch.pi * (1 + 5**0.5)
    flat = torch.sqrt(1 - z**2)
    towards = torch.stack((flat * torch.cos(around), flat * torch.sin(around), z), dim=1)
    view = torch.arange(count).repeat_interleave(suns)
    power = lighting.radiance(world, view, towards.repeat(count, 1)).view(count, suns, 3) * 4 * torch.pi / suns
    dark = lighting.uniform(count, 0.0).to("cpu", WIDE)
    many = replace(dark, sun_direction=towards.expand(count, suns, 3), sun_irradiance=power)
    found, wanted = shade(gbuffer, maps, world, TABLES), shade(gbuffer, maps, many, TABLES)
    relative = (found / wanted - 1).abs().max()
    print(f"metallic {metallic} roughness {roughness}: {relative:.2%}")
    assert relative < 0.01


def test_a_sun_lights_a_rough_wall_by_its_cosine():
    gbuffer = points(50, lowest_cosine=0.5)
    gbuffer = replace(gbuffer, to_camera=gbuffer.normal)
    lights = lighting.uniform(50, 0.0).to("cpu", WIDE)
    sideways = gbuffer.tangent[:, :3]
    for cosine in (1.0, 0.5, 0.1, -0.1):
        towards = cosine * gbuffer.normal + (1 - cosine**2) ** 0.5 * sideways
        lit = replace(lights, sun_direction=towards[:, None], sun_irradiance=torch.full((50, 1, 3), 2.0, dtype=WIDE))
        wall = shade(gbuffer, plain(50, 0.5, 0.0, 1.0), lit, TABLES)
        black = shade(gbuffer, plain(50, 0.0, 0.0, 1.0), lit, TABLES)
        if cosine < 0:
            assert not wall.any()
            continue
        # What the coating reflects does not reach the wall below.
        assert torch.allclose(wall - black, torch.tensor(0.5 * 2.0 * cosine / np.pi, dtype=WIDE), rtol=0.06)
        assert black.min() > 0


def test_no_sun_through_the_surface():
    """Neither on a shading normal turned away nor on a triangle turned away, whatever the other says."""
    gbuffer = replace(points(30, lowest_cosine=0.8), to_camera=points(30).normal)
    tilt = torch.tensor([[0.6, 0.0, 0.8]], dtype=WIDE).expand(30, 3)
    maps = replace(plain(30, 0.8, 0.3, 0.7), normal=tilt)
    n, t = gbuffer.normal, gbuffer.tangent[:, :3]
    dark = lighting.uniform(30, 0.0).to("cpu", WIDE)
    for towards, lit in (((-0.995, 0.1), False), ((0.995, -0.1), False), ((0.995, 0.1), True), ((0.0, 1.0), True)):
        sun = torch.nn.functional.normalize(towards[0] * t + towards[1] * n, dim=1)[:, None]
        lights = replace(dark, sun_direction=sun, sun_irradiance=torch.ones(30, 1, 3, dtype=WIDE))
        assert (shade(gbuffer, maps, lights, TABLES) > 0).all() == lit
        assert (shade(gbuffer, maps, lights, TABLES) == 0).all() != lit


def test_turning_everything_together_changes_nothing():
    count = 200
    gbuffer, maps, lights = points(count), materials(count), lights_of("all", count)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(6), dtype=WIDE))[0]
    turn = turn * torch.sign(torch.linalg.det(turn))
    turned = replace(
        gbuffer,
        position=gbuffer.position @ turn.T,
        geometric_normal=gbuffer.geometric_normal @ turn.T,
        normal=gbuffer.normal @ turn.T,
        tangent=torch.cat((gbuffer.tangent[:, :3] @ turn.T, gbuffer.tangent[:, 3:]), dim=1),
        to_camera=gbuffer.to_camera @ turn.T,
    )
    turned_lights = replace(
        lights,
        linear=torch.einsum("ij,bjc->bic", turn, lights.linear),
        quadratic=torch.einsum("ij,kl,bjlc->bikc", turn, turn, lights.quadratic),
        sun_direction=lights.sun_direction @ turn.T,
    )
    one, other = shade(gbuffer, maps, lights, TABLES), shade(turned, maps, turned_lights, TABLES)
    assert torch.allclose(one, other, rtol=1e-9)
    assert not torch.allclose(one, shade(turned, maps, lights, TABLES), rtol=0.1)


@pytest.mark.parametrize("kind", ["second order and suns", "panorama"])
def test_a_picture_turned_with_all_that_is_in_it_stays_the_same(kind, environment):
    """Mesh, camera and light, through the rasteriser; the panorama is looked up elsewhere in its pixels."""
    triangles = Triangles.of(shapes.mesh_of(shapes.sphere()))
    if kind == "panorama":
        lights = panoramas.lights([environment], torch.zeros(1).long(), torch.Generator().manual_seed(5))
    else:
        lights = lighting.sample(1, torch.Generator().manual_seed(5))
    camera = cameras.look_at(torch.tensor([20.0]), torch.tensor([10.0]), torch.tensor([3.5]), torch.tensor([0.35]))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(6)))[0]
    turn = turn * torch.sign(torch.linalg.det(turn))
    turned = replace(
        triangles,
        positions=triangles.positions @ turn.T,
        normals=triangles.normals @ turn.T,
        tangents=torch.cat((triangles.tangents[..., :3] @ turn.T, triangles.tangents[..., 3:]), dim=-1),
    )
    turned_camera = replace(camera, position=camera.position @ turn.T, rotation=camera.rotation @ turn.T)
    residuals = lights.residuals
    turned_lights = replace(
        lights,
        linear=torch.einsum("ij,bjc->bic", turn, lights.linear),
        quadratic=torch.einsum("ij,kl,bjlc->bikc", turn, turn, lights.quadratic),
        sun_direction=lights.sun_direction @ turn.T,
        residuals=residuals and replace(residuals, turn=turn @ residuals.turn),
    )

    def picture(mesh, eye, light):
        seen = gather(mesh, eye, [look(mesh, eye, 0, 64)])
        maps = SurfaceMaps(seen.uv.new_full((len(seen.uv), 3), 0.6), seen.uv[:, 0], 0.15 + 0.8 * (seen.uv[:, 1] % 1))
        return seen.picture(shade(seen, maps, light, ggx_tables.load()), torch.zeros(1, 64, 64, 3))

    one, other = picture(triangles, camera, lights), picture(turned, turned_camera, turned_lights)
    off = (one - other).abs() / (one + 0.02 * one.mean())
    print(f"{kind}: mean {off.mean():.1e}, 99.9 % of pixels within {off.flatten().quantile(0.999):.1e}")
    # In float32 a pixel on an edge may go to the neighbouring triangle.
    assert off.flatten().quantile(0.995) < 1e-3 and off.mean() < 1e-4
    unturned = picture(turned, turned_camera, lights)
    assert ((one - unturned).abs() / (one + 0.02 * one.mean())).mean() > 0.1


def test_occlusion_takes_the_world_and_leaves_the_suns():
    count = 40
    gbuffer, maps = points(count), materials(count)
    world, suns, both = (shade(gbuffer, maps, lights_of(kind, count), TABLES) for kind in ("world", "suns", "all"))
    assert torch.allclose(world + suns, both)
    half = shade(gbuffer, maps, lights_of("all", count), TABLES, torch.full((count,), 0.5, dtype=WIDE))
    assert torch.allclose(half, 0.5 * world + suns)


def test_green_of_a_normal_map_points_along_v():
    """A tilt to +y, seen face on with a sun over +v, is brighter; mirrored UVs keep the same meaning."""
    gbuffer = points(20, lowest_cosine=0.9)
    tilt = torch.tensor([[0.0, 0.3, (1 - 0.09) ** 0.5]], dtype=WIDE).expand(20, 3)
    bitangent = gbuffer.tangent[:, 3:] * torch.linalg.cross(gbuffer.normal, gbuffer.tangent[:, :3])
    assert set(gbuffer.tangent[:, 3].tolist()) == {-1.0, 1.0}
    found = shading_normal(gbuffer, tilt)
    assert torch.allclose((found * bitangent).sum(1), torch.tensor(0.3, dtype=WIDE))
    assert torch.allclose((found * gbuffer.normal).sum(1), torch.tensor(0.91**0.5, dtype=WIDE))
    assert torch.allclose(shading_normal(gbuffer, None), gbuffer.normal)


# --- display values -------------------------------------------------------------------------------


def test_display_values_go_there_and_back():
    values = torch.linspace(0, 1, 4097, dtype=WIDE)
    assert (linear_to_srgb(srgb_to_linear(values)) - values).abs().max() < 1e-7
    assert (srgb_to_linear(linear_to_srgb(values)) - values).abs().max() < 1e-7
    for display, linear in ((0.5, 0.21404114), (0.04, 0.04 / 12.92), (0.735357, 0.5), (1.0, 1.0)):
        assert abs(float(srgb_to_linear(torch.tensor(display, dtype=WIDE))) - linear) < 1e-6
    assert linear_to_srgb(torch.tensor([-0.5, 2.0])).tolist() == [0.0, pytest.approx(1.0)]


def test_the_gradient_of_dark_display_values_is_finite():
    dark = torch.tensor([0.0, 1e-8, 0.0031, 0.0032], requires_grad=True)
    (linear_to_srgb(dark).sum() + srgb_to_linear(dark).sum()).backward()
    assert torch.isfinite(dark.grad).all() and (dark.grad >= 0).all()
