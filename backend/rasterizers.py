# SPDX-License-Identifier: Apache-2.0
"""Which rasteriser a mesh is looked at with: the portable one, Embree on the CPU, or nvdiffrast on CUDA.

Each is a function (cameras, index, sizes) -> for each size the triangle (size*size,) seen at every pixel centre, -1
where there is none, and its barycentrics (size*size, 3). What is optional is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from addon.protocol import RASTERIZERS, ProtocolError

from . import scanlines
from .cameras import Cameras

Rasterizer = Callable[[Cameras, int, tuple[int, ...]], list[tuple[Tensor, Tensor]]]

NEAR, FAR = 0.05, 50.0  # of nvdiffrast's depth; cameras stand outside of the unit sphere and within 10


class RasterizerError(ProtocolError):
    """The rasteriser that a request asks for cannot be used here; a sentence for a person that says what to do."""


def pick(positions: Tensor, wanted: str = "auto") -> Rasterizer:
    """The rasteriser for triangles `positions` (F, 3, 3): the `wanted` one of RASTERIZERS, or the fastest that is here.

    On the CPU that is Embree, where it is installed: in 64 pixels twice as fast as the portable one with 2,000
    triangles, and ever more with more (`evaluate speed`). nvdiffrast is never taken unasked: its licence allows
    research and evaluation only. Raises RasterizerError where the wanted one cannot be used.
    """
    if wanted not in RASTERIZERS:
        raise RasterizerError(f"There is no rasteriser {wanted!r}; there are {', '.join(RASTERIZERS)}.")
    if wanted == "embree" or (wanted == "auto" and positions.device.type == "cpu"):
        try:
            return _embree(positions)
        except RasterizerError:
            if wanted == "embree":
                raise
    if wanted == "nvdiffrast":
        return _nvdiffrast(positions)
    by_component = positions.permute(1, 2, 0).contiguous()
    return lambda cameras, index, sizes: scanlines.rasterize(by_component, cameras, index, sizes)


def _embree(positions: Tensor) -> Rasterizer:
    """One ray through every pixel centre; on the CPU."""
    if positions.device.type != "cpu":
        raise RasterizerError("Embree works on the CPU alone. Choose another rasteriser for this device.")
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise RasterizerError(f"Embree is not installed ({error}). Install it: pip install embreex") from error
    tree = EmbreeScene(robust=True)  # no ray slips through between two triangles
    geometry = TriangleMesh(tree, positions.numpy())

    def rasterize(cameras: Cameras, index: int, sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        right, up, backward = cameras.rotation[index]
        seen = []
        for size in sizes:
            across = (2 * (torch.arange(size) + 0.5) / size - 1) * cameras.tan_half_fov[index]
            towards = (across[None, :, None] * right - across[:, None, None] * up - backward).view(-1, 3)
            origin = cameras.position[index].expand(len(towards), 3).contiguous()
            found = tree.run(origin.numpy(), towards.numpy(), output=True)
            triangle, u, v = (torch.from_numpy(found[name]) for name in ("primID", "u", "v"))
            bary = torch.stack((1 - u - v, u, v), dim=1).clamp(min=0)
            seen.append((triangle.long(), torch.where(triangle[:, None] >= 0, bary, 0.0)))
        return seen

    rasterize.geometry = geometry  # which the tree does not keep alive
    return rasterize


def _nvdiffrast(positions: Tensor) -> Rasterizer:
    """CUDA's. Not measured and not tested by us: no machine at hand could build it."""
    if positions.device.type != "cuda":
        raise RasterizerError("nvdiffrast works on CUDA alone. Choose another rasteriser for this device.")
    if len(positions) >= 1 << 24:
        raise RasterizerError("nvdiffrast numbers at most 16,777,215 triangles. Choose another rasteriser.")
    try:
        import nvdiffrast.torch as nvdiffrast
    except ImportError as error:
        raise RasterizerError(
            f"nvdiffrast is not installed ({error}). It is on no package index and needs a compiler: see its own site."
        ) from error
    context = nvdiffrast.RasterizeCudaContext(device=positions.device)
    points = positions.reshape(-1, 3)
    triangles = torch.arange(len(points), dtype=torch.int32, device=positions.device).view(-1, 3)

    def rasterize(cameras: Cameras, index: int, sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        clip = clip_positions(points, cameras, index)
        seen = []
        for size in sizes:
            raster = nvdiffrast.rasterize(context, clip[None], triangles, (size, size), grad_db=False)[0][0]
            raster = raster.flip(0).reshape(-1, 4)  # its row 0 is the bottom
            u, v, number = raster[:, 0], raster[:, 1], raster[:, 3].long() - 1
            bary = torch.stack((u, v, 1 - u - v), dim=1)
            seen.append((number, torch.where(number[:, None] >= 0, bary, 0.0)))
        return seen

    return rasterize


def clip_positions(points: Tensor, cameras: Cameras, index: int) -> Tensor:
    """OpenGL clip coordinates (V, 4) of points (V, 3): x and y over w in -1..1 with y up, depth -1 near to 1 far."""
    local = (points - cameras.position[index]) @ cameras.rotation[index].T
    w = -local[:, 2]
    depth = ((FAR + NEAR) * w - 2 * FAR * NEAR) / (FAR - NEAR)
    across = local[:, :2] / cameras.tan_half_fov[index]
    return torch.cat((across, depth[:, None], w[:, None]), dim=1).contiguous()
