# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps of every format as Blender reads them: the same values, and the colour space that each wants."""

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")
torch = pytest.importorskip("torch")  # not beside every bpy that is tested

from backend import maps  # noqa: E402
from backend.shading import srgb_to_linear  # noqa: E402


@pytest.mark.parametrize(("file_format", "bits", "off"), [
    ("png", 8, 0.51 / 255), ("png", 16, 0.51 / 65535), ("exr", 16, 1e-3), ("exr", 32, 1e-6),
])  # fmt: skip
def test_blender_reads_what_was_written(file_format, bits, off, tmp_path):
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.rand(16, 16, count, generator=generator) for name, count in maps.CHANNELS.items()}
    paths = maps.write_maps(tmp_path, made, torch.ones(16, 16, dtype=torch.bool), file_format=file_format, bits=bits)
    for name, path in paths.items():
        image = bpy.data.images.load(str(path), check_existing=False)
        try:
            usual = image.colorspace_settings.name
            assert usual == ("sRGB" if file_format == "png" else "Linear Rec.709"), name
            image.colorspace_settings.name = "Non-Color"
            seen = np.array(image.pixels[:]).reshape(16, 16, 4)[::-1, :, : maps.CHANNELS[name]]  # row 0 at the bottom
        finally:
            bpy.data.images.remove(image)
        wanted = maps.unit_normals(made[name]) if name == "normal" else made[name]
        if file_format == "exr" and name == "base_color":
            wanted = srgb_to_linear(wanted)  # "Linear Rec.709", as Blender takes it by itself, is right
        assert np.abs(seen - wanted.numpy()).max() <= off + 1e-6, name
