# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's mesh.npz: what is accepted, what is repaired, and the sentence for everything else."""

import io
import time
import zipfile

import numpy as np
import pytest

from addon.protocol import MESH_ARRAYS
from backend import mesh


def some_arrays(count: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def units(*shape):
        vectors = rng.normal(size=shape)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    sign = rng.choice([-1.0, 1.0], size=(count, 3, 1))
    return {
        "positions": (rng.normal(size=(count, 3, 3)) * 3 + 5).astype(np.float32),
        "normals": units(count, 3, 3).astype(np.float32),
        "tangents": np.concatenate([units(count, 3, 3), sign], axis=2).astype(np.float32),
        "uvs": rng.random((count, 3, 2)).astype(np.float32),
        "material_slot": rng.integers(0, 3, count).astype(np.int32),
        "face_mask": rng.random(count) < 0.8,
    }


def refusal(tmp_path, **changed) -> str:
    """The sentence with which a mesh.npz is refused when the given arrays are put into it."""
    arrays = {name: array for name, array in (some_arrays() | changed).items() if array is not None}
    np.savez(tmp_path / "mesh.npz", **arrays)
    with pytest.raises(mesh.MeshError) as caught:
        mesh.load_job_mesh(tmp_path / "mesh.npz")
    return str(caught.value)


def test_a_mesh_comes_back_in_the_unit_sphere(tmp_path):
    arrays = some_arrays()
    mesh.save_job_mesh(tmp_path / "mesh.npz", arrays)
    loaded = mesh.load_job_mesh(tmp_path / "mesh.npz")
    distance = np.linalg.norm(loaded.positions.astype(np.float64), axis=2)
    assert 0.9999 < distance.max() <= 1
    assert np.allclose(loaded.positions * loaded.radius + loaded.center, arrays["positions"], atol=1e-4)
    for name in ("normals", "tangents", "uvs"):
        assert np.allclose(getattr(loaded, name), arrays[name], atol=1e-6), name
    for name in ("material_slot", "face_mask"):
        assert np.array_equal(getattr(loaded, name), arrays[name]), name
    for name, (behind, dtype) in MESH_ARRAYS.items():
        array = getattr(loaded, name)
        assert array.shape == (20, *behind) and array.dtype == np.dtype(dtype), name
    assert loaded.triangles == 20
    assert [p.name for p in tmp_path.iterdir()] == ["mesh.npz"]


def test_rounding_leaves_no_vertex_outside_of_the_sphere(tmp_path):
    for seed in range(30):
        mesh.save_job_mesh(tmp_path / "mesh.npz", some_arrays(seed=seed))
        loaded = mesh.load_job_mesh(tmp_path / "mesh.npz")
        assert np.linalg.norm(loaded.positions.astype(np.float64), axis=2).max() <= 1


@pytest.mark.parametrize(("scale", "shift"), [(1e-12, 0), (1e-3, 0), (1e12, 0), (1, 1e4)])
def test_any_size_and_place(tmp_path, scale, shift):
    arrays = some_arrays()
    arrays["positions"] = (arrays["positions"] * scale + shift).astype(np.float32)
    mesh.save_job_mesh(tmp_path / "mesh.npz", arrays)
    loaded = mesh.load_job_mesh(tmp_path / "mesh.npz")
    assert 0.999 < np.linalg.norm(loaded.positions, axis=2).max() <= 1
    back = loaded.positions.astype(np.float64) * loaded.radius + loaded.center
    assert np.allclose(back, arrays["positions"], rtol=1e-5, atol=1e-5 * scale)


def test_vertices_that_are_not_numbers(tmp_path):
    for value in (np.nan, np.inf):
        positions = some_arrays()["positions"]
        positions[3, 1, 2] = positions[7, 0, 0] = value
        sentence = refusal(tmp_path, positions=positions)
        assert "2 of the mesh's 20 triangles have a corner whose position is not a number" in sentence
        assert "Delete those vertices" in sentence
    uvs = some_arrays()["uvs"]
    uvs[0, 0, 0] = np.nan
    assert "1 of the mesh's 20 triangles has a UV coordinate" in refusal(tmp_path, uvs=uvs)


def test_opposite_infinities_do_not_hide(tmp_path):
    positions = some_arrays()["positions"]
    positions[0, 0], positions[1, 0] = np.inf, -np.inf
    assert "2 of the mesh's 20 triangles" in refusal(tmp_path, positions=positions)


def test_meshes_without_a_surface(tmp_path):
    nothing = {name: array[:0] for name, array in some_arrays().items()}
    assert "has no faces" in refusal(tmp_path, **nothing)
    assert "no size" in refusal(tmp_path, positions=np.full((20, 3, 3), 7, np.float32))
    lines = np.repeat(some_arrays()["positions"][:, :1], 3, axis=1)
    assert "No face of the mesh has an area" in refusal(tmp_path, positions=lines)
    assert "too large" in refusal(tmp_path, positions=some_arrays()["positions"] * np.float32(1e25))
    assert "face mask is empty" in refusal(tmp_path, face_mask=np.zeros(20, bool))


def test_wrong_arrays_are_named(tmp_path):
    arrays = some_arrays()
    assert "'uvs' is missing" in refusal(tmp_path, uvs=None)
    assert "'extra' is unknown" in refusal(tmp_path, extra=np.zeros(3))
    assert "uvs holds float64 instead of float32" in refusal(tmp_path, uvs=arrays["uvs"].astype(np.float64))
    assert "uvs has the shape (20, 3, 3) instead of (20, 3, 2)" in refusal(tmp_path, uvs=arrays["normals"])
    assert "face_mask has the shape (19,) instead of (20)" in refusal(tmp_path, face_mask=arrays["face_mask"][:19])
    fortran = np.asfortranarray(arrays["normals"])
    assert "normals is stored in the wrong order" in refusal(tmp_path, normals=fortran)
    with pytest.raises(mesh.MeshError, match="positions is missing"):
        mesh.save_job_mesh(tmp_path / "x.npz", {k: v for k, v in arrays.items() if k != "positions"})
    with pytest.raises(mesh.MeshError, match="material_slot holds int64"):
        mesh.save_job_mesh(tmp_path / "x.npz", arrays | {"material_slot": np.zeros(20, np.int64)})
    assert not (tmp_path / "x.npz").exists()


class Pickled:
    def __reduce__(self):
        return (pytest.fail, ("the mesh was unpickled",))


def test_nothing_is_unpickled(tmp_path):
    bad = np.empty(20, object)
    bad[:] = [Pickled()] * 20
    assert "face_mask holds object" in refusal(tmp_path, face_mask=bad)


def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path):
    arrays = some_arrays()

    def write(count: int, content: bytes) -> None:
        with zipfile.ZipFile(tmp_path / "mesh.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                block = io.BytesIO()
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (count, *array.shape[1:])}
                np.lib.format.write_array_header_1_0(block, header)
                archive.writestr(f"{name}.npy", block.getvalue() + content)

    write(10**12, b"")
    with pytest.raises(mesh.MeshError, match="at most 20,000,000 can be textured"):
        mesh.load_job_mesh(tmp_path / "mesh.npz")
    write(19_000_000, bytes(1000))
    with pytest.raises(mesh.MeshError, match="cut off"):
        mesh.load_job_mesh(tmp_path / "mesh.npz")


def test_damaged_files_end_in_a_sentence(tmp_path):
    path = tmp_path / "mesh.npz"
    with pytest.raises(mesh.MeshError, match="There is no mesh file"):
        mesh.load_job_mesh(path)
    mesh.save_job_mesh(path, some_arrays())
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for attempt in range(300):
        broken = bytearray(whole)
        if attempt % 3 == 0:
            broken = broken[: rng.integers(0, len(whole))]
        else:
            for at in rng.integers(0, len(whole), 1 + attempt % 20):
                broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            mesh.load_job_mesh(path)
        except mesh.MeshError as error:
            refused += 1
            assert str(error).endswith(".") or "cannot be read" in str(error)
    assert refused > 200


def test_uvs_in_other_tiles_come_back_and_those_across_a_border_do_not_pass(tmp_path):
    arrays = some_arrays()
    moved = arrays["uvs"] + np.repeat(np.arange(20)[:, None, None] % 5 - 2, 2, axis=2).astype(np.float32)
    mesh.save_job_mesh(tmp_path / "mesh.npz", arrays | {"uvs": moved})
    loaded = mesh.load_job_mesh(tmp_path / "mesh.npz")
    assert np.allclose(loaded.uvs, arrays["uvs"], atol=1e-5)
    moved[4] = [[0.8, 0.5], [1.2, 0.5], [1, 0.7]]
    assert "The UVs of 1 of 20 triangles lie across the border" in refusal(tmp_path, uvs=moved)


def test_degenerate_triangles_stay_in_their_place_with_whole_frames(tmp_path):
    arrays = some_arrays()
    arrays["positions"][5] = arrays["positions"][5, :1]
    arrays["normals"][5], arrays["tangents"][5], arrays["tangents"][6] = 0, 0, np.nan
    mesh.save_job_mesh(tmp_path / "mesh.npz", arrays)
    loaded = mesh.load_job_mesh(tmp_path / "mesh.npz")
    assert np.array_equal(loaded.material_slot, arrays["material_slot"])
    assert np.ptp(loaded.positions[5], axis=0).max() == 0
    assert np.allclose(np.linalg.norm(loaded.normals, axis=2), 1, atol=1e-5)
    assert np.allclose(np.linalg.norm(loaded.tangents[..., :3], axis=2), 1, atol=1e-5)
    assert np.isin(loaded.tangents[..., 3], (-1, 1)).all()
    right_angle = np.einsum("fij,fij->fi", loaded.normals[5:7], loaded.tangents[5:7, :, :3])
    assert np.abs(right_angle).max() < 1e-5


def test_a_million_triangles_load_in_seconds(tmp_path):
    few = some_arrays(1000)
    arrays = {name: np.tile(array, (1000,) + (1,) * (array.ndim - 1)) for name, array in few.items()}
    mesh.save_job_mesh(tmp_path / "mesh.npz", arrays)
    start = time.process_time()
    assert mesh.load_job_mesh(tmp_path / "mesh.npz").triangles == 1_000_000
    seconds = time.process_time() - start
    print(f"{seconds:.2f} s")
    assert seconds < 5
