# SPDX-License-Identifier: Apache-2.0
"""ControlNets: our renders of depth or normals tell the model the geometry. Those of the UNets are asked here.

Encodings are those of the annotators that the published ControlNets were trained with. Depth: MiDaS, inverse depth,
nearest white, nothing black. Normals: BAE (ScanNet), towards the left red, up green, towards the camera blue.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from addon.protocol import CONTROL_KINDS

from ..tiling import tile
from .folder import FolderError, ModelFolder, check_control
from .interface import Scene
from .parts import network, refusals

FARTHEST = 0.2  # the object's own farthest point: its outline shows before the black of nothing


@dataclass(frozen=True)
class Control:
    """A loaded ControlNet; strength 0..1 and more of what it adds."""

    net: ControlNetModel
    kind: str
    strength: float

    def residuals(self, noisy: Tensor, timestep: Tensor, text: Tensor, told: dict, shown: Tensor) -> dict:
        """What the network takes besides: its named inputs for noisy (B, C, h, w) and control pictures `shown`."""
        down, middle = self.net(
            noisy, timestep, encoder_hidden_states=text, controlnet_cond=shown.to(noisy),
            conditioning_scale=self.strength, added_cond_kwargs=told or None, return_dict=False,
        )  # fmt: skip
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def load(path: Path, kind: str, strength: float, unet: UNet2DConditionModel, name: str, dtype: torch.dtype) -> Control:
    """The ControlNet in `path` for the model `name` with this network. `kind` is one of protocol.CONTROL_KINDS, or ""
    for what the folder is called. Raises FolderError."""
    net, kind = open_net(path, kind, ControlNetModel, name, dtype)
    same = "in_channels", "cross_attention_dim", "block_out_channels", "addition_embed_type"
    check_fit(net, unet, same, path, name)
    return Control(net, kind, strength)


def open_net(path: Path, kind: str, wanted: type, name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, str]:
    """The network in `path`, of the class that the model `name` takes, and what it looks at. Raises FolderError."""
    found = check_control(path)
    if found != wanted.__name__:
        raise FolderError(
            f"The control in {path} is made for another family of models than “{name}” (it is a {found}, which is no "
            f"{wanted.__name__}). Choose a control for this model."
        )
    kind = kind or _kind_of(path)
    with refusals(f"The control in {path}"):
        return network(ModelFolder(path, found, {}, {}), "", wanted, dtype), kind


def check(path: Path) -> str:
    """The class of the ControlNet in `path`, of which all weights are there. Raises FolderError."""
    found = check_control(path)
    with refusals(f"The control in {path}"):
        network(ModelFolder(path, found, {}, {}), "", getattr(diffusers, found), torch.float32, outlined=True)
    return found


def check_fit(net: torch.nn.Module, model: torch.nn.Module, same: tuple[str, ...], path: Path, name: str) -> None:
    """Raises FolderError where the settings called `same` differ between a control and the network of the model."""
    for what in same:
        theirs, ours = net.config.get(what), model.config.get(what)
        if (list(theirs) if isinstance(theirs, tuple) else theirs) != (list(ours) if isinstance(ours, tuple) else ours):
            raise FolderError(
                f"The control in {path} is made for another family of models than “{name}” ({what} is {theirs} in the "
                f"one and {ours} in the other). Choose a control for this model."
            )


def _kind_of(path: Path) -> str:
    """What the folder's name says that the control looks at."""
    found = [kind for kind in CONTROL_KINDS if kind in path.name.lower()]
    if len(found) != 1:
        raise FolderError(
            f"Whether the control in {path} looks at depth or at normals is written nowhere in it. Say it with "
            "--control-kind depth or --control-kind normal."
        )
    return found[0]


def shown(kind: str, scene: Scene) -> Tensor:
    """Control pictures (B, 3, S, S) in 0..1 of the scene; four views as one where the scene is such."""
    gbuffer, cameras = scene.gbuffer, scene.cameras
    count, size = gbuffer.coverage.shape[:2]
    turn = cameras.rotation.to(gbuffer.position)[gbuffer.view]  # rows right, up, backward
    if kind == "depth":
        away = cameras.position.to(gbuffer.position)[gbuffer.view] - gbuffer.position
        values = _nearness((away * turn[:, 2]).sum(1), gbuffer.view, count)[:, None].expand(-1, 3)
        behind = gbuffer.position.new_zeros(3)
    else:
        normal = torch.einsum("nij,nj->ni", turn, torch.nn.functional.normalize(gbuffer.normal, dim=1))
        values = (normal * normal.new_tensor([-1.0, 1.0, 1.0]) + 1) / 2
        behind = values.new_tensor([0.5, 0.5, 1.0])
    pictures = gbuffer.picture(values, behind.expand(count, size, size, 3)).permute(0, 3, 1, 2).contiguous()
    return pictures if scene.tiles is None else tile(pictures[torch.tensor(scene.tiles, device=pictures.device)])


def _nearness(depth: Tensor, view: Tensor, count: int) -> Tensor:
    """(N,) inverse depth, from FARTHEST to 1 in each picture."""
    inverse = 1 / depth
    low = torch.full((count,), torch.inf).to(inverse).scatter_reduce(0, view, inverse, "amin")
    high = torch.full((count,), -torch.inf).to(inverse).scatter_reduce(0, view, inverse, "amax")
    share = (inverse - low[view]) / (high - low)[view].clamp(min=1e-6)
    return FARTHEST + (1 - FARTHEST) * share
