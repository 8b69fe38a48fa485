# SPDX-License-Identifier: GPL-3.0-or-later
"""Which UVs are usable, and new ones from a child process that may hang, crash or lie."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from backend import uv
from backend.box_unwrap import box_unwrap


def plane(cells: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """(2*cells*cells, 3, 2) float32 UVs of a square grid between `low` and `high`."""
    line = np.linspace(low, high, cells + 1)
    corner = np.stack(np.meshgrid(line, line), axis=-1)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]
    halves = [np.stack(half, axis=2).reshape(-1, 3, 2) for half in ((a, b, c), (a, c, d))]
    return np.concatenate(halves).astype(np.float32)


def turned(uvs: np.ndarray, angle_deg: float) -> np.ndarray:
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return ((uvs - 0.5) @ np.array([[c, s], [-s, c]]) * 0.7 + 0.5).astype(np.float32)


def torus(rings: int = 24, sides: int = 12) -> np.ndarray:
    """(F,3,3) float32: closed, smooth, of genus one; nothing an unwrap can leave in one piece."""
    u, v = plane(1)[:, :, 0], plane(1)[:, :, 1]
    i, j = np.meshgrid(np.arange(rings), np.arange(sides), indexing="ij")
    a = (i.reshape(-1, 1, 1) + u) * 2 * np.pi / rings
    b = (j.reshape(-1, 1, 1) + v) * 2 * np.pi / sides
    # Whole turns by their remainder, so that the seam closes exactly.
    a, b = a % (2 * np.pi - 1e-9), b % (2 * np.pi - 1e-9)
    points = np.stack([(2 + np.cos(b)) * np.cos(a), (2 + np.cos(b)) * np.sin(a), np.sin(b)], axis=-1)
    return points.reshape(-1, 3, 3).astype(np.float32)


def brute_force_count(uvs: np.ndarray, grid: int) -> np.ndarray:
    centre = (np.stack(np.meshgrid(np.arange(grid), np.arange(grid)), axis=-1) + 0.5) / grid
    count = np.zeros((grid, grid), int)
    for a, b, c in uvs.astype(np.float64):
        sides = []
        for p, q in ((a, b), (b, c), (c, a)):
            d, e = q - p, centre - p
            sides.append(d[0] * e[..., 1] - d[1] * e[..., 0])
        count += (np.min(sides, axis=0) > 0) | (np.max(sides, axis=0) < 0)
    return count


def test_coverage_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    uvs = rng.random((60, 3, 2)).astype(np.float32)
    assert np.array_equal(uv.coverage_count(uvs, 64), brute_force_count(uvs, 64))


@pytest.mark.parametrize("angle_deg", [0, 17, 45, 90])
def test_neighbours_never_claim_a_texel_together(angle_deg):
    count = uv.coverage_count(turned(plane(64), angle_deg))
    assert count.max() == 1
    assert abs(count.mean() - 0.49) < 0.002


def test_an_ordinary_layout_is_usable():
    report = uv.usability(turned(plane(40), 10))
    assert report == uv.UvReport(True, "", 0.0)


def test_overlap_counts_unless_mirrored_or_small():
    grid = turned(plane(40), 10)
    report = uv.usability(np.concatenate([grid, grid]))
    assert not report.usable and report.overlap > 0.99 and "overlap on 100%" in report.reason
    mirrored = np.concatenate([grid, grid[:, ::-1]])
    assert uv.usability(mirrored).usable
    # 32 and 8 of 3200 triangles lie twice: 1 % is the limit.
    assert not uv.usability(np.concatenate([grid, grid[:40]])).usable
    report = uv.usability(np.concatenate([grid, grid[:16]]))
    assert report.usable and 0.003 < report.overlap < 0.007


def test_overlap_of_triangles_smaller_than_a_texel_is_seen():
    fine = turned(plane(700), 10)
    assert not uv.usability(np.concatenate([fine, fine[:: len(fine) // 90_000]])).usable
    assert uv.usability(fine).usable


def test_more_area_than_a_tile_is_refused_at_once():
    many = np.tile(plane(1), (200_000, 1, 1))
    start = time.process_time()
    report = uv.usability(many)
    assert time.process_time() - start < 3
    assert not report.usable and report.overlap > 0.99


def test_tiles_are_shifted_whole():
    grid = plane(10, 0.1, 0.9)
    moved = grid + np.float32([3, -2])
    before = moved.copy()
    assert uv.usability(moved).usable
    assert np.array_equal(moved, before)
    assert uv.shift_tiles(moved) == 0
    assert np.allclose(moved, grid, atol=1e-5)
    # Islands of different tiles fall onto each other when an image repeats.
    assert not uv.usability(np.concatenate([grid, grid + np.float32([1, 0])])).usable


def test_the_border_has_a_tolerance_of_a_hundredth():
    assert uv.usability(plane(8, -0.009, 1.009)).usable
    report = uv.usability(plane(8, -0.02, 1.0))
    assert not report.usable and "cross the border" in report.reason
    assert "cross the border" in uv.usability(plane(8) * 2 + 0.3).reason
    assert "cross the border" in uv.usability(plane(8) + 1e6).reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_invalid_uvs_are_counted(value):
    grid = plane(5)
    grid[7, 1, 0] = value
    assert uv.usability(grid) == uv.UvReport(False, "1 of 50 triangles have no valid UVs.", 0.0)


def test_collapsed_uvs_are_not_usable():
    assert "no area" in uv.usability(np.zeros((10, 3, 2), np.float32)).reason
    assert "too small" in uv.usability(plane(5, 0.4999, 0.50005)).reason


def edges_together(triangles: np.ndarray, uvs: np.ndarray) -> float:
    """The share of edges whose triangles lie beside each other in the UVs as well."""
    edges = {}
    for triangle, corners in zip(triangles.tolist(), uvs.tolist(), strict=True):
        for k in range(3):
            key = frozenset((tuple(triangle[k]), tuple(triangle[k - 1])))
            edges.setdefault(key, []).append(frozenset((tuple(corners[k]), tuple(corners[k - 1]))))
    return sum(len(set(sides)) == 1 for sides in edges.values()) / len(edges)


def test_unwrapping_a_torus():
    pytest.importorskip("xatlas")
    triangles = torus()
    uvs = uv.unwrap(triangles)
    assert uvs.shape == (len(triangles), 3, 2) and uvs.dtype == np.float32
    assert uvs.min() >= 0 and uvs.max() <= 1
    assert uv.usability(uvs).usable
    a, b = uvs[:, 1] - uvs[:, 0], uvs[:, 2] - uvs[:, 0]
    assert (np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) > 1e-7).all()
    # Islands, not a soup in which no edge is shared.
    assert edges_together(triangles, uvs) > 0.7


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_unwrapping_does_not_depend_on_size(scale, capsys):
    pytest.importorskip("xatlas")
    assert uv.usability(uv.unwrap(torus(8, 6) * np.float32(scale))).usable
    assert "Simpler UVs" not in capsys.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_invalid_vertices_never_reach_xatlas(value, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("the child was started"))
    triangles = torus(8, 6)
    triangles[3, 0, 0] = value
    with pytest.raises(uv.UvError, match="not numbers"):
        uv.unwrap(triangles)
    with pytest.raises(uv.UvError, match="no faces"):
        uv.unwrap(triangles[:0])


LIES = {
    "silent": "",
    "wrong shape": "numpy.save(folder / 'uvs.npy', numpy.zeros((3, 3, 2)))",
    "not numbers": "numpy.save(folder / 'uvs.npy', numpy.full((144, 3, 2), numpy.nan))",
    "outside": "numpy.save(folder / 'uvs.npy', numpy.full((144, 3, 2), 1.5))",
    "rubbish": "(folder / 'uvs.npy').write_bytes(b'rubbish')",
    "crash": "import os; os.abort()",
    "error": "raise SystemExit('it broke')",
}


def replaced_child(monkeypatch, tmp_path, body: str) -> None:
    script = tmp_path / "child.py"
    script.write_text(f"import sys, time, numpy, pathlib\nfolder = pathlib.Path(sys.argv[1])\n{body}\n")
    monkeypatch.setattr(uv, "__file__", str(script))


def welded(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points, faces = np.unique(triangles.reshape(-1, 3), axis=0, return_inverse=True)
    return points, faces.reshape(-1, 3)


@pytest.mark.parametrize("lie", LIES)
def test_a_child_that_fails_is_found_out(lie, monkeypatch, tmp_path, capsys):
    replaced_child(monkeypatch, tmp_path, LIES[lie])
    triangles = torus(12, 6)
    with pytest.raises(uv.UvError, match="xatlas"):
        uv.run_xatlas(*welded(triangles))
    assert uv.usability(uv.unwrap(triangles)).usable
    assert "Simpler UVs are made instead" in capsys.readouterr().err


def test_a_child_that_hangs_is_killed_in_time(monkeypatch, tmp_path):
    replaced_child(monkeypatch, tmp_path, "time.sleep(60)")
    started = []
    popen = subprocess.Popen.__init__

    def remember(self, *args, **kwargs):
        popen(self, *args, **kwargs)
        started.append(self)

    monkeypatch.setattr(subprocess.Popen, "__init__", remember)
    start = time.monotonic()
    with pytest.raises(uv.UvError, match="made no UVs in 1 s"):
        uv.run_xatlas(*welded(torus(12, 6)), seconds=1)
    assert time.monotonic() - start < 10
    assert started[0].returncode is not None


def test_an_orphaned_child_ends_itself(tmp_path):
    (tmp_path / "xatlas.py").write_text("import time\ntime.sleep(60)\n")
    points, faces = welded(torus(12, 6))
    np.savez(tmp_path / "mesh.npz", points=points, faces=faces)
    child = subprocess.run(
        [sys.executable, uv.__file__, str(tmp_path), "1"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=30,
    )
    assert child.returncode == 1 and b"Timeout" in child.stderr


def test_the_sphere_that_crashes_xatlas_is_unwrapped():
    trimesh = pytest.importorskip("trimesh")
    triangles = trimesh.creation.icosphere(subdivisions=6).triangles.astype(np.float32)
    uvs = uv.unwrap(triangles)
    assert uvs.shape == (81920, 3, 2) and uv.usability(uvs).usable


def ribbon() -> np.ndarray:
    """A spiral stair of three turns: seen from above it lies on itself three times."""
    t = np.linspace(0, 6 * np.pi, 300)
    outer = np.stack([np.cos(t), np.sin(t), 0.05 * t], axis=-1)
    inner = outer * [0.6, 0.6, 1]
    halves = [(outer[:-1], outer[1:], inner[1:]), (outer[:-1], inner[1:], inner[:-1])]
    return np.concatenate([np.stack(h, axis=1) for h in halves]).astype(np.float32)


SHAPES = {
    "torus": (torus, 0.4),
    "ribbon": (ribbon, 0.3),
    "soup": (lambda: np.random.default_rng(0).normal(size=(3000, 3, 3)).astype(np.float32), 0.15),
    "one triangle": (lambda: np.array([[[0, 0, 5], [1, 0, 5], [0, 1, 5]]], np.float32), 0.4),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_unwrap_anything(shape):
    make, filled = SHAPES[shape]
    triangles = make()
    uvs = box_unwrap(triangles)
    assert uvs.shape == (len(triangles), 3, 2) and uvs.min() >= 0 and uvs.max() <= 1
    report = uv.usability(uvs)
    assert report.usable and report.overlap < 1e-3
    assert (uv.coverage_count(uvs) > 0).mean() > filled
    a, b = (uvs[:, k].astype(np.float64) - uvs[:, 0] for k in (1, 2))
    doubled = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    assert (doubled > -1e-9).all(), "a triangle is mirrored"
    # No stretching beyond what a projection along the nearest axis and its neighbours' costs.
    area = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    density = doubled / area
    assert density.max() / np.median(density) < 2 and np.quantile(density, 0.01) / np.median(density) > 0.25


@pytest.mark.parametrize("noise", [0, 0.015], ids=["smooth", "rough"])
def test_boxes_keep_a_surface_in_few_pieces(noise):
    triangles = torus(96, 48)
    points, faces = welded(triangles)
    triangles = (points + np.random.default_rng(0).normal(size=points.shape) * noise).astype(np.float32)[faces]
    together = edges_together(triangles, box_unwrap(triangles))
    print(f"{together:.3f} of the edges are no seams")
    assert together > 0.9


def test_large_meshes_do_not_wait_for_xatlas(monkeypatch):
    monkeypatch.setattr(uv, "XATLAS_TRIANGLES", 100)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("the child was started"))
    assert uv.usability(uv.unwrap(torus(12, 6))).usable


def test_a_mesh_without_any_area_ends_in_a_sentence(monkeypatch):
    monkeypatch.setattr(uv, "XATLAS_TRIANGLES", 0)
    with pytest.raises(uv.UvError, match="No usable UVs could be made. .* Unwrap the mesh in Blender"):
        uv.unwrap(np.zeros((4, 3, 3), np.float32))
