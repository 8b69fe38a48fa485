# SPDX-License-Identifier: Apache-2.0
"""Which family's file knows a model folder."""

from __future__ import annotations

from pathlib import Path

import torch

from . import folder
from .interface import Denoiser
from .parts import refusals, text_parts


def load(path: Path, device: torch.device, second: bool = False) -> Denoiser:
    """The model in `path`, to be used on `device`; a `second` one of a cascade, or one that paints by itself. Raises
    FolderError, and what torch raises for want of memory."""
    found = folder.read(path)
    if second != (found.pipeline in folder.SECOND_STAGES):
        raise folder.FolderError(
            f"{path} holds a “{found.pipeline}”, which is no second stage: {' and '.join(folder.SECOND_STAGES)} is."
            if second
            else f"{path} is a later stage of a cascade, which enlarges pictures. Choose it as the second stage, and "
            "another one as the model."
        )
    with refusals(f"The model in {path}"):
        return _family(found.pipeline)(found, device)


def check(path: Path) -> folder.ModelFolder:
    """The model in `path`, of which every part can be loaded as a whole; no weight is read. Raises FolderError."""
    found = folder.read(path)
    with refusals(f"The model in {path}"):
        model = _family(found.pipeline)(found, torch.device("meta"))
        text_parts(found, model.device, model.dtype)
    return found


def _family(pipeline: str) -> type:
    match pipeline:
        case "IFPipeline":
            from .pixel import PixelModel as family
        case "IFSuperResolutionPipeline":
            from .pixel import EnlargingModel as family
        case "StableDiffusionPipeline":
            from .latent import LatentModel as family
        case "StableDiffusionXLPipeline":
            from .latent import SdxlModel as family
        case "StableDiffusion3Pipeline":
            from .flow import Sd3Model as family
        case "Flux2KleinPipeline":
            from .flow import KleinModel as family
        case "ZImagePipeline":
            from .flow import ZImageModel as family
        case _:
            raise ValueError(f"No family knows {pipeline}.")
    return family
