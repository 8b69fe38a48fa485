# SPDX-License-Identifier: Apache-2.0
"""Meshes: the job's mesh.npz into the unit sphere, and a model file into a job's arrays.

Knows the arrays of `protocol.MESH_ARRAYS` and distrusts every byte of them; knows no textures,
no torch and no bpy.
"""

from __future__ import annotations

import errno
import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from addon.protocol import MESH_ARRAYS, write_beside

from .frames import flat_normals, mikktspace_tangents, repair_frames, smooth_normals, triangle_normals
from .mesh_file import MeshFileError, read_corners
from .uv import UvError, shift_tiles, unwrap, usability

MAX_TRIANGLES = 20_000_000

_CHUNK = 1 << 18  # triangles looked at at a time, so that temporaries stay small


class MeshError(ValueError):
    """The mesh cannot be textured; a sentence for a person that says what to do."""


@dataclass(frozen=True)
class Mesh:
    """F triangles by their corners, centred and scaled so that no vertex lies beyond distance 1.

    `positions * radius + center` gives the object's own coordinates back (+Z up, front is -Y).
    Zero-area triangles keep their place; their normals and tangents are unit vectors as all others.
    """

    positions: np.ndarray  # (F,3,3) float32
    normals: np.ndarray  # (F,3,3) float32, unit length
    tangents: np.ndarray  # (F,3,4) float32, unit xyz and bitangent sign +1 or -1
    uvs: np.ndarray  # (F,3,2) float32 in [-0.01, 1.01], origin bottom left
    material_slot: np.ndarray  # (F,) int32
    face_mask: np.ndarray  # (F,) bool, True where the texture may change
    center: np.ndarray  # (3,) float32
    radius: float

    @property
    def triangles(self) -> int:
        return len(self.positions)


def load_job_mesh(path: Path) -> Mesh:
    """The checked mesh of a job. Raises MeshError (content) or OSError (disk)."""
    arrays = _read_arrays(path)
    positions, uvs = arrays["positions"], arrays["uvs"]
    count = len(positions)
    _refuse_positions(positions)
    _refuse(uvs, "a UV coordinate that is not a number or is infinite", "Unwrap the mesh again, then try again.")
    if not arrays["face_mask"].any():
        raise MeshError("No face of the mesh may change: the face mask is empty. Select the faces to texture.")
    center, radius = _into_unit_sphere(positions)
    outside = shift_tiles(uvs)
    if outside:
        raise MeshError(
            f"The UVs of {outside} of {count} triangles lie across the border of a UV tile. "
            "Scale the UV map into one tile or unwrap the mesh again."
        )
    repair_frames(positions, arrays["normals"], arrays["tangents"])
    return Mesh(**arrays, center=center, radius=radius)


def load_mesh_file(path: Path, tell: Callable[[str], None] | None = None) -> dict[str, np.ndarray]:
    """The arrays of protocol.MESH_ARRAYS from an .obj, .glb, .gltf or .ply file, in Blender's axes.

    Normals are the file's, else smooth with edges sharper than 60 degrees kept; UVs are the file's
    where usable, else new ones, which `tell` is told in a sentence. Raises MeshError or OSError.
    """
    try:
        corners = read_corners(path)
        positions, uvs = corners.positions, corners.uvs
        _refuse_count(len(positions))
        _refuse_positions(positions)
        report = usability(uvs)
        if report.usable:
            shift_tiles(uvs)
        else:
            if tell is not None:
                tell(f"{path.name}: {report.reason} New UVs are made; the maps fit those and not the file's own.")
            uvs = unwrap(positions)
    except (MeshFileError, UvError) as error:
        raise MeshError(str(error)) from error
    normals = corners.normals
    missing = ~np.isfinite(normals).all(axis=2)
    if missing.any():
        made = smooth_normals(positions)
        made[corners.flat] = flat_normals(positions[corners.flat])
        normals[missing] = made[missing]
    repair_frames(positions, normals)
    return {
        "positions": positions,
        "normals": normals,
        "tangents": mikktspace_tangents(positions, normals, uvs),
        "uvs": uvs,
        "material_slot": np.zeros(len(positions), np.int32),
        "face_mask": np.ones(len(positions), bool),
    }


def save_job_mesh(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write `arrays` (exactly protocol.MESH_ARRAYS) as mesh.npz. Raises MeshError or OSError."""
    for name in sorted(arrays.keys() ^ MESH_ARRAYS.keys()):
        raise MeshError(f"The mesh array {name} is {'missing' if name in MESH_ARRAYS else 'unknown'}.")
    count = len(arrays["positions"])
    for name, array in arrays.items():
        _check_kind(name, array.shape, array.dtype, count)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_beside(path, content.getbuffer())


# --- reading an untrusted archive -------------------------------------------------------------


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            for name in sorted(entries.keys() ^ MESH_ARRAYS.keys()):
                state = "missing" if name in MESH_ARRAYS else "unknown"
                raise MeshError(f"The mesh file {path.name} is damaged: its array {name[:40]!r} is {state}.")
            count = None
            # All headers before any content: a small file must not be able to ask for all memory.
            for name in MESH_ARRAYS:
                with archive.open(entries[name]) as file:
                    shape, dtype = _read_header(name, file)
                    count = _check_kind(name, shape, dtype, count)
                    size = file.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                if size != entries[name].file_size:
                    raise MeshError(f"The mesh file {path.name} is damaged: its array {name} is cut off.")
            arrays = {}
            for name in MESH_ARRAYS:
                with archive.open(entries[name]) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
            return arrays
    except MeshError:
        raise
    except FileNotFoundError:
        raise MeshError(f"There is no mesh file {path}.") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # the disk's fault; an offset in the file that is none is the file's
            raise
        raise MeshError(f"The mesh file {path.name} is damaged and cannot be read: {error}") from error
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise MeshError(f"The mesh file {path.name} is damaged and cannot be read: {error}") from error


def _read_header(name: str, file: io.IOBase) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise MeshError(f"The mesh array {name} is stored in an unknown way (npy {version[0]}.{version[1]}).")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran and len(shape) > 1:
        raise MeshError(f"The mesh array {name} is stored in the wrong order (Fortran).")
    return shape, dtype


def _check_kind(name: str, shape: tuple[int, ...], dtype: np.dtype, count: int | None) -> int:
    """Refuse a wrong dtype, shape or number of triangles; returns that number."""
    behind, wanted = MESH_ARRAYS[name]
    if dtype != np.dtype(wanted):
        raise MeshError(f"The mesh array {name} holds {dtype} instead of {wanted}.")
    if len(shape) != 1 + len(behind) or shape[1:] != behind or (count is not None and shape[0] != count):
        expected = ("F" if count is None else count, *behind)
        raise MeshError(f"The mesh array {name} has the shape {shape} instead of ({', '.join(map(str, expected))}).")
    _refuse_count(shape[0])
    return shape[0]


def _refuse_count(count: int) -> None:
    if count == 0:
        raise MeshError("The mesh has no faces. Choose an object with a surface.")
    if count > MAX_TRIANGLES:
        raise MeshError(
            f"The mesh has {count:,} triangles; at most {MAX_TRIANGLES:,} can be textured. Add a Decimate modifier."
        )


# --- checking and repairing values ------------------------------------------------------------


def _refuse_positions(positions: np.ndarray) -> None:
    advice = "Delete those vertices, or remove the modifier that makes them, then try again."
    _refuse(positions, "a corner whose position is not a number or is infinite", advice)


def _refuse(values: np.ndarray, what: str, advice: str) -> None:
    # The sum is finite when all of its terms are, save for overflow: only then look at each.
    with np.errstate(invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)):
            return
    bad = int((~np.isfinite(values)).any(axis=(1, 2)).sum())
    if bad:
        verb = "has" if bad == 1 else "have"
        raise MeshError(f"{bad} of the mesh's {len(values)} triangles {verb} {what}. {advice}")


def _into_unit_sphere(positions: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and scale (F,3,3) `positions` in place; returns center (3,) and radius."""
    flat = positions.reshape(-1, 3)
    low, high = flat.min(axis=0).astype(np.float64), flat.max(axis=0).astype(np.float64)
    center = ((low + high) / 2).astype(np.float32)
    extent = float((high - low).max())
    if extent < 1e-30:
        raise MeshError("The mesh has no size: all its vertices are in one place. Scale it up.")
    if max(float(np.abs(low).max()), float(np.abs(high).max())) > 1e18:
        raise MeshError("The mesh is too large or too far away to be measured. Scale it down, near the origin.")
    flat -= center
    # By the extent first: squares of very small or large lengths leave the range of float32.
    flat /= np.float32(extent)
    farthest = float(np.sqrt(np.einsum("ij,ij->i", flat, flat).max()))
    # A hair larger than the farthest vertex, so that rounding leaves none outside.
    flat /= np.float32(farthest * (1 + 1e-6))
    if not any(triangle_normals(positions[i : i + _CHUNK]).any() for i in range(0, len(positions), _CHUNK)):
        raise MeshError("No face of the mesh has an area. Choose an object with a surface, or move it near its origin.")
    return center, extent * farthest * (1 + 1e-6)
