# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that begin from maps: outside the mask and in locked maps nothing changes, inside it does."""

from dataclasses import replace

import numpy as np
import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import test_texturing
import torch
from PIL import Image

from addon import protocol
from backend import held, maps, material, optimisation, planning
from backend.mesh import load_job_mesh

REQUEST = protocol.TextureRequest(
    prompt="red plastic", texture_size=512, steps=10, views=2, device="cpu", start_maps=True, strength=0.5
)
RED = (0.8, 0.2, 0.1, 0.05, 0.4, 0.5, 0.5)


class Shelf:
    def get(self, name, device):
        return oracle.Oracle(lambda gbuffer: torch.tensor(RED).expand(gbuffer.uv.shape[0], 7), 32)


def start_maps(size=512):
    """Noisy maps as 8-bit texels, normals not of unit length: what is kept must be kept whatever it is."""
    noise = np.random.default_rng(0)
    return {
        "base_color": noise.integers(0, 256, (size, size, 3), np.uint8),
        "metallic": noise.integers(0, 256, (size, size), np.uint8),
        "roughness": noise.integers(0, 256, (size, size), np.uint8),
        "normal": noise.integers((100, 100, 180), (150, 150, 256), (size, size, 3)).astype(np.uint8),
    }


def new_job(folder, face_mask=None, painted=None, size=512):
    job = protocol.JobFolder(folder)
    arrays = shapes.torus(16, 8)
    if face_mask is not None:
        arrays["face_mask"] = face_mask(arrays)
    shapes.write_job_mesh(job.mesh, arrays)
    job.start.mkdir()
    for name, values in start_maps(size).items():
        Image.fromarray(values).save(job.start / f"{name}.png")
    if painted is not None:
        Image.fromarray(painted).save(job.mask)
    return job


def run(job, request=REQUEST, stop_at=None, why="pause"):
    return test_texturing.run(job, request, stop_at, why, Shelf())


def made(job, event):
    return {name: np.asarray(Image.open(job.path / path)) for name, path in event.maps.items()}


def left_half(arrays):
    return arrays["uvs"][..., 0].mean(1) < 0.5


@pytest.mark.parametrize("border", [0.0, 0.2])
def test_outside_of_a_face_mask_not_one_texel_changes(tmp_path, border):
    job = new_job(tmp_path / "job", left_half)
    event = run(job, replace(REQUEST, strength=1.0, mask_border=border))[-1]
    assert isinstance(event, protocol.Done)
    before, after = start_maps(), made(job, event)
    for name, values in after.items():
        assert np.array_equal(values[:, 256:], before[name][:, 256:]), name
        inside = values[:, :256].reshape(512, -1) != before[name][:, :256].reshape(512, -1)
        assert inside.mean() > 0.5, name
    if border:
        near = np.abs(after["roughness"].astype(int) - before["roughness"])
        assert near[:, 250:256].mean() < 0.3 * near[:, 100:140].mean(), "the border should be soft"


def test_a_painted_mask_and_locked_maps(tmp_path):
    painted = np.zeros((256, 256), np.uint8)
    painted[64:128, 64:128] = 255
    job = new_job(tmp_path / "job", painted=painted)
    after = made(job, run(job, replace(REQUEST, locked_maps=["normal", "metallic"]))[-1])
    before = start_maps()
    for name, values in after.items():
        changed = values.reshape(512, 512, -1) != before[name].reshape(512, 512, -1)
        far = np.ones((512, 512), bool)
        far[126:258, 126:258] = False
        assert not changed[far].any(), name
        assert changed.any() == (name not in ("normal", "metallic")), name


def test_less_strength_changes_less_and_begins_where_the_maps_are(tmp_path):
    before = start_maps()["base_color"].astype(float)
    pooled = before.reshape(32, 16, 32, 16, 3).mean((1, 3))
    moved = []
    for strength in (0.2, 1.0):
        job = new_job(tmp_path / str(strength))
        events = run(job, replace(REQUEST, strength=strength))
        assert events[0].resumed_from_step == 0 and isinstance(events[-1], protocol.Done)
        after = made(job, events[-1])["base_color"].astype(float).reshape(32, 16, 32, 16, 3).mean((1, 3))
        moved.append(np.abs(after - pooled).mean())
    assert moved[0] < 6 < 12 < moved[1], moved


def test_a_paused_refine_ends_as_one_that_was_not(tmp_path):
    whole = new_job(tmp_path / "whole", left_half)
    parted = new_job(tmp_path / "parted", left_half)
    request = replace(REQUEST, mask_border=0.1)
    wanted = made(whole, run(whole, request)[-1])
    assert isinstance(run(parted, request, stop_at=2)[-1], protocol.Paused)
    events = run(parted, request)
    assert events[0].resumed_from_step == 7
    shares = [event.fraction for event in events if isinstance(event, protocol.Progress)]
    assert abs(shares[0] - 0.97 * 2 / 5) < 1e-6 and shares == sorted(shares)
    for name, values in made(parted, events[-1]).items():
        assert np.array_equal(values, wanted[name]), name


def test_the_optimiser_sees_what_is_held(tmp_path):
    job = new_job(tmp_path / "job", left_half)
    mesh = load_job_mesh(job.mesh)
    start = held.read_start(job)
    kept = held.hold(replace(REQUEST, locked_maps=["roughness"]), job, mesh, start, 512, torch.device("cpu"))
    texels = material.texels(mesh, 64)

    class Points:
        uv = torch.tensor([[0.8, 0.3], [0.2, 0.3]])
        footprint = torch.full((2,), 1 / 512)

    values = kept.mix(torch.full((2, 7), 0.5), Points)
    row, column = int((1 - 0.3) * 512), int(0.8 * 512)
    near = start["base_color"][row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3)
    assert (near.amin(0) <= values[0, :3]).all() and (values[0, :3] <= near.amax(0)).all()
    assert torch.allclose(values[1, [0, 1, 2, 3, 5, 6]], torch.full((6,), 0.5))
    assert kept.share(Points)[:, 4].abs().max() == 0 and kept.share(Points)[0].abs().max() == 0
    assert len(texels.index)


def test_maps_that_begin_from_maps_show_them(tmp_path):
    smooth = torch.linspace(0.2, 0.8, 512)[:, None, None].expand(512, 512, 3).contiguous()
    flat = torch.full((512, 512, 1), 0.3)
    normal = torch.tensor([0.5, 0.5, 1.0]).expand(512, 512, 3)
    start = {"base_color": smooth, "metallic": flat, "roughness": 1 - flat, "normal": normal}
    state = optimisation.new_state(planning.make_plan(REQUEST, Shelf().get("", "")), torch.device("cpu"))
    held.begin_from(state, start)
    job = new_job(tmp_path / "job")
    images = material.bake(state.average, material.texels(load_job_mesh(job.mesh), 512))
    assert (images["base_color"][2:-2, 2:-2] - smooth[2:-2, 2:-2]).abs().max() < 0.01
    assert (images["metallic"] - 0.3).abs().max() < 0.01 and (images["normal"] - normal).abs().max() < 0.02


def test_start_maps_may_have_an_alpha_or_a_palette(tmp_path):
    job = new_job(tmp_path / "job", size=8)
    before = held.read_start(job)
    for name, mode in (("base_color", "RGBA"), ("metallic", "LA"), ("roughness", "P")):
        image = Image.open(job.start / f"{name}.png")
        image.convert(mode).save(job.start / f"{name}.png")
    Image.fromarray(np.full((8, 8), 128, np.uint8)).convert("LA").save(job.start / "normal.png")
    after = held.read_start(job)
    for name in ("base_color", "metallic", "roughness"):
        assert torch.equal(before[name], after[name]), name
    assert after["normal"].shape == (8, 8, 3) and (after["normal"] == 128 / 255).all()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda job: (job.start / "normal.png").unlink(), "no map normal"),
        (lambda job: (job.start / "metallic.png").write_bytes(b"no picture"), "metallic.png"),
        (lambda job: Image.new("F", (8, 8)).save(job.start / "metallic.png", format="TIFF"), "neither 8 nor 16 bits"),
        (lambda job: Image.fromarray(np.zeros((8, 8), np.uint8)).save(job.mask), "nothing to change"),
        (lambda job: job.mask.write_bytes(b"x"), "mask"),
        (lambda job: Image.fromarray(np.zeros((8, 8), np.uint8)).save(job.start / "roughness.png"), "one size"),
    ],
)
def test_what_cannot_be_begun_from_is_told(tmp_path, spoil, sentence):
    job = new_job(tmp_path / "job")
    spoil(job)
    with pytest.raises(protocol.ProtocolError, match=sentence):
        run(job)


def test_written_texels_that_are_final_are_not_touched(tmp_path):
    given = {"normal": torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(1))}
    final = torch.zeros(8, 8, dtype=torch.bool)
    final[:4] = True
    paths = maps.write_maps(tmp_path, given, torch.ones(8, 8, dtype=torch.bool), as_given={"normal": final})
    written = np.asarray(Image.open(paths["normal"])).astype(int)
    wanted = (given["normal"].numpy() * 255 + 0.5).astype(int)
    assert (written[:4] == wanted[:4]).all() and (written[4:] != wanted[4:]).any()
