# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps on the disk: filled between the islands, rounded, and all of them or none."""

import errno
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from backend import map_files, maps
from backend.shading import srgb_to_linear


def some_maps(size: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(size, size, channels, generator=generator) * (0.2 if name == "normal" else 1)
        + (torch.tensor([0.4, 0.4, 0.79]) if name == "normal" else 0)
        for name, channels in maps.CHANNELS.items()
    }


def brute_force_nearest(values: np.ndarray, covered: np.ndarray) -> np.ndarray:
    at = np.argwhere(covered)
    height, width = covered.shape
    y, x = np.mgrid[:height, :width]
    distance = (y[..., None] - at[:, 0]) ** 2 + (x[..., None] - at[:, 1]) ** 2
    nearest = at[distance.argmin(axis=2)]
    return values[nearest[..., 0], nearest[..., 1]]


def test_files_hold_the_maps_with_row_0_at_the_top(tmp_path):
    made = some_maps()
    paths = maps.write_maps(tmp_path / "maps", made, torch.ones(32, 32, dtype=torch.bool))
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [f"{n}.png" for n in sorted(maps.CHANNELS)]
    for name, path in paths.items():
        with Image.open(path) as image:
            assert image.mode == ("RGB" if maps.CHANNELS[name] == 3 else "L"), name
            read = np.asarray(image).reshape(32, 32, -1) / 255
        expected = maps.unit_normals(made[name]) if name == "normal" else made[name]
        assert np.abs(read - expected.numpy()).max() <= 0.5 / 255 + 1e-6, name


def test_values_are_rounded_and_clamped():
    values = torch.tensor([[-1.0, 0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.0, 7.0]])[..., None]
    assert map_files.quantise(values).tolist() == [[0, 0, 0, 1, 255, 255, 255]]


def test_normals_have_unit_length_after_filling(tmp_path):
    made = some_maps()
    made["normal"][3, 3] = 0.5  # no direction at all
    covered = torch.zeros(32, 32, dtype=torch.bool)
    covered[2:9, 2:9] = covered[20:30, 20:30] = True
    path = maps.write_maps(tmp_path, {"normal": made["normal"]}, covered)["normal"]
    with Image.open(path) as image:
        vectors = np.asarray(image) / 255 * 2 - 1
    assert np.abs(np.linalg.norm(vectors, axis=2) - 1).max() < 0.015
    assert vectors[3, 3, 2] > 0.99


def test_numpy_and_torch_are_alike(tmp_path):
    made = some_maps()
    covered = torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) < 0.5
    a = maps.write_maps(tmp_path / "a", made, covered)
    b = maps.write_maps(tmp_path / "b", {n: m.numpy() for n, m in made.items()}, covered.numpy())
    assert all(a[name].read_bytes() == b[name].read_bytes() for name in made)


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (1, 9)])
def test_covered_texels_stay_and_no_hole_remains(size):
    generator = torch.Generator().manual_seed(2)
    values = torch.rand(*size, 3, generator=generator)
    covered = torch.rand(*size, generator=generator) < 0.1
    covered[0, 0] = True
    filled = maps.fill_uncovered(torch.where(covered[..., None], values, -100.0), covered)
    assert torch.equal(filled[covered], values[covered])
    low, high = values[covered].amin(dim=0), values[covered].amax(dim=0)
    assert (filled >= low - 1e-5).all() and (filled <= high + 1e-5).all()


def test_a_constant_fills_everything():
    covered = torch.zeros(50, 70, dtype=torch.bool)
    covered[13, 57] = True
    filled = maps.fill_uncovered(torch.full((50, 70, 1), 0.3), covered)
    assert torch.allclose(filled, torch.tensor(0.3), atol=1e-6)


def test_gutters_take_the_colour_of_the_nearest_island():
    size = 64
    covered = np.zeros((size, size), bool)
    values = np.zeros((size, size, 1), np.float32)
    for index, (y, x) in enumerate([(2, 2), (2, 36), (34, 4), (35, 35)]):
        covered[y : y + 22, x : x + 22] = True
        values[y : y + 22, x : x + 22] = index / 3
    filled = maps.fill_uncovered(torch.from_numpy(values), torch.from_numpy(covered)).numpy()
    nearest = brute_force_nearest(values, covered)
    near = torch.nn.functional.max_pool2d(torch.from_numpy(covered).float()[None, None], 9, 1, 4)[0, 0].numpy() > 0
    close = ~covered & near
    off = np.abs(filled - nearest)[close]
    print(f"off by {off.mean():.4f} in the mean, {off.max():.3f} at most, on {close.sum()} texels")
    assert off.mean() < 0.005
    assert off.max() < 0.1


def test_wide_gutters_are_not_mixed_near_an_island():
    covered = torch.zeros(128, 128, dtype=torch.bool)
    covered[8:120, 4:36] = covered[8:120, 93:125] = True
    values = torch.zeros(128, 128, 1)
    values[:, 64:] = 1.0
    row = maps.fill_uncovered(values, covered)[64, :, 0]
    print([round(x, 3) for x in row[36:93].tolist()])
    assert row[36:49].max() < 0.01 and row[80:93].min() > 0.99
    assert (row.diff() >= -1e-6).all()


def test_mips_of_a_filled_map_show_no_background():
    # The reason for the filling: averaged down 16 times, an island's texels hold its colour alone.
    covered = torch.zeros(256, 256, dtype=torch.bool)
    covered[19:203, 37:177] = True
    values = torch.where(covered[..., None], 0.8, 0.0)
    filled = maps.fill_uncovered(values, covered)
    mip = torch.nn.functional.avg_pool2d(filled.permute(2, 0, 1)[None], 16)
    assert torch.allclose(mip, torch.tensor(0.8), atol=1e-5)


@pytest.mark.parametrize("level", range(6))
def test_the_gutter_serves_every_mip(level):
    """A bilinear lookup in mip `level` reads up to 1.5 of its texels beside an island. Where there is that much room on
    either side, nothing of the neighbour comes in: less than a step of 8 bits; with a little more room, none at all.
    """
    size = 512
    for gap, most in ((3 * 2**level, 1 / 255), (4 * 2**level, 1e-6)):
        for offset in (0, 1, 3, 2**level - 1):
            edge = (size - gap) // 2 + offset
            covered = torch.zeros(size, size, dtype=torch.bool)
            covered[40 + offset : size - 37, 20:edge] = covered[40 + offset : size - 37, edge + gap : size - 20] = True
            values = torch.zeros(size, size, 1)
            values[:, edge + gap // 2 :] = 1.0
            filled = maps.fill_uncovered(torch.where(covered[..., None], values, -5.0), covered)
            mip = torch.nn.functional.avg_pool2d(filled.permute(2, 0, 1)[None], 2**level)
            centre = (torch.arange(size) + 0.5) / size * 2 - 1
            grid = torch.stack(torch.meshgrid(centre, centre, indexing="ij")[::-1], dim=-1)[None]
            read = torch.nn.functional.grid_sample(mip, grid, padding_mode="border", align_corners=False)[0, 0]
            off = float((read - values[..., 0]).abs()[covered].max())
            print(f"level {level}, {gap} texels apart: off by {off:.1e}")
            assert off <= most


@pytest.mark.parametrize(("file_format", "bits", "step"), [
    ("png", 8, 1 / 255), ("png", 16, 1 / 65535), ("exr", 16, 2e-3), ("exr", 32, 1e-6),
])  # fmt: skip
def test_every_format_holds_the_maps(file_format, bits, step, tmp_path):
    made = some_maps()
    covered = torch.ones(32, 32, dtype=torch.bool)
    paths = maps.write_maps(tmp_path, made, covered, file_format=file_format, bits=bits)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{file_format}" for name in maps.CHANNELS}
    for name, path in paths.items():
        assert maps.find_map(tmp_path, name) == path
        wanted = (maps.unit_normals(made[name]) if name == "normal" else made[name]).numpy()
        read = maps.read_map(path)
        assert read.shape == (wanted.shape if maps.CHANNELS[name] == 3 else wanted.shape[:2])
        assert np.abs(read.reshape(wanted.shape) - wanted).max() <= 0.5 * step + 2e-6, name
        if file_format == "png":  # as others see it
            with Image.open(path) as image:
                assert image.size == (32, 32)
                assert image.mode == ("RGB" if maps.CHANNELS[name] == 3 else "I;16" if bits == 16 else "L")
                seen = np.asarray(image).reshape(wanted.shape)
                whole = 65535 if image.mode == "I;16" else 255
                assert np.abs(seen / whole - wanted).max() <= 1 / 255
        else:
            import OpenEXR

            with OpenEXR.File(str(path)) as image:
                (channel,) = image.channels().items()
                assert channel[0] == ("RGB" if maps.CHANNELS[name] == 3 else "Y")
                assert channel[1].pixels.dtype == (np.float16 if bits == 16 else np.float32)
                linear = torch.from_numpy(wanted)
                linear = srgb_to_linear(linear) if name == "base_color" else linear
                assert np.abs(channel[1].pixels.reshape(wanted.shape) - linear.numpy()).max() < 1e-3


def test_the_usual_depth_of_a_format(tmp_path):
    covered = torch.ones(32, 32, dtype=torch.bool)
    eight = maps.write_maps(tmp_path, some_maps(), covered)["base_color"].read_bytes()
    assert maps.write_maps(tmp_path, some_maps(), covered, bits=8)["base_color"].read_bytes() == eight
    with pytest.raises(ValueError, match="no exr of 8 bits"):
        maps.write_maps(tmp_path, some_maps(), covered, file_format="exr", bits=8)
    with pytest.raises(FileNotFoundError, match="no map base_color"):
        maps.find_map(tmp_path / "none", "base_color")


def test_sixteen_bits_of_a_foreign_png_are_refused(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "metallic.png")
    with pytest.raises(ValueError, match="was not written by Patina"):
        maps.read_map(tmp_path / "metallic.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_map_that_another_program_wrote_anew_is_the_same_map(mode, tmp_path):
    """As oxipng and pngquant do it: fewer bits, a palette, a grey with alpha; what counts are the texels' values."""
    grey = np.where(np.arange(64).reshape(8, 8) % 3 == 0, 255, 0).astype(np.uint8)
    wanted = np.stack((grey, grey[::-1], grey.T), axis=-1) if mode in ("P", "RGB", "RGBA") else grey
    Image.fromarray(wanted).convert(mode).save(tmp_path / "base_color.png")
    read = maps.read_map(tmp_path / "base_color.png")
    assert read.dtype == np.float32 and read.shape in (wanted.shape, (*wanted.shape, 3))
    assert (read == (wanted if read.ndim == wanted.ndim else wanted[..., None]) / np.float32(255)).all()


@pytest.mark.parametrize("cut", [20, 60, 400])
def test_sixteen_bits_that_are_cut_off_are_told(cut, tmp_path):
    covered = torch.ones(32, 32, dtype=torch.bool)
    path = maps.write_maps(tmp_path, some_maps(), covered, bits=16)["base_color"]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises((ValueError, OSError)):
        maps.read_map(path)


def test_an_openexr_of_another_program(tmp_path):
    import OpenEXR

    def write(name, channels):
        with OpenEXR.File({"type": OpenEXR.scanlineimage}, channels) as opened:
            opened.write(str(tmp_path / name))

    flat = np.full((8, 8), 0.25, np.float32)
    write("alpha.exr", {"RGBA": np.stack((flat, flat, flat, 2 * flat), axis=-1)})
    write("depth.exr", {"Z": flat})
    (tmp_path / "text.exr").write_text("no picture")
    assert (maps.read_map(tmp_path / "alpha.exr") == np.full((8, 8, 3), 0.25)).all()
    with pytest.raises(ValueError, match="depth.exr has the channels Z; a map has RGB or Y."):
        maps.read_map(tmp_path / "depth.exr")
    with pytest.raises(ValueError, match="text.exr is damaged or no OpenEXR."):
        maps.read_map(tmp_path / "text.exr")


def test_values_that_are_no_maps_are_refused(tmp_path):
    made, covered = some_maps(), torch.ones(32, 32, dtype=torch.bool)
    with pytest.raises(ValueError, match="'albedo' is no map"):
        maps.write_maps(tmp_path, {"albedo": made["base_color"]}, covered)
    with pytest.raises(ValueError, match=r"metallic has the shape \(32, 32, 3\)"):
        maps.write_maps(tmp_path, {"metallic": made["base_color"]}, covered)
    with pytest.raises(ValueError, match="roughness holds values that are not numbers"):
        maps.write_maps(tmp_path, {"roughness": made["roughness"] * float("nan")}, covered)
    with pytest.raises(ValueError, match="No texel of the maps is covered"):
        maps.write_maps(tmp_path, made, ~covered)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_maps_whole(tmp_path, monkeypatch):
    covered = torch.ones(32, 32, dtype=torch.bool)
    paths = maps.write_maps(tmp_path, some_maps(), covered)
    before = {path: path.read_bytes() for path in paths.values()}
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        maps.write_maps(tmp_path, {n: 1 - m for n, m in some_maps().items()}, covered)
    assert caught.value.errno == errno.ENOSPC
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_speed_at_1024(tmp_path):
    made = some_maps(1024)
    y, x = torch.meshgrid(torch.arange(1024) % 64, torch.arange(1024) % 128, indexing="ij")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting threads would be counted
    try:
        start = time.process_time()
        maps.write_maps(tmp_path, made, (y > 10) & (x > 10))
        seconds = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    print(f"{seconds:.2f} s")
    assert seconds < 4  # about 0.5 on a quiet core
