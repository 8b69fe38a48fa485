# SPDX-License-Identifier: Apache-2.0
"""Which family's file knows a model folder."""

from __future__ import annotations

from pathlib import Path

import torch

from . import folder
from .interface import Denoiser


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
    try:
        return _family(found.pipeline)(found, device)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except ImportError as error:
        raise folder.FolderError(f"The model in {path} needs a library that is missing: {error.name}.") from error
    # Values that no network can be made of, weights of other shapes, and settings that contradict each other.
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise folder.FolderError(f"The model in {path} cannot be loaded. {_short(error)}") from error


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


def _short(error: Exception) -> str:
    """The first sentence of what a library says."""
    told = " ".join(str(error).split()).partition(". ")[0][:300]
    return told if told.endswith(".") else f"{told}."
