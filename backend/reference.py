# SPDX-License-Identifier: Apache-2.0
"""A reference picture and the view it was taken from (Make-It-3D, Tang et al. 2023): that view shall look like it.

What it shows, the model has no say in: else close-ups would paint over it what the picture is too coarse to see. It is
taken for the object under an even white world, since nobody knows its light, and moves the base colour alone. Other
views are let in by and by, nearest azimuths first. Knows no diffusion model and no optimiser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from addon.protocol import ProtocolError

from . import lighting
from .cameras import FULL_VIEW_MARGIN, Cameras, look_at
from .diffusion.interface import Scene
from .diffusion.likeness import CLEAN_BELOW, Clip
from .projection import show
from .rasterize import GBuffer, Triangles, gather, look

if TYPE_CHECKING:
    from .distillation import Aim

FIRST_RANGE_DEG, ALL_ROUND_AT = 45.0, 0.3  # published: 2000 of 7000 steps within 45 degrees, then all round
FINE = 192  # pixels that a reference is looked at with at least, where it has them
SMALLEST, LARGEST = 16, 8192  # pixels
FOV_DEG = 30.0
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
BEHIND = 0.0  # display value -1..1 of what the picture leaves open, as CLIP sees it: grey
NO_CLIP = (
    "No CLIP model compares the reference picture's look with the other views: what the picture does not show follows "
    "the prompt alone. With the option clip_model=FOLDER (one of type clip, as openai/clip-vit-large-patch14) it "
    "would look like the picture too."
)


@dataclass(frozen=True)
class LikenessOptions:
    """clip_model: folder of the CLIP model that compares other views with the picture; empty: none does. clip_strength:
    how far it leads a picture at once, in display values from -1 to 1. Raises ValueError with a sentence."""

    clip_model: str = ""
    clip_strength: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.clip_strength <= 1:
            raise ValueError(f"The option clip_strength is {self.clip_strength}; it must lie over 0 and up to 1.")


@dataclass(frozen=True)
class Reference:
    """picture (1, 3, S, S) in -1..1; share (1, 1, S, S) in 0..1 of it that counts; `scene` is the one view. `clip`
    leads other views to look like it, by clip_strength."""

    picture: Tensor
    share: Tensor
    scene: Scene
    clip: Clip | None = None
    clip_strength: float = 0.0
    look: Tensor | None = None  # what the clip sees in the picture, (1, D)

    def within_deg(self, progress: float) -> tuple[float, float]:
        """(its azimuth, how far from it the other views may stand) at `progress` 0..1 of the run."""
        widened = min(1.0, progress / ALL_ROUND_AT)
        return float(self.scene.azimuth_deg[0]), FIRST_RANGE_DEG + (180.0 - FIRST_RANGE_DEG) * widened

    def led(self, aim: Aim, mask: Tensor) -> Aim:
        """The aim with pictures that look more like the reference, where they are clean enough to tell; mask
        (B, 1, H, W) of the object."""
        if self.clip is None:
            return aim
        step = torch.where(aim.time < CLEAN_BELOW, self.clip_strength, 0.0)
        return replace(aim, picture=self.clip.led(aim.picture, mask, self.look, step))

    def covers(self, gbuffer: GBuffer) -> Tensor:
        """(N,) 0..1: how far the picture says what the G-buffer's points look like."""
        scene = self.scene
        normal = torch.nn.functional.normalize(gbuffer.normal, dim=1)
        normal = torch.where(gbuffer.back[:, None], -normal, normal)  # the G-buffer's faces its own camera
        shown = show(scene.gbuffer, scene.cameras, 0, gbuffer.position, normal)
        return torch.where(shown.seen, shown.read(self.share)[:, 0], 0.0)


def read(path: Path) -> Tensor:
    """(4, S, S) display values and alpha in 0..1, upright. Raises ProtocolError with a sentence."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width != height:
                raise ProtocolError(f"The reference picture {path.name} is {width} x {height} pixels: cut it square.")
            if not SMALLEST <= width <= LARGEST:
                raise ProtocolError(
                    f"The reference picture {path.name} is {width} pixels wide; it must have {SMALLEST} to {LARGEST}."
                )
            if image.mode in ("I", "F"):
                raise ProtocolError(
                    f"The reference picture {path.name} has pixels of 32 bits, which do not say what is white. Save it "
                    "as a PNG of 8 or 16 bits."
                )
            pixels = _rgba(_upright(image))
    except FileNotFoundError:
        raise ProtocolError(f"There is no reference picture {path}.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ProtocolError):
            raise
        raise ProtocolError(
            f"The reference picture {path.name} cannot be read: it is damaged, or no PNG, JPEG or WebP. Choose another."
        ) from error
    return pixels.permute(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    """The picture as it was seen; cameras write down how they were held. Pillow's `exif_transpose` would write those
    notes anew too, which raises all kinds of errors where they are odd."""
    image.load()  # a TIFF turns itself here, and its note is gone
    how = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if how is None else image.transpose(how)


def _rgba(image: Image.Image) -> Tensor:
    """(H, W, 4) in 0..1."""
    if image.mode.startswith("I;16"):  # Pillow's own way to eight bits cuts off at 255
        grey = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)[..., None]
        return torch.cat((grey, grey, grey, torch.ones_like(grey)), dim=-1)
    return torch.from_numpy(np.array(image.convert("RGBA"), np.float32) / 255)


def _shrunk(whole: Tensor, size: int) -> Tensor:
    """(1, 4, size, size) of display values and alpha (1, 4, S, S). A pixel counts by its alpha: what is transparent has
    a colour too, most often black, and no say in its neighbours'."""
    counted = torch.cat((whole[:, :3] * whole[:, 3:], whole[:, 3:]), dim=1)
    colors, alpha = torch.nn.functional.interpolate(counted, size=(size, size), mode="area").split((3, 1), dim=1)
    return torch.cat((colors / alpha.clamp(min=1e-6), alpha), dim=1)


def camera_of(view: dict[str, float]) -> Cameras:
    """The camera that TextureRequest.reference_view means; the object fits the unit sphere."""
    half_fov = math.radians(view.get("fov_deg", FOV_DEG) / 2)
    distance = view.get("distance", FULL_VIEW_MARGIN / math.sin(half_fov))
    each = view.get("azimuth_deg", 0.0), view.get("elevation_deg", 0.0), distance, math.tan(half_fov)
    return look_at(*(torch.tensor([value], dtype=torch.float32) for value in each))


def new(
    path: Path, view: dict[str, float], triangles: Triangles, render_size: int, clip: Clip | None = None,
    clip_strength: float = LikenessOptions.clip_strength,
) -> Reference:  # fmt: skip
    """The picture in `path`, finer than the pictures of `render_size` that the model sees where it is: what it shows is
    then settled in all detail that the maps have. Raises ProtocolError."""
    device, whole = triangles.positions.device, read(path)[None]
    whole = _shrunk(whole.to(device), min(whole.shape[3], max(2 * render_size, FINE)))
    size = whole.shape[3]
    cameras = camera_of(view)
    gbuffer = gather(triangles, cameras, [look(triangles, cameras, 0, size)])
    # What the picture leaves open, and the object's edge, say nothing.
    share = whole[:, 3:] * (gbuffer.coverage[:, None] == 1)
    if not share.any():
        raise ProtocolError(
            "The reference picture's view does not show the object, or the picture is transparent there. Choose the "
            "view again."
        )
    scene = Scene(
        gbuffer, lighting.uniform(1).to(device), size, 1.0, torch.zeros(3), (), None, cameras.azimuth_deg,
        cameras.elevation_deg, cameras,
    )  # fmt: skip
    picture = whole[:, :3] * 2 - 1
    if clip is None:
        return Reference(picture, share, scene)
    with torch.no_grad():
        look_of_it = clip.embed(picture * share + (1 - share) * BEHIND)
    return Reference(picture, share, scene, clip, clip_strength, look_of_it)
