# SPDX-License-Identifier: GPL-3.0-or-later
"""Panoramas as lights: what is split must add up again, lobes against sampling, files that are damaged."""

import numpy as np
import pytest
import torch

from backend import ggx_tables, lighting, panorama_files, panoramas, shading
from backend.rasterize import GBuffer
from backend.shading import SurfaceMaps, shade

HARD = 60.0


def picture(height=128, lamp=HARD, sharpness=300.0):
    """Sky, ground and one lamp at (0.6, -0.48, 0.64)."""
    w = panoramas.directions(height)
    glow = np.exp(sharpness * (w @ np.array([0.6, -0.48, 0.64]) - 1))[..., None]
    return 0.3 + np.where(w[..., 2:] > 0, [0.2, 0.3, 0.5], [0.1, 0.08, 0.05]) + lamp * glow * [1.0, 0.9, 0.7]


def unit(count, seed=0):
    drawn = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def of(pictures, which=(0,), generator=None):
    return panoramas.lights([panoramas.from_panorama(p) for p in pictures], torch.tensor(which), generator)


def test_directions_are_blenders_mapping():
    w = panoramas.directions(64)
    assert np.allclose(np.linalg.norm(w, axis=-1), 1)
    assert w[0, 0, 2] > 0.99 and w[-1, 0, 2] < -0.99
    # The middle of the picture looks along +X, a quarter to the left of it along +Y.
    assert w[32, 64, 0] > 0.99 and w[32, 32, 1] > 0.99


def test_parts_add_up_to_the_picture():
    source = picture(lamp=3.0, sharpness=20.0)
    lights = of([source])
    w = torch.from_numpy(panoramas.directions(128)).reshape(-1, 3).float()
    found = lighting.radiance(lights, torch.zeros(len(w), dtype=torch.long), w).numpy()
    error = np.abs(found - source.reshape(-1, 3)).mean() / source.mean()
    print(f"mean difference {error:.2%}")
    assert error < 0.02 and not lights.sun_irradiance.any()


def test_irradiance_is_the_integral():
    source, normals = picture(256), unit(40)
    lights = of([source])
    w = panoramas.directions(256).reshape(-1, 3)
    solid = np.repeat(np.sin((np.arange(256) + 0.5) / 256 * np.pi) * (np.pi / 256) ** 2, 512)
    wanted = (np.maximum(normals.numpy() @ w.T, 0) * solid) @ source.reshape(-1, 3) / np.pi
    trace = torch.einsum("biic->bc", lights.quadratic)
    found = (
        lights.constant + 2 / 3 * torch.einsum("ni,bic->nc", normals, lights.linear) + trace / 4
        + torch.einsum("ni,nj,bijc->nc", normals, normals, lights.quadratic) / 4
        + lights.residuals.diffuse(torch.zeros(40, dtype=torch.long), normals)
        + (normals @ lights.sun_direction[0].T).clamp(min=0) @ lights.sun_irradiance[0] / np.pi
    )  # fmt: skip
    assert np.abs(found.numpy() / wanted - 1).max() < 0.003


@pytest.mark.parametrize("roughness, limit", [(0.15, 0.02), (0.4, 0.03), (0.9, 0.03)])
@pytest.mark.parametrize("lamp, sharpness", [(HARD, 300.0), (600.0, 1500.0)])
def test_a_white_metal_shows_what_sampling_finds(roughness, limit, lamp, sharpness):
    """Its multiscatter makes up for all that its lobe loses, so that it shows the lobe's mean of the picture."""
    source, count, cosine = picture(256, lamp, sharpness), 40, 0.8
    lights = of([source])
    assert (lights.sun_irradiance[0].sum(-1) > 0).sum() > 4, "the lamp is many suns"
    normal = unit(count, 3)
    tangent = torch.nn.functional.normalize(torch.linalg.cross(normal, unit(count, 4)), dim=1)
    cell = (torch.arange(160, dtype=torch.float64) + 0.5) / 160
    cells = (a.reshape(-1) for a in torch.meshgrid(cell, cell, indexing="ij"))
    light, weights = ggx_tables._lobe(roughness, cosine, *cells)
    frame = torch.stack((tangent, torch.linalg.cross(normal, tangent), normal), dim=1)
    towards = torch.einsum("mk,nki->nmi", light.float(), frame)
    azimuth, polar = torch.atan2(towards[..., 1], towards[..., 0]), torch.acos(towards[..., 2].clamp(-1, 1))
    row = (polar / np.pi * 256).long().clamp(max=255)
    column = ((0.5 - azimuth / 2 / np.pi) * 512).long() % 512
    seen = torch.from_numpy(source).float()[row, column]
    wanted = torch.einsum("nmc,m->nc", seen, (weights[0] / weights[0].sum()).float())
    to_camera = cosine * normal + (1 - cosine**2) ** 0.5 * tangent
    flat = torch.zeros(count)
    gbuffer = GBuffer(
        view=flat.long(), pixel=torch.arange(count), position=normal, geometric_normal=normal, normal=normal,
        tangent=torch.cat((tangent, torch.ones(count, 1)), 1), uv=normal[:, :2], footprint=flat, to_camera=to_camera,
        back=flat > 0, coverage=torch.ones(1, 1, count),
    )  # fmt: skip
    metal = SurfaceMaps(torch.ones(count, 3), torch.ones(count), torch.full((count,), roughness))
    found = shade(gbuffer, metal, lights, ggx_tables.load())
    error = ((found - wanted).abs() / (wanted + 0.02 * wanted.mean())).mean()
    print(f"roughness {roughness}, lamp {lamp}: {error:.2%}")
    assert error < limit


@pytest.mark.parametrize("spread_in_alpha, limit", [(0.5, 0.01), (1.0, 0.03)])
def test_a_wide_sun_is_a_disc_of_point_suns(spread_in_alpha, limit):
    alpha = 0.04
    t = torch.linspace(0, 40 * alpha, 400, dtype=torch.float64)  # tangent of the half vector's angle
    rings, spokes = 60, 64
    radius = ((torch.arange(rings) + 0.5) / rings).sqrt() * 2**0.5 * spread_in_alpha * alpha / 2
    around = (torch.arange(spokes) + 0.5) / spokes * 2 * torch.pi
    x, y = (radius[:, None] * f(around) for f in (torch.cos, torch.sin))
    tan2 = (t[:, None] + x.reshape(-1)) ** 2 + y.reshape(-1) ** 2
    one = torch.ones((), dtype=torch.float64)
    wanted = shading._ggx(1 / (1 + tan2) ** 0.5, alpha * one).mean(1)
    n_h = 1 / (1 + t**2) ** 0.5
    found = shading._ggx(n_h, shading._widened(alpha * one, n_h, spread_in_alpha * alpha * one))
    error = (found / wanted - 1).abs().mean()
    print(f"spread {spread_in_alpha} alpha: {error:.2%}, {(found / wanted - 1).abs().max():.2%} at most")
    assert error < limit
    unwidened = shading._ggx(n_h, alpha * one)
    assert (unwidened / wanted - 1).abs().mean() > 2 * error


def test_a_compact_bright_spot_becomes_a_sun():
    source = picture(256, lamp=0.0)
    w = panoramas.directions(256)
    towards = np.array([0.0, -0.6, 0.8])
    spot = w @ towards > np.cos(np.radians(0.9))
    source[spot] += 20000.0
    solid = (np.sin((np.arange(256) + 0.5) / 256 * np.pi) * (np.pi / 256) ** 2)[:, None] * spot
    lights = of([source])
    apart = torch.rad2deg(torch.acos((lights.sun_direction[0] @ torch.tensor(towards).float()).clamp(-1, 1)))
    shining = lights.sun_irradiance[0].sum(-1) > 0
    assert apart[shining].max() < 1.0 and lights.sun_spread[0].max() < np.radians(0.9)
    assert np.allclose(lights.sun_irradiance[0].sum(0).numpy(), 20000 * solid.sum(), rtol=0.01)
    assert lights.residuals.blurred.abs().max() < 1, "the sun is still in the picture"


def test_lamps_keep_all_their_light_and_are_few():
    w = panoramas.directions(256)
    source = picture(256, lamp=0.0)
    for towards, radius_deg in (((0.0, -0.6, 0.8), 5.0), ((0.8, 0.6, 0.0), 2.0), ((-0.6, 0.0, -0.8), 0.5)):
        source[w @ np.array(towards) > np.cos(np.radians(radius_deg))] += 300.0
    solid = (np.sin((np.arange(512) + 0.5) / 512 * np.pi) * (np.pi / 512) ** 2)[:, None, None]
    fine = panoramas._resized(source, 512)
    rest, (direction, irradiance, spread) = panoramas._take_suns(fine)
    assert 6 < len(direction) <= panoramas.SUNS_AT_MOST and spread.max() < np.radians(2.5)
    assert np.allclose((rest * solid).sum((0, 1)) + irradiance.sum(0), (fine * solid).sum((0, 1)))
    assert rest.min() >= 0 and rest.max() < 1.1 and np.allclose(np.linalg.norm(direction, axis=1), 1)
    nothing = panoramas._take_suns(panoramas._resized(picture(256, lamp=0.0), 512))[1]
    assert len(nothing[0]) == 0 and nothing[0].shape == (0, 3) and nothing[2].shape == (0,)


def test_turning_moves_every_part_alike_and_exposure_scales_them():
    source = picture()
    plain, turned = of([source]), of([source], generator=torch.Generator().manual_seed(2))
    turn, gain = turned.residuals.turn[0], turned.residuals.gain[0]
    assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-5) and torch.linalg.det(turn) > 0.99
    w, view = unit(300, 7), torch.zeros(300, dtype=torch.long)
    assert torch.allclose(
        lighting.radiance(turned, view, w @ turn.T), gain * lighting.radiance(plain, view, w), rtol=2e-3, atol=2e-3
    )


def test_each_picture_looks_at_its_own_panorama():
    one, two = picture(), 2 * picture(lamp=0.0)
    both = of([one, two], which=(1, 0, 1))
    w = unit(50, 8)
    for index, source in ((0, two), (1, one)):
        alone = of([source])
        found = lighting.radiance(both, torch.full((50,), index), w)
        assert torch.allclose(found, lighting.radiance(alone, torch.zeros(50, dtype=torch.long), w), atol=1e-4)
    assert torch.equal(both[torch.tensor([1])].residuals.which, torch.tensor([0]))


@pytest.mark.parametrize("shape", [(64, 64, 3), (64, 128, 4), (4, 8, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(panoramas.PanoramaError, match="twice as wide"):
        panoramas.from_panorama(np.ones(shape))


def test_infinite_light_is_refused():
    source = picture()
    source[3, 3] = np.inf
    with pytest.raises(panoramas.PanoramaError, match="not numbers"):
        panoramas.from_panorama(source)


# --- files ----------------------------------------------------------------------------------------


def hdr_bytes(rgbe):
    """A run-length encoded Radiance file of (H, W, 4) bytes: each row as literal runs, a last run repeated."""
    height, width = rgbe.shape[:2]
    body = b""
    for row in rgbe:
        body += bytes((2, 2, width >> 8, width & 255))
        for part in range(4):
            values = row[:, part]
            body += bytes([width // 2]) + values[: width // 2].tobytes()
            body += bytes([128 + width - width // 2, values[-1]])
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width) + body


def test_a_radiance_file_is_read(tmp_path):
    rgbe = np.zeros((4, 16, 4), np.uint8)
    rgbe[..., 3] = 130
    rgbe[..., 0] = np.arange(4)[:, None] * 50
    rgbe[:, :8, 1] = 128
    rgbe[0, 0, 3] = 0
    rgbe[0, 8:, 3] = 130
    (tmp_path / "a.hdr").write_bytes(hdr_bytes(rgbe))
    found = panorama_files.read_panorama(tmp_path / "a.hdr")
    assert found.shape == (4, 16, 3) and not found[0, 0].any()
    assert found[2, 5].tolist() == [100 / 64, 128 / 64, 0.0]


def test_a_folder_becomes_environments(tmp_path):
    rgbe = np.full((16, 32, 4), 130, np.uint8)
    for name in ("b.hdr", "a.HDR"):
        (tmp_path / name).write_bytes(hdr_bytes(rgbe))
    (tmp_path / "notes.txt").write_text("no panorama")
    found = panorama_files.environments(tmp_path)
    assert list(found) == ["a.HDR", "b.hdr"]
    lights = panoramas.lights(list(found.values()), torch.tensor([1, 0]))
    grey = lighting.radiance(lights, torch.tensor([0, 1]), unit(2))
    assert torch.allclose(grey, torch.tensor(130 * 4 / 256), rtol=1e-3)
    (tmp_path / "c.exr").write_bytes(b"no")
    with pytest.raises(panoramas.PanoramaError, match=r"c\.exr"):
        panorama_files.environments(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_without_panoramas_says_so(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(panoramas.PanoramaError, match="Choose"):
        panorama_files.environments(tmp_path / name)


@pytest.mark.parametrize("cut", [30, 60, 100, 140])
def test_a_damaged_radiance_file_says_so(tmp_path, cut):
    whole = hdr_bytes(np.full((4, 16, 4), 128, np.uint8))
    (tmp_path / "a.hdr").write_bytes(whole[:cut])
    with pytest.raises(panoramas.PanoramaError, match=r"a\.hdr"):
        panorama_files.read_panorama(tmp_path / "a.hdr")


def test_an_exr_is_read_and_anything_else_is_refused(tmp_path):
    openexr = pytest.importorskip("OpenEXR")
    values = np.random.default_rng(1).random((8, 16, 3), dtype=np.float32)
    openexr.File({"compression": openexr.ZIP_COMPRESSION}, {"RGB": values}).write(str(tmp_path / "a.exr"))
    assert np.array_equal(panorama_files.read_panorama(tmp_path / "a.exr"), values)
    (tmp_path / "b.exr").write_bytes(b"\x89PNG....")
    with pytest.raises(panoramas.PanoramaError, match="neither"):
        panorama_files.read_panorama(tmp_path / "b.exr")
