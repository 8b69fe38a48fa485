# SPDX-License-Identifier: GPL-3.0-or-later
"""A picture that the object shall look like and the view it was taken from; put into a run's job folder.

The backend knows cameras that look at the object's middle and pictures that are square. Any other view from the same
place shows the same, only elsewhere in the picture, so the picture is warped to it. Knows pictures and matrices.
"""

# ruff: noqa: F722, F821

import dataclasses
import math

import bpy
import numpy as np
from bpy.props import FloatProperty, FloatVectorProperty, PointerProperty

from . import images, png, protocol

_SIZE = 512  # pixels of the picture that is handed over; the backend looks at it with less
_MARGIN = 1.08  # of the object's ball in that picture
_NEAREST, _FARTHEST = 1.02, 60.0  # of its camera, in object radii: parallel views are taken for far ones
_WIDEST_HALF = math.radians(60.0)
_SEEN_AT_LEAST = 0.01  # of the picture


class ReferenceProblem(ValueError):
    """The reference picture cannot serve; the text is a sentence for a person."""


class PATINA_PG_reference(bpy.types.PropertyGroup):
    image: PointerProperty(
        name="Picture",
        type=bpy.types.Image,
        description="What the object shall look like from one side; the prompt says what the picture does not show",
    )
    # From the object's place and rotation (its scale is in its mesh) to the clip space of the view.
    matrix: FloatVectorProperty(size=16, options={"HIDDEN"})
    aspect: FloatProperty(default=0.0, options={"HIDDEN"})  # width by height of the view; 0: none, the front


def keep_view(obj: bpy.types.Object, window: np.ndarray, view: np.ndarray, aspect: float) -> None:
    """Remember a view, given by its (4, 4) matrices, as the one the picture was taken from."""
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = rotation_of(obj), np.array(obj.matrix_world, np.float64)[:3, 3]
    kept = obj.patina.reference
    kept.matrix = (np.array(window, np.float64) @ np.array(view, np.float64) @ frame).ravel()
    kept.aspect = aspect


def forget_view(obj: bpy.types.Object) -> None:
    obj.patina.reference.aspect = 0.0


def camera_matrices(context: bpy.types.Context, camera: bpy.types.Object) -> tuple[np.ndarray, np.ndarray, float]:
    """(window, view, aspect) of a camera with the scene's resolution. Raises ReferenceProblem."""
    if camera.type != "CAMERA" or camera.data.type == "PANO":
        raise ReferenceProblem(f"{camera.name} sees all round. Use a perspective or orthographic camera.")
    render = context.scene.render
    wide, high = render.resolution_x * render.pixel_aspect_x, render.resolution_y * render.pixel_aspect_y
    window = camera.calc_matrix_camera(
        context.evaluated_depsgraph_get(),
        x=render.resolution_x,
        y=render.resolution_y,
        scale_x=render.pixel_aspect_x,
        scale_y=render.pixel_aspect_y,
    )
    return np.array(window), np.array(camera.matrix_world.normalized().inverted()), wide / high


def angles(kept: PATINA_PG_reference) -> tuple[float, float] | None:
    """(azimuth, elevation) in degrees of the remembered view as seen from the object's origin; None: the front."""
    if kept.aspect <= 0:
        return None
    towards, _ = _eye(np.array(kept.matrix, np.float64).reshape(4, 4), np.zeros(3), 1.0)
    return _azimuth_and_elevation(towards)


def prepare(
    obj: bpy.types.Object, folder: protocol.JobFolder, positions: np.ndarray, request: protocol.TextureRequest
) -> protocol.TextureRequest:
    """Put the object's reference picture, if it has one, into the job folder; the request that names it.

    `positions` (F, 3, 3) of mesh.npz. Raises ReferenceProblem, RuntimeError, OSError.
    """
    kept = obj.patina.reference
    if kept.image is None:
        return request
    picture = pixels(kept.image)
    if kept.aspect <= 0:
        square, view = _padded(picture), {}
    else:
        square, view = seen_from_the_middle(
            picture, np.array(kept.matrix, np.float64).reshape(4, 4), kept.aspect, *ball(positions)
        )
    protocol.write_beside(folder.reference, png.encode(png.quantised(square, 8)))
    return dataclasses.replace(request, reference=folder.reference.name, reference_view=view)


def pixels(image: bpy.types.Image) -> np.ndarray:
    """(H, W, 4) display values and alpha in 0..1, row 0 at the top. Raises ReferenceProblem."""
    try:
        values = images.pixels(image)
    except RuntimeError as error:
        raise ReferenceProblem(f"The reference picture {image.name} cannot be read. Choose another one.") from error
    color = values[..., :3] if image.channels >= 3 else np.repeat(values[..., :1], 3, axis=-1)
    if image.is_float and not image.colorspace_settings.is_data:
        color = images.display(color)
    alpha = values[..., 3:4] if image.channels == 4 else np.ones_like(color[..., :1])
    return np.clip(np.concatenate([color, alpha], axis=-1), 0.0, 1.0)


def seen_from_the_middle(
    picture: np.ndarray, matrix: np.ndarray, aspect: float, center: np.ndarray, radius: float
) -> tuple[np.ndarray, dict[str, float]]:
    """What a camera at the view's place shows that looks at the object's middle: (S, S, 4) and TextureRequest's
    reference_view. What the picture leaves open is transparent.

    `matrix`: from object space to the clip space of a view of `aspect`, which the picture fits, as large as it goes.
    Raises ReferenceProblem.
    """
    towards, distance = _eye(matrix, center, radius)
    if distance < _NEAREST:
        raise ReferenceProblem("The reference's view is too near the object. Step back and take it again.")
    distance = min(distance, _FARTHEST)
    half = min(_WIDEST_HALF, math.asin(min(1.0, _MARGIN / distance)))
    points = _grid(towards, distance * math.tan(half), _SIZE) * radius + center
    clip = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1) @ matrix.T
    with np.errstate(all="ignore"):
        x, y = clip[..., 0] / clip[..., 3], clip[..., 1] / clip[..., 3]
    own = picture.shape[1] / picture.shape[0]
    x, y = (x, y * own / aspect) if own >= aspect else (x * aspect / own, y)
    inside = (clip[..., 3] > 0) & (np.abs(x) <= 1) & (np.abs(y) <= 1)
    if inside.mean() < _SEEN_AT_LEAST:
        raise ReferenceProblem("The object is not in the reference's view. Turn the view to it and take it again.")
    found = _sampled(picture, np.where(inside, x, 0.0), np.where(inside, y, 0.0))
    azimuth, elevation = _azimuth_and_elevation(towards)
    view = {"azimuth_deg": azimuth, "elevation_deg": elevation, "distance": distance, "fov_deg": math.degrees(2 * half)}
    return np.where(inside[..., None], found, 0.0), view


def _eye(matrix: np.ndarray, center: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """Where a view is looked from: unit direction from `center`, and distance in radii (infinite: parallel)."""
    if np.abs(matrix[3, :3]).max() < 1e-9 * max(np.abs(matrix[:2, :3]).max(), 1e-30):
        towards = np.cross(matrix[0, :3], matrix[1, :3])
        towards = -towards if towards @ matrix[2, :3] > 0 else towards
        return towards / np.linalg.norm(towards), math.inf
    rows = matrix[[0, 1, 3]]
    away = (np.linalg.solve(rows[:, :3], -rows[:, 3]) - center) / radius
    distance = float(np.linalg.norm(away))
    return away / max(distance, 1e-12), distance


def _azimuth_and_elevation(towards: np.ndarray) -> tuple[float, float]:
    x, y, z = towards
    return math.degrees(math.atan2(x, -y)), math.degrees(math.asin(min(1.0, max(-1.0, z))))


def _grid(towards: np.ndarray, half: float, size: int) -> np.ndarray:
    """(S, S, 3) points of the plane through the origin that faces `towards`, as backend/cameras.py turns pictures."""
    up = np.array([0.0, 1.0, 0.0] if abs(towards[2]) > 0.9999 else [0.0, 0.0, 1.0])
    right = np.cross(up, towards)
    right /= np.linalg.norm(right)
    across = (2 * (np.arange(size) + 0.5) / size - 1) * half
    return across[None, :, None] * right + -across[:, None, None] * np.cross(towards, right)


def _sampled(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The picture (H, W, 4) at x, y in -1..1 (y up), filtered where its pixels are much finer."""
    height, width, _ = picture.shape
    steps = np.hypot(np.diff(x, axis=1) * width, np.diff(y, axis=1) * height) / 2
    steps = steps[steps > 0]  # what lies outside of the picture is all at one place
    coarser = int(max(1, min(np.median(steps) if len(steps) else 1, min(height, width) // 8)))
    if coarser > 1:
        picture = picture[: height // coarser * coarser, : width // coarser * coarser]
        picture = picture.reshape(height // coarser, coarser, width // coarser, coarser, 4).mean((1, 3))
    across, down = (x + 1) / 2 * (width / coarser) - 0.5, (1 - y) / 2 * (height / coarser) - 0.5
    return images.bilinear(picture, across, down)


def _padded(picture: np.ndarray) -> np.ndarray:
    """The whole picture in the middle of a square, no larger than needed; the rest is transparent."""
    height, width, _ = picture.shape
    side = max(height, width)
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    at = 2 * (np.arange(_SIZE) + 0.5) / _SIZE - 1
    return _sampled(square, *np.broadcast_arrays(at[None, :], -at[:, None])) if side > _SIZE else square


def ball(positions: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and radius of the object, as backend/mesh.py takes them."""
    flat = positions.reshape(-1, 3).astype(np.float64)
    center = (flat.min(0) + flat.max(0)) / 2
    return center, float(np.linalg.norm(flat - center, axis=1).max())


def rotation_of(obj: bpy.types.Object) -> np.ndarray:
    """The object's world matrix without its stretch, which its mesh has (mesh_io)."""
    left, _, right = np.linalg.svd(np.array(obj.matrix_world, np.float64)[:3, :3])
    return left @ right


def register() -> None:
    bpy.utils.register_class(PATINA_PG_reference)


def unregister() -> None:
    bpy.utils.unregister_class(PATINA_PG_reference)
