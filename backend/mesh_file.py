# SPDX-License-Identifier: Apache-2.0
"""Model files (.obj .glb .gltf .ply) read into triangle corners in Blender's axes, without bpy.

Knows the formats, trusts none of them; knows nothing of textures, jobs or tangents. OBJ is read
here and not by trimesh, which loses UV seams, smoothing groups and relative indices.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SUFFIXES = (".obj", ".glb", ".gltf", ".ply")


class MeshFileError(ValueError):
    """The file cannot be read; a sentence for a person."""


@dataclass(frozen=True)
class Corners:
    """T triangles as a file gives them; +Z up, front is -Y, as Blender's importers would have them."""

    positions: np.ndarray  # (T,3,3) float32
    normals: np.ndarray  # (T,3,3) float32, NaN where the file gives none
    uvs: np.ndarray  # (T,3,2) float32, NaN where the file gives none, origin bottom left
    flat: np.ndarray  # (T,) bool, True where the file asks for flat shading


def read_corners(path: Path) -> Corners:
    """The triangles of a model file. Raises MeshFileError, or OSError other than a missing file."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise MeshFileError(f"{path.name} is no file Patina can read. It reads {', '.join(SUFFIXES)}.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MeshFileError(f"There is no file {path}.") from None
    reader = {".obj": _read_obj, ".ply": _read_ply}.get(suffix)
    try:
        corners = reader(content) if reader else _read_gltf(content, path)
    except (MeshFileError, MemoryError):
        raise
    except Exception as error:  # a damaged file raises anything at all inside of a reader
        raise MeshFileError(f"{path.name} is damaged or unusual and cannot be read: {error}") from error
    if not len(corners.positions):
        raise MeshFileError(f"{path.name} holds no faces. Choose a file with a surface.")
    return corners


def _y_up(vectors: np.ndarray) -> np.ndarray:
    """+Y up, -Z ahead (glTF, OBJ) to +Z up, +Y ahead (Blender)."""
    return np.stack([vectors[..., 0], -vectors[..., 2], vectors[..., 1]], axis=-1)


def _corners(points, faces, normals=None, uvs=None, flat=False) -> Corners:
    """Corners of indexed triangles (T,3); `normals` and `uvs` belong to the points."""

    def of_corners(values: np.ndarray | None, width: int) -> np.ndarray:
        if values is None or np.shape(values) != (len(points), width):
            return np.full((len(faces), 3, width), np.nan, np.float32)
        return np.asarray(values, np.float32)[faces]

    faces = np.asarray(faces, np.int64)
    if len(faces) and (faces.min() < 0 or faces.max() >= len(points)):
        raise MeshFileError(f"A face uses vertex {int(faces.max())}, but there are only {len(points)} vertices.")
    return Corners(
        of_corners(points, 3), of_corners(normals, 3), of_corners(uvs, 2), np.full(len(faces), flat, dtype=bool)
    )


def _joined(parts: list[Corners]) -> Corners:
    return Corners(*(np.concatenate([getattr(p, name) for p in parts]) for name in Corners.__dataclass_fields__))


# --- glTF -----------------------------------------------------------------------------------------


def _read_gltf(content: bytes, path: Path) -> Corners:
    import trimesh

    kind = "glb" if content[:4] == b"glTF" else "gltf"
    scene = trimesh.load_scene(
        io.BytesIO(_without_images(content)),
        file_type=kind,
        resolver=trimesh.resolvers.FilePathResolver(str(path)),
        process=False,
    )
    parts = []
    for node in scene.graph.nodes_geometry:
        matrix, name = scene.graph[node]
        geometry = scene.geometry[name]
        if not isinstance(geometry, trimesh.Trimesh):
            continue
        linear = matrix[:3, :3]
        faces = geometry.faces if np.linalg.det(linear) >= 0 else geometry.faces[:, ::-1]
        normals = None
        if "vertex_normals" in geometry._cache:  # given by the file, not computed
            normals = _y_up(geometry.vertex_normals @ np.linalg.pinv(linear))
        points = _y_up(geometry.vertices @ linear.T + matrix[:3, 3])
        # The glTF specification: without normals, flat shading.
        parts.append(_corners(points, faces, normals, getattr(geometry.visual, "uv", None), flat=normals is None))
    if not parts:
        raise MeshFileError(f"{path.name} holds no faces. Choose a file with a surface.")
    return _joined(parts)


def _without_images(content: bytes) -> bytes:
    """The same glTF with one empty material everywhere.

    trimesh reads UVs only where there is a material, and would decode every image for nothing.
    """
    binary = content[:4] == b"glTF"
    if binary:
        (length,) = struct.unpack_from("<I", content, 12)
        tree, rest = json.loads(content[20 : 20 + length]), content[20 + length :]
    else:
        tree, rest = json.loads(content), b""
    needed = set(tree.get("extensionsRequired", ()))
    for extension in sorted(needed & {"KHR_draco_mesh_compression", "EXT_meshopt_compression"}):
        raise MeshFileError(f"The geometry is compressed ({extension}). Export it without compression.")
    for name in ("images", "textures", "samplers", "animations", "skins"):
        tree.pop(name, None)
    tree["materials"] = [{}]
    for mesh in tree.get("meshes", ()):
        for primitive in mesh["primitives"]:
            primitive["material"] = 0
    text = json.dumps(tree).encode()
    if not binary:
        return text
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A)
    return header + text + rest


# --- PLY ------------------------------------------------------------------------------------------


def _read_ply(content: bytes) -> Corners:
    from trimesh.exchange.ply import load_ply

    # UVs of face corners make trimesh renumber the vertices, but not their normals.
    of_faces = b"texcoord" in content[: content.find(b"end_header")]
    loaded = load_ply(io.BytesIO(content), fix_texture=of_faces)
    points, polygons = loaded.get("vertices"), loaded.get("faces")
    if points is None or polygons is None or not len(polygons):
        raise MeshFileError("The file holds no faces. Choose a file with a surface.")
    polygons = np.asarray(polygons, np.int64)
    if polygons.max() >= len(points):
        raise MeshFileError(f"A face uses vertex {polygons.max()}, but there are only {len(points)} vertices.")
    local = triangulate(np.asarray(points, np.float64)[polygons])
    faces = np.take_along_axis(polygons[:, None], local, axis=2).reshape(-1, 3)
    normals = None if of_faces else loaded.get("vertex_normals")
    return _corners(points, faces, normals, getattr(loaded.get("visual"), "uv", None))


# --- OBJ ------------------------------------------------------------------------------------------


def _read_obj(content: bytes) -> Corners:
    rows: dict[bytes, list[bytes]] = {b"v": [], b"vt": [], b"vn": []}
    faces: dict[tuple[int, int, bool], list[bytes]] = {}  # by layout: corners, slashes, "//"
    order: dict[tuple[int, int, bool], list[int]] = {}
    flat: list[bool] = []
    shade_flat = False
    for line in content.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ").splitlines():
        parts = line.split(None, 1)
        if len(parts) < 2:
            continue
        key, rest = parts
        if key in rows:
            rows[key].append(rest)
        elif key == b"f":
            rest = rest.partition(b"#")[0]
            if b"-" in rest:
                rest = _absolute(rest, [len(rows[k]) for k in (b"v", b"vt", b"vn")])
            layout = (len(rest.split()), rest.count(b"/"), b"//" in rest)
            faces.setdefault(layout, []).append(rest)
            order.setdefault(layout, []).append(len(flat))
            flat.append(shade_flat)
        elif key == b"s":
            shade_flat = rest.split()[0] in (b"off", b"0")
    points, uvs, normals = _table(rows[b"v"], 3, "v"), _table(rows[b"vt"], 2, "vt"), _table(rows[b"vn"], 3, "vn")
    parts, numbers = [], []
    for layout, lines in faces.items():
        if layout[0] < 3:
            continue  # a point or a line
        refs = _face_references(layout, lines)
        positions = _looked_up(points, refs[0], refs[0].shape, "vertices")
        local = triangulate(positions)

        def of_corners(values: np.ndarray, local: np.ndarray = local) -> np.ndarray:
            return np.take_along_axis(values[:, None], local[..., None], axis=2).reshape(-1, 3, values.shape[-1])

        number = np.repeat(np.array(order[layout]), local.shape[1])
        parts.append(
            Corners(
                of_corners(_y_up(positions)),
                of_corners(_y_up(_looked_up(normals, refs[2], refs[0].shape, "normals"))),
                of_corners(_looked_up(uvs, refs[1], refs[0].shape, "UVs")),
                np.array(flat)[number],
            )
        )
        numbers.append(number)
    if not parts:
        raise MeshFileError("The file holds no faces. Choose a file with a surface.")
    joined = _joined(parts)
    as_in_file = np.argsort(np.concatenate(numbers), kind="stable")
    return Corners(*(getattr(joined, name)[as_in_file] for name in Corners.__dataclass_fields__))


def _absolute(rest: bytes, counts: list[int]) -> bytes:
    """A face line with its relative (negative) indices counted from the first."""

    def one(reference: bytes, count: int) -> bytes:
        return b"%d" % (count + 1 + int(reference)) if reference.startswith(b"-") else reference

    tokens = [t.split(b"/") for t in rest.split()]
    return b" ".join(b"/".join(one(r, n) for r, n in zip(token, counts, strict=False)) for token in tokens)


def _table(rows: list[bytes], width: int, key: str) -> np.ndarray:
    """(N,width) float32 of the numbers on `rows`; more numbers on a row (colours, w) are left out."""
    if not rows:
        return np.zeros((0, width), np.float32)
    count = len(rows[0].split())
    values = _numbers(b" ".join(rows), np.float64) if count >= width else np.zeros(0)
    if len(values) != count * len(rows):  # rows of different lengths, comments
        values = np.array([row.split()[:width] for row in rows]).astype(np.float64)
        count = width
    if values.size != count * len(rows):
        raise MeshFileError(f"A line '{key}' has not {width} numbers.")
    return values.reshape(len(rows), count)[:, :width].astype(np.float32)


def _numbers(text: bytes, dtype: type) -> np.ndarray:
    """All numbers in `text`; none when something else is in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy's way to say that it stopped early
        try:
            return np.fromstring(text, dtype, sep=" ")
        except (DeprecationWarning, ValueError):
            return np.zeros(0, dtype)


def _face_references(layout: tuple[int, int, bool], lines: list[bytes]) -> list[np.ndarray | None]:
    """Indices (N,corners) from 0 of vertices, UVs and normals; None where the layout has none."""
    corners, slashes, gap = layout
    columns = {0: (0,), corners: (0, 1), 2 * corners: (0, 2) if gap else (0, 1, 2)}.get(slashes)
    text = b" ".join(lines).replace(b"//", b" ").replace(b"/", b" ")
    values = _numbers(text, np.int64)
    if columns is None or len(values) != len(lines) * corners * len(columns):
        raise MeshFileError(f"A face cannot be read: 'f {lines[0].decode('ascii', 'replace').strip()[:60]}'.")
    values = values.reshape(len(lines), corners, len(columns)) - 1
    return [values[..., columns.index(i)] if i in columns else None for i in range(3)]


def _looked_up(table: np.ndarray, indices: np.ndarray | None, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Rows of `table` at `indices` (N,K); NaN in this `shape` where there are none."""
    if indices is None:
        return np.full((*shape, table.shape[1]), np.nan, np.float32)
    if indices.min() < 0 or indices.max() >= len(table):
        raise MeshFileError(f"A face uses number {int(indices.max()) + 1} of {len(table)} {what}.")
    return table[indices]


# --- polygons -------------------------------------------------------------------------------------


def triangulate(polygons: np.ndarray) -> np.ndarray:
    """Corner numbers (N,K-2,3) of the triangles of N polygons with K corners at `polygons` (N,K,3).

    A fan from the first corner, another diagonal for a quad and ears for the rest where the
    polygon is not convex.
    """
    count, corners = polygons.shape[:2]
    i = np.arange(1, corners - 1)
    fan = np.stack([np.zeros_like(i), i, i + 1], axis=1)
    result = np.broadcast_to(fan, (count, *fan.shape))
    if corners == 3:
        return result
    following = np.roll(polygons, -1, axis=1)
    newell = np.cross(polygons - polygons[:, :1], following - polygons[:, :1]).sum(axis=1)
    a, b, c = (polygons[:, fan[:, k]] for k in range(3))
    facing = np.einsum("nkj,nj->nk", np.cross(b - a, c - a), newell)
    concave = np.flatnonzero((facing < 0).any(axis=1))
    if len(concave):
        result = result.copy()
        for n in concave:
            result[n] = [[1, 2, 3], [1, 3, 0]] if corners == 4 else _ears(polygons[n], newell[n])
    return result


def _ears(polygon: np.ndarray, normal: np.ndarray) -> list[tuple[int, int, int]]:
    """Ear clipping of one polygon (K,3) seen along `normal`; a fan of what is left if none is found."""
    axis = int(np.abs(normal).argmax())
    x, y = (np.delete(polygon, axis, axis=1) * ((-1 if (axis == 1) != bool(normal[axis] < 0) else 1), 1)).T
    left, triangles = np.arange(len(polygon)), []
    before, after = np.roll(left, 1), np.roll(left, -1)

    def side(a: int, b: int, c: np.ndarray) -> np.ndarray:
        return (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])

    def hindrance(b: int) -> int:
        """A corner in the way of the ear at b, b itself where the polygon is not convex; -1: it is an ear."""
        a, c = before[b], after[b]
        if not side(a, b, c) > 0:
            return b
        inside = (side(a, b, left) >= 0) & (side(b, c, left) >= 0) & (side(c, a, left) >= 0)
        inside &= (left != a) & (left != b) & (left != c)
        # The last: the first corners are clipped first, and who loses its hindrance is looked at again.
        return int(left[inside][-1]) if inside.any() else -1

    hindered = np.array([hindrance(b) for b in left])
    while len(left) > 3:
        ears = hindered[left] == -1
        k = int(ears.argmax()) if ears.any() else 1
        b = int(left[k])
        a, c = int(before[b]), int(after[b])
        triangles.append((a, b, c))
        left = np.delete(left, k)
        after[a], before[c] = c, a
        for other in {a, c, *left[hindered[left] == b].tolist()}:
            hindered[other] = hindrance(other)
    return [*triangles, tuple(left.tolist())]
