# SPDX-License-Identifier: GPL-3.0-or-later
"""Model files: every format gives the same corners, in Blender's axes, or a sentence."""

import json
import struct
import time

import numpy as np
import pytest

from addon.protocol import MESH_ARRAYS
from backend import mesh, mesh_file, uv

pytest.importorskip("trimesh")

# A square in the file's x-y plane that looks along the file's +z, with UVs of its own.
SQUARE = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]], np.float32)
SQUARE_UVS = np.array([[0.1, 0.2], [0.9, 0.2], [0.9, 0.6], [0.1, 0.6]], np.float32)
BLENDERS_SQUARE = np.array([[0, 0, 0], [2, 0, 0], [2, 0, 1], [0, 0, 1]], np.float32)  # +z of the file is -y


def obj(text: str, tmp_path):
    path = tmp_path / "mesh.obj"
    path.write_text(text)
    return path


def obj_square(face: str, more: str = "") -> str:
    rows = ["# a comment", "mtllib nothing.mtl", "o Thing"]
    rows += [f"v {x} {y} {z}" for x, y, z in SQUARE]
    rows += [f"vt {u} {v}" for u, v in SQUARE_UVS]
    return "\n".join([*rows, "vn 0 0 1", more, "usemtl wood", face, ""])


def glb(tmp_path, *, normals=True, node=None, index=(0, 1, 2, 0, 2, 3), extra=None, suffix=".glb"):
    """The square as glTF without any material, as Blender writes an object without one."""
    uvs = SQUARE_UVS * np.float32([1, -1]) + np.float32([0, 1])  # glTF's origin is the top left
    attributes = {"POSITION": SQUARE, "TEXCOORD_0": uvs}
    if normals:
        attributes["NORMAL"] = np.tile(np.float32([0, 0, 1]), (4, 1))
    blocks = [*attributes.values(), np.array(index, np.uint16)]
    binary, views, accessors = b"", [], []
    for number, block in enumerate(blocks):
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": block.nbytes})
        kind = "SCALAR" if block.ndim == 1 else f"VEC{block.shape[1]}"
        component = 5123 if block.dtype == np.uint16 else 5126
        accessors.append({"bufferView": number, "componentType": component, "count": len(block), "type": kind})
        binary += block.tobytes()
    primitive = {"attributes": {n: i for i, n in enumerate(attributes)}, "indices": len(blocks) - 1}
    tree = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, **(node or {})}],
        "meshes": [{"primitives": [primitive]}],
        "bufferViews": views,
        "accessors": accessors,
        "buffers": [{"byteLength": len(binary)}],
        **(extra or {}),
    }
    path = tmp_path / f"mesh{suffix}"
    if suffix == ".gltf":
        (tmp_path / "mesh.bin").write_bytes(binary)
        tree["buffers"][0]["uri"] = "mesh.bin"
        path.write_text(json.dumps(tree))
        return path
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    header = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + len(binary), len(text), 0x4E4F534A)
    path.write_bytes(header + text + struct.pack("<II", len(binary), 0x004E4942) + binary)
    return path


PLY_NORMALS = np.array([[0, 0, 1], [0, 0.6, 0.8], [0.6, 0, 0.8], [0, -0.6, 0.8]], np.float32)


def ply(tmp_path, faces="4 1 2 3 4", count=1, uvs=True):
    """The square, behind a vertex that no face uses."""
    rows = ["ply", "format ascii 1.0", "element vertex 5", *(f"property float {n}" for n in ("x", "y", "z"))]
    rows += [f"property float {n}" for n in ("nx", "ny", "nz", *(("s", "t") if uvs else ()))]
    rows += [f"element face {count}", "property list uchar uint vertex_indices", "end_header"]
    rows.append("9 9 9 1 0 0" + (" 0 0" if uvs else ""))
    for point, normal, texture in zip(SQUARE, PLY_NORMALS, SQUARE_UVS, strict=True):
        rows.append(" ".join(map(str, [*point, *normal, *(texture if uvs else ())])))
    path = tmp_path / "mesh.ply"
    path.write_text("\n".join([*rows, faces, ""]))
    return path


def assert_square(corners: mesh_file.Corners, points=BLENDERS_SQUARE, normal=(0, -1, 0)) -> None:
    """Two triangles wound to `normal` that together are the square, each corner with its own UV."""
    assert corners.positions.shape == (2, 3, 3)
    wound = np.cross(*(corners.positions[:, k] - corners.positions[:, 0] for k in (1, 2)))
    assert np.allclose(wound, 2 * np.array(normal))
    for position, texture in zip(corners.positions.reshape(-1, 3), corners.uvs.reshape(-1, 2), strict=True):
        which = np.abs(points - position).max(axis=1).argmin()
        assert np.allclose(points[which], position) and np.allclose(SQUARE_UVS[which], texture, atol=1e-6)
    assert {tuple(p) for p in corners.positions.reshape(-1, 3).tolist()} == {tuple(p) for p in points.tolist()}


@pytest.mark.parametrize(
    "face",
    [
        "f 1/1/1 2/2/1 3/3/1 4/4/1",
        "f 1/1/1 2/2/1 3/3/1\nf 1/1/1 3/3/1 4/4/1",
        "f -4/-4/-1 -3/-3/-1 -2/-2/-1 -1/-1/-1",
        "f 1/1/1 2/2/1 \\\n 3/3/1 4/4/1  # split",
        "f\t1/1\t2/2\t3/3\nf 1/1/1 3/3/1 4/4/1",
    ],
    ids=["quad", "triangles", "relative", "continued", "mixed"],
)
def test_obj(face, tmp_path):
    corners = mesh_file.read_corners(obj(obj_square(face), tmp_path))
    assert_square(corners)
    assert np.allclose(corners.normals[-1], [0, -1, 0])
    assert not corners.flat.any()


def test_relative_indices_count_from_their_line(tmp_path):
    face = "f -4/-4/-1 -3/-3/-1 -2/-2/-1 -1/-1/-1\nv 9 9 9\nvt 0 0\nvn 1 0 0"
    assert_square(mesh_file.read_corners(obj(obj_square(face), tmp_path)))


def test_faces_keep_their_order_across_layouts(tmp_path):
    text = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvn 0 0 1\nf 1 2 3\nf 1//1 2//1 3//1 4//1\nf 2 3 4\nl 1 2\nf 1 2\n"
    corners = mesh_file.read_corners(obj(text, tmp_path))
    assert np.isnan(corners.normals).all(axis=(1, 2)).tolist() == [True, False, False, True]
    assert np.allclose(corners.positions[3], [[1, 0, 0], [1, 0, 1], [0, 0, 1]])


def test_uv_seams_of_an_obj_stay(tmp_path):
    face = "f 1/1 2/2 3/3\nf 1/2 3/1 4/4"
    uvs = mesh_file.read_corners(obj(obj_square(face), tmp_path)).uvs
    assert np.allclose(uvs[1], SQUARE_UVS[[1, 0, 3]])


def test_smoothing_groups(tmp_path):
    face = "s off\nf 1 2 3\ns 1\nf 1 3 4\ns 0\nf 2 3 4"
    assert mesh_file.read_corners(obj(obj_square(face), tmp_path)).flat.tolist() == [True, False, True]


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_gltf(tmp_path, suffix):
    corners = mesh_file.read_corners(glb(tmp_path, suffix=suffix))
    assert_square(corners)
    assert np.allclose(corners.normals, [0, -1, 0]) and not corners.flat.any()


def test_gltf_without_normals_is_flat(tmp_path):
    corners = mesh_file.read_corners(glb(tmp_path, normals=False))
    assert corners.flat.all() and np.isnan(corners.normals).all()


def test_gltf_nodes_move_turn_and_mirror(tmp_path):
    moved = mesh_file.read_corners(glb(tmp_path, node={"translation": [0, 5, 0]}))
    assert_square(moved, BLENDERS_SQUARE + np.float32([0, 0, 5]))
    # A quarter turn about the file's y: +x goes to -z, the normal +z to +x.
    half = float(np.sqrt(0.5))
    turned = mesh_file.read_corners(glb(tmp_path, node={"rotation": [0, half, 0, half]}))
    assert np.allclose(turned.normals, [1, 0, 0], atol=1e-6)
    assert np.allclose(turned.positions.reshape(-1, 3).max(axis=0), [0, 2, 1], atol=1e-6)
    mirrored = mesh_file.read_corners(glb(tmp_path, node={"scale": [-1, 1, 1]}))
    assert_square(mirrored, BLENDERS_SQUARE * np.float32([-1, 1, 1]))
    stretched = mesh_file.read_corners(glb(tmp_path, node={"scale": [1, 1, 4]}))
    loaded = mesh.load_mesh_file(tmp_path / "mesh.glb")
    assert np.allclose(stretched.normals / 0.25, [0, -1, 0]) and np.allclose(loaded["normals"], [0, -1, 0])


def test_gltf_images_are_not_opened(tmp_path, monkeypatch):
    import trimesh

    asked = []
    get = trimesh.resolvers.FilePathResolver.get
    monkeypatch.setattr(
        trimesh.resolvers.FilePathResolver, "get", lambda self, name: asked.append(name) or get(self, name)
    )
    extra = {"images": [{"uri": "../missing.png"}], "textures": [{"source": 0}]}
    assert_square(mesh_file.read_corners(glb(tmp_path, extra=extra, suffix=".gltf")))
    assert asked == ["mesh.bin"]


def test_compressed_gltf_is_refused(tmp_path):
    path = glb(tmp_path, extra={"extensionsRequired": ["KHR_draco_mesh_compression"]})
    with pytest.raises(mesh_file.MeshFileError, match="compressed"):
        mesh_file.read_corners(path)


@pytest.mark.parametrize(("faces", "count"), [("4 1 2 3 4", 1), ("3 3 1 2\n3 4 1 3", 2)])
def test_ply_stays_as_it_is(tmp_path, faces, count):
    corners = mesh_file.read_corners(ply(tmp_path, faces, count))
    assert_square(corners, SQUARE, (0, 0, 1))
    which = np.abs(corners.positions[:, :, None] - SQUARE).max(axis=3).argmin(axis=2)
    assert np.allclose(corners.normals, PLY_NORMALS[which])


def test_a_concave_polygon_is_covered_once(tmp_path):
    # An E on its side, as one polygon.
    outline = [(0, 0), (5, 0), (5, 3), (4, 3), (4, 1), (3, 1), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]
    for flip in (False, True):
        points = np.array([(x, y, 0) for x, y in (outline[::-1] if flip else outline)], float)
        for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            corners = np.take_along_axis(
                points[:, axes][None, None], mesh_file.triangulate(points[None][..., axes])[..., None], 2
            )[0]
            flat = corners[..., [axes.index(0), axes.index(1)]]
            a, b = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
            doubled = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) * (-1 if flip else 1)
            assert (doubled >= 0).all() and doubled.sum() / 2 == pytest.approx(11)
            assert uv.coverage_count((flat / 5).astype(np.float32), 50).max() == 1
    arrow = np.array([[[0, 0, 0], [2, 1, 0], [0, 2, 0], [1, 1, 0]]], float)
    assert mesh_file.triangulate(arrow)[0].tolist() == [[1, 2, 3], [1, 3, 0]]
    assert mesh_file.triangulate(np.roll(arrow, 1, axis=1))[0].tolist() == [[0, 1, 2], [0, 2, 3]]


def test_a_concave_polygon_of_thousands_of_corners_takes_no_seconds():
    turn, radius = np.arange(2000) / 2000 * 2 * np.pi, np.random.default_rng(0).uniform(0.3, 1.0, 2000)
    points = np.stack((radius * np.cos(turn), radius * np.sin(turn), 0 * turn), axis=1)
    begun = time.process_time()
    corners = points[mesh_file.triangulate(points[None])[0]]
    spent = time.process_time() - begun
    doubled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2]
    wanted = (points[:, 0] * np.roll(points[:, 1], -1) - points[:, 1] * np.roll(points[:, 0], -1)).sum()
    assert len(corners) == 1998 and (doubled >= 0).all() and doubled.sum() == pytest.approx(wanted)
    print(f"2000 corners: {spent:.2f} s")
    assert spent < 2


def test_a_file_becomes_a_job(tmp_path):
    told = []
    arrays = mesh.load_mesh_file(obj(obj_square("f 1/1/1 2/2/1 3/3/1 4/4/1"), tmp_path), told.append)
    assert not told
    assert {n: (a.shape[1:], str(a.dtype)) for n, a in arrays.items()} == MESH_ARRAYS
    assert np.allclose(arrays["tangents"], [1, 0, 0, 1], atol=1e-6)
    assert arrays["face_mask"].all() and not arrays["material_slot"].any()
    mesh.save_job_mesh(tmp_path / "mesh.npz", arrays)
    assert mesh.load_job_mesh(tmp_path / "mesh.npz").triangles == 2


def test_normals_are_made_where_a_file_has_none(tmp_path):
    # A roof of 40 degrees: smooth by default, flat where the file says so.
    roof = "v -1 0 0\nv 0 0.839 0\nv 1 0 0\nv -1 0 2\nv 0 0.839 2\nv 1 0 2\n"
    roof += "".join(f"vt {i / 3} {j}\n" for j in (0, 1) for i in range(3))
    left, right = "f 4/4 5/5 2/2 1/1\n", "f 5/5 6/6 3/3 2/2\n"
    narrow = mesh.load_mesh_file(obj(roof.replace("0.839", "0.364") + left + right, tmp_path))["normals"]
    assert np.allclose(narrow[0, 1], [0, 0, 1], atol=1e-5)
    steep = mesh.load_mesh_file(obj(roof + left + right, tmp_path))["normals"]
    assert not np.allclose(steep[0, 1], [0, 0, 1], atol=0.3)  # 80 degrees between the sides
    flat = mesh.load_mesh_file(obj(roof.replace("0.839", "0.364") + "s off\n" + left + right, tmp_path))["normals"]
    assert np.ptp(flat, axis=1).max() == 0


def test_unusable_uvs_are_replaced_and_told(tmp_path):
    pytest.importorskip("xatlas")
    told = []
    arrays = mesh.load_mesh_file(obj(obj_square("f 1//1 2//1 3//1 4//1"), tmp_path), told.append)
    assert told == [
        "mesh.obj: 2 of 2 triangles have no valid UVs. New UVs are made; the maps fit those and not the file's own."
    ]
    assert uv.usability(arrays["uvs"]).usable


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.stl", b"", "It reads .obj, .glb, .gltf, .ply"),
        ("a.obj", b"", "holds no faces"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nf 1 2 3\n", "A face uses number 3 of 2 vertices"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 x\n", "A face cannot be read: 'f 1 2 x'"),
        ("a.obj", b"v 0 0\nv 1 0\nv 1 1\nf 1 2 3\n", "A line 'v' has not 3 numbers"),
        ("a.obj", b"v 0 nan 0\nv 1 0 0\nv 1 1 0\nf 1 2 3\n", "1 of the mesh's 1 triangles has a corner"),
        ("a.obj", b"v 0 zero 0\nv 1 0 0\nv 1 1 0\nf 1 2 3\n", "a.obj is damaged or unusual"),
        ("a.glb", b"glTF\2\0\0\0", "a.glb is damaged or unusual"),
        ("a.gltf", b"{}", "holds no faces"),
        ("a.ply", b"ply\nformat ascii 1.0\nend_header\n", "holds no faces"),
        ("a.ply", b"not a ply", "a.ply is damaged or unusual"),
        ("missing.obj", None, "There is no file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(mesh.MeshError) as caught:
        mesh.load_mesh_file(tmp_path / name)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("make", [lambda p: obj(obj_square("f 1/1/1 2/2/1 3/3/1 4/4/1"), p), glb, ply])
def test_damaged_files_end_in_a_sentence(tmp_path, make, monkeypatch):
    monkeypatch.setattr(mesh, "unwrap", lambda positions: np.zeros((len(positions), 3, 2), np.float32))
    path = make(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    for attempt in range(120):
        broken = bytearray(whole)
        if attempt % 3 == 0:
            broken = broken[: rng.integers(0, len(whole))]
        else:
            for at in rng.integers(0, len(whole), 1 + attempt % 5):
                broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            mesh.load_mesh_file(path)
        except mesh.MeshError as error:
            assert str(error)
