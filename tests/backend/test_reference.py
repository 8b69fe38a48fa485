# SPDX-License-Identifier: GPL-3.0-or-later
"""A reference picture: its view comes to look like it, and the rest of the object is painted all the same."""

import json

import numpy as np
import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch
from PIL import ExifTags, Image
from test_families import CUBE
from test_oracle import smooth

from addon import protocol
from backend import __main__ as command
from backend import ggx_tables, lighting, optimisation, reference
from backend.rasterize import Triangles, gather, look

VIEW = {"azimuth_deg": 40.0, "elevation_deg": 15.0}
SIZE, SIDE, FINE = 40, 64, 112
GREEN = (0.2, 0.6, 0.25, 0.05, 0.5, 0.5, 0.5)


def picture_of(known, triangles, path, size=FINE):
    """Write what the view shows of `known` under an even white world, with alpha where the object is."""
    camera = reference.camera_of(VIEW)
    gbuffer = gather(triangles, camera, [look(triangles, camera, 0, size)])
    shown = oracle.render(known, gbuffer, lighting.uniform(1))
    flat = gbuffer.picture(torch.cat((shown, torch.ones(len(shown), 1)), dim=1), torch.zeros(1, size, size, 4))[0]
    Image.fromarray((flat * 255 + 0.5).to(torch.uint8).numpy(), "RGBA").save(path)
    return gbuffer, shown


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """What a run leaves whose model only knows green, with a reference picture of something else."""
    mesh = shapes.mesh_of(shapes.torus(16, 8))
    triangles = Triangles.of(mesh)
    path = tmp_path_factory.mktemp("reference") / "picture.png"
    known = oracle.from_image(oracle.image(smooth, 128))
    gbuffer, wanted = picture_of(known, triangles, path)
    model = oracle.Oracle(lambda points: torch.tensor(GREEN).expand(len(points.uv), 7), SIZE)
    plan = oracle.plan_for(steps=460, render_size=SIZE, finest=SIDE, views=2)
    state = optimisation.new_state(plan, torch.device("cpu"))
    pool = oracle.new_pool(mesh, SIZE, 0)
    pool.reference = reference.new(path, VIEW, triangles, SIZE)
    drawn, own = [], pool.draw
    pool.draw = lambda *arguments: drawn.append(own(*arguments)) or drawn[-1]
    tables = ggx_tables.load()
    while state.step < plan.steps:
        optimisation.step(state, plan, model, pool, tables)
    return mesh, gbuffer, wanted, oracle.baked(state, mesh, SIDE), pool, drawn


def test_the_reference_view_reaches_30_db_and_the_rest_is_painted(painted):
    mesh, gbuffer, wanted, (found, covered), pool, _ = painted
    inside = gbuffer.coverage.flatten()[gbuffer.pixel] == 1
    shown = oracle.render(oracle.from_image(found), gbuffer, lighting.uniform(1))
    quality = oracle.psnr(shown[inside], wanted[inside])
    # The far side, which the picture does not show.
    camera = reference.camera_of({"azimuth_deg": 220.0, "elevation_deg": -15.0})
    far = gather(pool.triangles, camera, [look(pool.triangles, camera, 0, FINE)])
    texel, shown_texel = ((points.uv * SIDE).long() @ torch.tensor([1, SIDE]) for points in (far, gbuffer))
    seen = torch.isin(texel, shown_texel)
    colour = oracle.from_image(found)(far)[~seen, :3]
    off = (colour - torch.tensor(GREEN[:3])).abs().mean(1)
    print(f"reference view {quality:.1f} dB; elsewhere {float(off.mean()):.3f} off green, {len(off)} points")
    assert quality > 30
    assert len(off) > 300 and off.mean() < 0.09, "the rest is not painted as the model wants it"


def test_other_views_are_let_in_nearest_azimuths_first(painted):
    pool, drawn = painted[4], painted[5]
    azimuth = pool.cameras.azimuth_deg

    def farthest(steps):
        return max(float(((azimuth[i] - 40 + 180) % 360 - 180).abs()) for step in steps for i in step)

    assert farthest(drawn[:20]) < 80 and farthest(drawn[:3]) < 52 and farthest(drawn[90:]) > 150
    assert all(drawn)
    ranges = [pool.reference.within_deg(progress)[1] for progress in (0.0, 0.15, 0.3, 1.0)]
    assert ranges == [45.0, 112.5, 180.0, 180.0]


def test_a_sheet_that_the_picture_shows_is_settled_from_behind_too():
    """Its two sides have one texture."""
    front = shapes.grid()
    upright = np.float32([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # to the front, as the picture sees it
    for turn in (upright, upright * np.float32([-1, -1, 1])[:, None]):
        triangles = Triangles.of(shapes.mesh_of(
            shapes.job_arrays(front["positions"] @ turn.T, front["normals"] @ turn.T, front["uvs"])
        ))  # fmt: skip
        camera = reference.camera_of({})
        gbuffer = gather(triangles, camera, [look(triangles, camera, 0, SIZE)])
        scene = reference.Scene(gbuffer, None, SIZE, 1.0, torch.zeros(3), cameras=camera)
        seen = reference.Reference(torch.zeros(1, 3, SIZE, SIZE), torch.ones(1, 1, SIZE, SIZE), scene)
        for azimuth in (0.0, 180.0):
            camera = reference.camera_of({"azimuth_deg": azimuth})
            points = gather(triangles, camera, [look(triangles, camera, 0, SIZE)])
            assert len(points.uv) > 300 and seen.covers(points).mean() > 0.8, azimuth


@pytest.mark.parametrize("behind", [(0, 0, 0), (0, 255, 0)])
def test_what_is_cut_out_has_no_say_in_the_outline(tmp_path, behind):
    """Most programs leave black where a picture is transparent; some what was there."""
    row, column = np.mgrid[:256, :256]
    cut = np.full((256, 256, 4), (*behind, 0), np.uint8)
    cut[(column - 128) ** 2 + (row - 128) ** 2 < 75**2] = 250, 200, 100, 255
    Image.fromarray(cut).save(tmp_path / "cut.png")
    made = reference.new(tmp_path / "cut.png", {}, Triangles.of(shapes.mesh_of(shapes.sphere(24, 12))), SIZE)
    partly = (made.share > 0) & (made.share < 1)
    found = made.picture.permute(0, 2, 3, 1)[partly[:, 0]] * 127.5 + 127.5
    assert partly.sum() > 100 and (found - torch.tensor([250.0, 200.0, 100.0])).abs().max() < 0.1


def test_the_view_is_the_one_that_was_said():
    camera = reference.camera_of({"azimuth_deg": 90.0, "elevation_deg": 0.0, "distance": 3.0, "fov_deg": 40.0})
    assert torch.allclose(camera.position, torch.tensor([[3.0, 0.0, 0.0]]), atol=1e-5)
    assert float(camera.tan_half_fov) == pytest.approx(np.tan(np.radians(20)))


def test_pictures_that_cannot_be_used_get_a_sentence_each(tmp_path):
    triangles = Triangles.of(shapes.mesh_of(shapes.torus(16, 8)))
    (tmp_path / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    (tmp_path / "text.jpg").write_text("hello")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (64, 48)).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")
    Image.new("RGBA", (64, 64)).save(tmp_path / "clear.png")
    for name, sentence in (
        ("noise.png", "noise.png cannot be read: it is damaged, or no PNG"),
        ("text.jpg", "text.jpg cannot be read"),
        ("cut.png", "cut.png cannot be read"),
        ("none.png", "There is no reference picture .*none.png."),
        ("wide.png", "wide.png is 64 x 48 pixels: cut it square."),
        ("tiny.png", "tiny.png is 8 pixels wide; it must have 16 to 8192."),
        ("clear.png", "does not show the object, or the picture is transparent there"),
    ):
        with pytest.raises(protocol.ProtocolError, match=sentence) as caught:
            reference.new(tmp_path / name, {}, triangles, 32)
        assert "\n" not in str(caught.value)
    for view, sentence in (
        ({"roll": 1.0}, "reference_view knows no “roll”; it knows azimuth_deg"),
        ({"fov_deg": 0.0}, "reference_view.fov_deg must lie between 1.0 and 120.0"),
        ({"distance": 0.5}, "reference_view.distance must lie between 1.01"),
    ):
        with pytest.raises(protocol.ProtocolError, match=sentence):
            protocol.TextureRequest(prompt="x", reference_view=view)


def test_sixteen_bits_of_grey_are_no_white(tmp_path):
    rising = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(rising).save(tmp_path / "grey.png")
    Image.fromarray(rising).save(tmp_path / "grey.tif")
    Image.fromarray(rising.astype(">u2")).save(tmp_path / "big.tif")
    for name in ("grey.png", "grey.tif", "big.tif"):
        read = reference.read(tmp_path / name)
        assert read.shape == (4, 32, 32) and (read[3] == 1).all()
        assert (read[:3] - torch.from_numpy(rising / np.float32(65535))).abs().max() < 1e-6
    Image.new("F", (32, 32), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(protocol.ProtocolError, match="float.tif has pixels of 32 bits, .*Save it as a PNG of 8 or 16"):
        reference.read(tmp_path / "float.tif")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_camera_that_was_held_aslant_does_not_turn_the_object(tmp_path):
    upright = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    exif, notes = Image.Exif(), Image.Exif()
    stored = {
        1: upright, 2: upright[:, ::-1], 3: np.rot90(upright, 2), 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, 3),
    }  # fmt: skip
    for orientation, pixels in stored.items():
        exif[ExifTags.Base.Orientation] = orientation
        for name in ("turned.jpg", "turned.png", "turned.tif"):
            Image.fromarray(pixels).save(tmp_path / name, exif=exif, quality=100)
            read = (reference.read(tmp_path / name)[:3].permute(1, 2, 0) * 255).numpy()
            assert np.abs(read - upright)[2::4, 2::4].max() < 60, (orientation, name)
    # Whatever else the notes hold, the picture is read.
    notes[ExifTags.Base.Orientation], notes[ExifTags.Base.Make], notes[ExifTags.Base.XResolution] = 6, "A maker", 72.5
    notes[ExifTags.Base.ISOSpeedRatings] = 100
    content, noise = notes.tobytes(), np.random.default_rng(0)
    for _ in range(500):
        odd = bytearray(content)
        odd[noise.integers(6, len(odd))] = noise.integers(0, 16)
        Image.new("RGB", (16, 16)).save(tmp_path / "odd.jpg", exif=bytes(odd))
        assert reference.read(tmp_path / "odd.jpg").shape == (4, 16, 16)


def test_the_command_takes_a_reference_into_the_job(tmp_path, capsys, monkeypatch):
    import toy_models

    model = toy_models.save("sd", tmp_path / "sd")
    (tmp_path / "cube.obj").write_text(CUBE)
    Image.new("RGB", (64, 64), (200, 40, 30)).save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"rubbish")

    def texture(*more):
        common = ["texture", tmp_path / "cube.obj", "--prompt", "red plastic", "--out", tmp_path / "out", "--steps",
                  "2", "--texture-size", "512", "--device", "cpu", "--model", model]  # fmt: skip
        code = command.main([str(argument) for argument in (*common, *more)])
        return code, capsys.readouterr().err

    code, told = texture("--reference", tmp_path / "red.png", "--reference-view=30,10")
    assert code == protocol.EXIT_OK, told
    request = json.loads((tmp_path / "out" / "job-0001" / "request.json").read_text())
    assert request["reference"] == "reference.png" and (tmp_path / "out" / "job-0001" / "reference.png").is_file()
    assert request["reference_view"] == {"azimuth_deg": 30.0, "elevation_deg": 10.0}
    code, told = texture("--reference", tmp_path / "broken.png")
    assert code == protocol.EXIT_BAD_REQUEST and "reference.png cannot be read: it is damaged" in told
    code, told = texture("--reference", tmp_path / "none.png")
    assert code == protocol.EXIT_BAD_REQUEST and "There is no reference picture" in told
    code, told = texture("--reference", tmp_path / "red.png", "--reference-view", "left")
    assert code == protocol.EXIT_USAGE and "“left” is no view; it is written AZIMUTH,ELEVATION" in told
