# SPDX-License-Identifier: Apache-2.0
"""Which model a request means, and keeping the last one warm between jobs."""

from __future__ import annotations

import gc
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from addon.protocol import BUILT_IN_MODEL

from .diffusion.interface import Controllable, Denoiser, ModelError, Sparing
from .diffusion.likeness import Clip
from .diffusion.memory import Memory


def pick_device(wanted: str) -> torch.device:
    """auto: CUDA, then Apple's GPU, then the CPU. Raises ModelError when the wanted one is missing."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[wanted]:
        raise ModelError(f"The device “{wanted}” is not available on this computer. Choose “auto” or “cpu”.")
    return torch.device(wanted)


class ModelShelf:
    """Holds at most one loaded model."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._model: Denoiser | None = None

    def get(self, name: str, device: torch.device) -> Denoiser:
        """The model `name` on `device`, loaded if it is not the one at hand. Raises ModelError."""
        key = (name, str(device))
        if self._model is None or self._key != key:
            self.release()
            self._model, self._key = _load(name, device), key
        return self._model

    def release(self) -> None:
        """Forget the model and give its memory back."""
        self._model = self._key = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def set_control(model: Denoiser, control: str, kind: str, strength: float) -> None:
    """Let `model` look at depth or normals through the ControlNet `control` (a folder, or the id of a fetched one), or
    through none where it is empty. Raises ModelError."""
    if not isinstance(model, Controllable):
        if control:
            raise ModelError(
                f"“{model.name}” takes no control: only Stable Diffusion 1.5, 2.x, SDXL, SD3 and Z-Image do. Leave the "
                "control out."
            )
        return
    from .model_store import find

    path = find(control) if control else None
    if control and path is None:
        raise ModelError(f"There is no control “{control}”. Choose the folder of a ControlNet in diffusers' format.")
    model.set_control(path, kind, strength)


def set_memory(models: tuple[Denoiser, ...], memory: Memory) -> None:
    """Let the models of one run share their device like this, each as far as it can. Raises ModelError for what none of
    them can do, in the words of the first."""
    usual = asdict(Memory())
    for name, wanted in asdict(memory).items():
        if wanted != usual[name] and not any(name in _spared_by(model) for model in models):
            _set_memory(models[0], memory)
    for model in models:
        _set_memory(model, replace(memory, **{name: usual[name] for name in usual if name not in _spared_by(model)}))


def _spared_by(model: Denoiser) -> tuple[str, ...]:
    return model.spares() if isinstance(model, Sparing) else ()


def _set_memory(model: Denoiser, memory: Memory) -> None:
    if isinstance(model, Sparing):
        model.set_memory(memory)
    elif memory != Memory():
        raise ModelError(
            f"“{model.name}” is small and shares its device anyhow. Leave {', '.join(asdict(memory))} out."
        )


def clip(name: str, device: torch.device) -> Clip | None:
    """The CLIP model in the folder `name`; None without a name. Raises ModelError."""
    return Clip(Path(os.path.expanduser(name)), device) if name else None


def second_stage(name: str, device: torch.device) -> Denoiser:
    """The second stage of a cascade: the built-in one, a folder, or the id of a fetched one. Raises ModelError."""
    return _built_in(device, second=True) if name == BUILT_IN_MODEL else _from_folder(name, device, second=True)


def _load(name: str, device: torch.device) -> Denoiser:
    return _built_in(device) if name == BUILT_IN_MODEL else _from_folder(name, device)


def _built_in(device: torch.device, second: bool = False) -> Denoiser:
    from .diffusion.built_in import FIRST, SECOND, BuiltInPrior

    try:
        return BuiltInPrior(device, stage=SECOND if second else FIRST)
    except torch.OutOfMemoryError:
        raise
    # A file that is torn is a SafetensorError or a ValueError, weights of another shape a RuntimeError.
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"The built-in model cannot be loaded; install Patina again. ({error})") from error


def _from_folder(name: str, device: torch.device, second: bool = False) -> Denoiser:
    try:
        from .diffusion import families
        from .model_store import find, is_partly_here
    except ImportError as error:
        raise ModelError(f"Models from folders need the library “{error.name}”. Repair the backend.") from error
    path = find(name)
    if path is None and is_partly_here(name):
        raise ModelError(
            f"The model “{name}” was not fetched to its end. Go on with: python -m backend models pull {name} --accept"
        )
    if path is None:
        raise ModelError(
            f"Patina does not know the model “{name}”. Choose “{BUILT_IN_MODEL}”, the folder of a model in diffusers' "
            "format, or fetch one (python -m backend models pull ID)."
        )
    return families.load(path, device, second)
