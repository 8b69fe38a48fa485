# SPDX-License-Identifier: GPL-3.0-or-later
"""Corner normals and MikkTSpace tangents, against Blender's own where bpy is there."""

import numpy as np
import pytest

from backend import frames


def cube() -> np.ndarray:
    """(12,3,3) float32 triangles of a cube of side 2, outward."""
    faces = []
    for axis in range(3):
        for side in (-1, 1):
            u, v = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
            quad = [side * np.eye(3)[axis] + a * u + b * side * v for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            faces += [[quad[0], quad[1], quad[2]], [quad[0], quad[2], quad[3]]]
    return np.array(faces, np.float32)


def bent_strip(angle_deg: float) -> np.ndarray:
    """Two unit quads that share the edge along y at x = 0, the second raised by `angle_deg`."""
    angle = np.radians(angle_deg)
    out, rise = np.cos(angle), np.sin(angle)
    a, b, c, d = [-1, 0, 0], [0, 0, 0], [0, 1, 0], [-1, 1, 0]
    e, f = [out, 0, rise], [out, 1, rise]
    return np.array([[a, b, c], [a, c, d], [b, e, f], [b, f, c]], np.float32)


def angles_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(np.einsum("...j,...j->...", a, b), -1, 1)))


def test_a_cube_keeps_its_edges_and_a_gentle_bend_loses_them():
    sharp = frames.smooth_normals(cube())
    assert np.allclose(sharp, frames.flat_normals(cube()), atol=1e-6)
    bent = frames.smooth_normals(bent_strip(30))
    half = np.array([-np.sin(np.radians(15)), 0, np.cos(np.radians(15))])
    assert np.allclose(bent[0, 1], half, atol=1e-6) and np.allclose(bent[3, 2], half, atol=1e-6)
    assert np.allclose(bent[0, 0], [0, 0, 1], atol=1e-6)
    assert np.allclose(frames.smooth_normals(bent_strip(70))[0, 1], [0, 0, 1], atol=1e-6)


def test_smooth_normals_weigh_corners_by_their_angle():
    # At a cube's corner one face has one corner of 90 degrees, the other two of 45: weights by
    # number or area would lean to the face with two triangles.
    normals = frames.smooth_normals(cube(), sharp_deg=120)
    outward = cube() / np.linalg.norm(cube(), axis=2, keepdims=True)
    assert angles_deg(normals, outward).max() < 0.05


def test_triangles_touching_in_a_vertex_only_do_not_share_a_normal():
    a = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [-1, 0, 0.3], [0, -1, 0.3]]], np.float32)
    assert np.allclose(frames.smooth_normals(a), frames.flat_normals(a))


def test_missing_normals_and_tangents_are_repaired():
    positions = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[1, 1, 1]] * 3], np.float32)
    normals = np.array([[[0, 0, 0], [np.nan, 0, 0], [0, 0, 3e-30]]] * 2, np.float32)
    tangents = np.array([[[0, 0, 0, 0], [np.inf, 0, 0, np.nan], [1e-20, 0, 0, -1]]] * 2, np.float32)
    frames.repair_frames(positions, normals, tangents)
    assert np.array_equal(normals, np.broadcast_to([0, 0, 1], (2, 3, 3)))
    assert np.allclose(np.linalg.norm(tangents[..., :3], axis=2), 1, atol=1e-6)
    assert np.allclose(tangents[:, :2, 2], 0)
    assert np.allclose(tangents[:, 2, :3], [1, 0, 0])
    assert tangents[0, :, 3].tolist() == [1, 1, -1]


def test_any_perpendicular_is_a_unit_vector_at_a_right_angle():
    normals = np.random.default_rng(0).normal(size=(1000, 3))
    normals = np.vstack([normals / np.linalg.norm(normals, axis=1)[:, None], np.eye(3), -np.eye(3)])
    found = frames.perpendicular(normals)
    assert np.abs(np.einsum("ij,ij->i", normals, found)).max() < 1e-9
    assert np.allclose(np.linalg.norm(found, axis=1), 1)


def test_tangents_of_a_plane_follow_u_and_mirroring_turns_the_sign():
    positions = np.array([[[0, 0, 0], [2, 0, 0], [2, 1, 0]], [[0, 0, 0], [2, 1, 0], [0, 1, 0]]], np.float32)
    normals = frames.flat_normals(positions)
    uvs = positions[..., :2] * np.float32([0.5, 1])
    assert np.allclose(frames.mikktspace_tangents(positions, normals, uvs), [1, 0, 0, 1])
    mirrored = uvs * np.float32([-1, 1])
    assert np.allclose(frames.mikktspace_tangents(positions, normals, mirrored), [-1, 0, 0, -1])
    turned = np.stack([uvs[..., 1], -uvs[..., 0]], axis=-1)
    assert np.allclose(frames.mikktspace_tangents(positions, normals, turned), [0, 1, 0, 1], atol=1e-6)


def test_degenerate_uvs_take_the_frame_at_their_place_or_any():
    positions = np.array([[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]], np.float32)
    normals = frames.flat_normals(positions)
    uvs = positions[..., :2].copy()
    uvs[1, 2] = (uvs[1, 0] + uvs[1, 1]) / 2  # its own direction would be (1, -1, 0)
    tangents = frames.mikktspace_tangents(positions, normals, uvs)
    assert np.allclose(tangents[0], [1, 0, 0, 1])
    assert np.allclose(tangents[1, 0], [1, 0, 0, 1])
    assert np.allclose(np.linalg.norm(tangents[..., :3], axis=2), 1)
    alone = frames.mikktspace_tangents(positions, normals, np.zeros_like(uvs))
    assert np.allclose(np.linalg.norm(alone[..., :3], axis=2), 1) and np.isin(alone[..., 3], (1, -1)).all()
    assert np.abs(np.einsum("fij,fij->fi", alone[..., :3], normals)).max() < 1e-6


def blender_frames(shape: str, smooth: bool, mirror: bool) -> tuple[np.ndarray, ...]:
    """Positions, corner normals, uvs, tangents and signs (F,3,...) as bpy has them."""
    bpy = pytest.importorskip("bpy")
    import bmesh

    made = bmesh.new()
    made.loops.layers.uv.new("UVMap")
    if shape == "sphere":
        bmesh.ops.create_uvsphere(made, u_segments=32, v_segments=16, radius=1, calc_uvs=True)
    else:
        bmesh.ops.create_monkey(made, calc_uvs=True)
    bmesh.ops.triangulate(made, faces=made.faces[:])
    for face in made.faces:
        face.smooth = smooth
    mesh = bpy.data.meshes.new("patina test")
    made.to_mesh(mesh)
    made.free()
    try:
        layer = mesh.uv_layers[0].uv
        uvs = np.empty(len(mesh.loops) * 2, np.float32)
        layer.foreach_get("vector", uvs)
        if mirror:
            uvs[::2] = np.abs(uvs[::2] - 0.5)
            layer.foreach_set("vector", uvs)
        mesh.calc_tangents()
        count = len(mesh.loops)
        vertices = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", vertices)
        index, sign = np.empty(count, np.int32), np.empty(count, np.float32)
        normals, tangents = np.empty(count * 3, np.float32), np.empty(count * 3, np.float32)
        mesh.loops.foreach_get("vertex_index", index)
        mesh.loops.foreach_get("normal", normals)
        mesh.loops.foreach_get("tangent", tangents)
        mesh.loops.foreach_get("bitangent_sign", sign)
        return (
            vertices.reshape(-1, 3)[index].reshape(-1, 3, 3),
            normals.reshape(-1, 3, 3),
            uvs.reshape(-1, 3, 2),
            tangents.reshape(-1, 3, 3),
            sign.reshape(-1, 3),
        )
    finally:
        bpy.data.meshes.remove(mesh)


@pytest.mark.parametrize("mirror", [False, True], ids=["plain", "mirrored"])
@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "flat"])
@pytest.mark.parametrize("shape", ["sphere", "monkey"])
def test_tangents_are_blenders(shape, smooth, mirror):
    positions, normals, uvs, tangents, sign = blender_frames(shape, smooth, mirror)
    ours = frames.mikktspace_tangents(positions, normals, uvs)
    off = angles_deg(ours[..., :3], tangents)
    a, b = uvs[:, 1] - uvs[:, 0], uvs[:, 2] - uvs[:, 0]
    whole = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) > 1e-9  # with an area in UV space
    print(f"{shape}: mean {off[whole].mean():.4f} deg, worst {off[whole].max():.2f} deg, {(~whole).sum()} degenerate")
    assert off[whole].mean() < 0.05
    assert (off[whole] > 1).mean() < 0.01
    assert (ours[..., 3] == sign)[whole].all()


@pytest.mark.parametrize("shape", ["sphere", "monkey"])
def test_smooth_normals_are_blenders(shape):
    positions, normals, *_ = blender_frames(shape, True, False)
    off = angles_deg(frames.smooth_normals(positions, sharp_deg=180), normals)
    print(f"{shape}: mean {off.mean():.4f} deg, worst {off.max():.3f} deg")
    assert (off > 0.1).mean() < 0.01
