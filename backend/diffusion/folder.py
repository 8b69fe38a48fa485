# SPDX-License-Identifier: Apache-2.0
"""A model on disk: is it whole, is it safe, is it one that Patina knows. Reads names, sizes and headers only.

Nothing is ever unpickled, and no class is loaded because a file names it: what may be loaded is the table below.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from .interface import ModelError

_CLIP, _T5 = ("CLIPTokenizer", "CLIPTokenizerFast"), ("T5Tokenizer", "T5TokenizerFast")
_QWEN = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_FLOW = ("FlowMatchEulerDiscreteScheduler",)
# Their betas mean the same; which of them a folder names matters to samplers alone.
_BETAS = tuple(
    f"{name}Scheduler"
    for name in (
        "DDPM", "DDIM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep",
        "DPMSolverSinglestep", "HeunDiscrete", "UniPCMultistep", "DEISMultistep", "KDPM2Discrete", "LCM",
    )
)  # fmt: skip

# Pipeline -> part -> classes that may be loaded for it. Other parts of a folder (safety checkers, watermarkers,
# feature extractors) are never looked at.
KNOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "IFPipeline": {
        "scheduler": _BETAS, "unet": ("UNet2DConditionModel",),
        "tokenizer": _T5, "text_encoder": ("T5EncoderModel",),
    },
    "IFSuperResolutionPipeline": {
        "scheduler": _BETAS, "image_noising_scheduler": _BETAS, "unet": ("UNet2DConditionModel",),
        "tokenizer": _T5, "text_encoder": ("T5EncoderModel",),
    },
    "StableDiffusionPipeline": {
        "scheduler": _BETAS, "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",),
        "tokenizer": _CLIP, "text_encoder": ("CLIPTextModel",),
    },
    "StableDiffusionXLPipeline": {
        "scheduler": _BETAS, "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",),
        "tokenizer": _CLIP, "text_encoder": ("CLIPTextModel",),
        "tokenizer_2": _CLIP, "text_encoder_2": ("CLIPTextModelWithProjection",),
    },
    "StableDiffusion3Pipeline": {
        "scheduler": _FLOW, "transformer": ("SD3Transformer2DModel",), "vae": ("AutoencoderKL",),
        "tokenizer": _CLIP, "text_encoder": ("CLIPTextModelWithProjection",),
        "tokenizer_2": _CLIP, "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_3": _T5, "text_encoder_3": ("T5EncoderModel",),
    },
    "Flux2KleinPipeline": {
        "scheduler": _FLOW, "transformer": ("Flux2Transformer2DModel",), "vae": ("AutoencoderKLFlux2",),
        "tokenizer": _QWEN, "text_encoder": ("Qwen3ForCausalLM",),
    },
    "ZImagePipeline": {
        "scheduler": _FLOW, "transformer": ("ZImageTransformer2DModel",), "vae": ("AutoencoderKL",),
        "tokenizer": _QWEN, "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
    },
}  # fmt: skip
CONTROLS = ("ControlNetModel", "SD3ControlNetModel", "ZImageControlNetModel")
SECOND_STAGES = ("IFSuperResolutionPipeline",)  # which enlarge what another model paints
OPTIONAL = {"StableDiffusion3Pipeline": ("tokenizer_3", "text_encoder_3")}  # 9 GB that SD3 does without

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))  # any of them
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


class FolderError(ModelError):
    """This is no model that Patina can load; a sentence for a person that says what to do."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder that was checked: `parts` is part -> class name, `settings` the pipeline's own values."""

    path: Path
    pipeline: str
    parts: dict[str, str]
    settings: dict[str, object]

    def variant(self, part: str) -> str | None:
        """ "fp16" where the part's weights come in this variant only."""
        names = [path.name for path in (self.path / part).glob("*.safetensors")]
        for variant in ("fp16", "bf16"):
            if names and all(f".{variant}" in name for name in names):
                return variant
        return None


def read(path: Path) -> ModelFolder:
    """Check the model in `path`. Raises FolderError."""
    if path.is_file():
        raise FolderError(_single_file(path))
    if not path.is_dir():
        raise FolderError(f"There is no model folder {path}.")
    index = path / "model_index.json"
    if not index.is_file():
        raise FolderError(_no_index(path))
    stored = _json(index)
    pipeline = stored.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in KNOWN:
        raise FolderError(
            f"{path} holds a “{_shown(pipeline)}”, a kind of model that Patina does not know. "
            f"It knows: {', '.join(name for name in KNOWN if name not in SECOND_STAGES)}."
        )
    parts = {}
    for part, classes in KNOWN[pipeline].items():
        named = stored.get(part)
        if part in OPTIONAL.get(pipeline, ()) and (named is None or named == [None, None]):
            continue
        if not isinstance(named, list) or len(named) != 2 or named[1] not in classes:
            what = "nothing" if named in (None, [None, None]) else f"“{_shown(named)}”"
            raise FolderError(f"{index} names {what} as its {part}; Patina can load {' or '.join(classes)} there.")
        _check_part(path / part, part)
        parts[part] = named[1]
    settings = {key: value for key, value in stored.items() if isinstance(value, bool | int | float | str)}
    return ModelFolder(path, pipeline, parts, settings)


def is_control(path: Path) -> bool:
    """Whether `path` is a folder that says it is a ControlNet; a damaged one says nothing."""
    if (path / "model_index.json").is_file() or not (path / "config.json").is_file():
        return False
    try:
        return _json(path / "config.json").get("_class_name") in CONTROLS
    except FolderError:
        return False


def check_control(path: Path) -> str:
    """The class of the ControlNet in `path`, one of CONTROLS. Raises FolderError where it is no whole one."""
    if path.is_file():
        raise FolderError(_single_file(path).replace("with model_index.json", "with config.json"))
    if not path.is_dir():
        raise FolderError(f"There is no control folder {path}.")
    if (path / "model_index.json").is_file():
        raise FolderError(f"{path} holds a whole model and no control. Choose it as the model, or another folder.")
    config = path / "config.json"
    name = _json(config).get("_class_name") if config.is_file() else None
    if name is None:
        raise FolderError(f"{path} is no control: it holds no config.json that says so.")
    if name not in CONTROLS:
        known = " or ".join(", ".join(CONTROLS).rsplit(", ", 1))
        raise FolderError(f"{path} holds a “{_shown(name)}”; as a control Patina can load {known}.")
    _check_part(path, "control")
    return name


def check_clip(path: Path) -> None:
    """Raises FolderError where `path` is no whole CLIP model of transformers."""
    if os.path.isfile(path):  # pathlib's raises for a name that no disk can hold
        raise FolderError(f"{path} is a single file. Patina needs the CLIP model as a folder of transformers.")
    config = path / "config.json"
    if not os.path.isfile(config):
        raise FolderError(f"{path} is no CLIP model: it is no folder with a config.json.")
    kind = _json(config).get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise FolderError(f"{path} is no CLIP model: its config.json says “{_shown(kind)}”. Choose one of type clip.")
    _check_part(path, "CLIP model")


def _check_part(folder: Path, part: str) -> None:
    if not folder.is_dir():
        raise FolderError(f"The model is not complete: {folder} is missing. Download it again.")
    if part.startswith("tokenizer"):
        if not any(all(_holds_something(folder / name) for name in names) for names in _VOCABULARIES):
            choice = ", or ".join(" with ".join(names) for names in _VOCABULARIES)
            raise FolderError(f"The model is not complete: {folder} has no vocabulary ({choice}). Download it again.")
        return
    schedule = part.endswith("scheduler")
    config = folder / ("scheduler_config.json" if schedule else "config.json")
    if not config.is_file():
        raise FolderError(f"The model is not complete: {config} is missing. Download it again.")
    _json(config)
    if schedule:
        return
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [path for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
        if pickles:
            raise FolderError(
                f"{pickles[0]} is a pickle, which can run any program when it is opened, and {folder} has no "
                "safetensors beside it. Patina opens safetensors only: get the model in that format."
            )
        raise FolderError(f"The model is not complete: {folder} holds no weights. Download it again.")
    for index in folder.glob("*.safetensors.index*.json"):
        pieces = _json(index).get("weight_map")
        if not isinstance(pieces, dict):
            raise FolderError(f"{index} is no list of weights. Download the model again.")
        for name in sorted(set(pieces.values())):
            if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
                raise FolderError(f"The model is not complete: {folder / _shown(name)} is missing. Download it again.")
    for path in weights:
        check_weights(path)


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 2  # more than "{}"


def check_weights(path: Path) -> int:
    """The file's size, in bytes. Raises FolderError where it is not a whole safetensors file."""
    size = path.stat().st_size
    torn = FolderError(f"The model is not complete: {path} is cut off or damaged. Download it again.")
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little") if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise torn
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise torn from error
    if size != 8 + length + max(ends, default=0):
        raise torn
    return size


def _single_file(path: Path) -> str:
    if path.suffix in PICKLES:
        return (
            f"{path} is a pickle checkpoint, which can run any program when it is opened. Patina opens safetensors "
            "only: choose a folder in diffusers' format."
        )
    return f"{path} is a single file. Patina needs the model as a folder in diffusers' format, with model_index.json."


def _no_index(path: Path) -> str:
    config = path / "config.json"
    name = _json(config).get("_class_name") if config.is_file() else None
    if isinstance(name, str):
        return (
            f"{path} holds a “{_shown(name)}”, one part of a model and no whole one. "
            "Choose a folder with model_index.json."
        )
    pickles = [entry for entry in sorted(path.iterdir()) if entry.suffix in PICKLES]
    if pickles:
        return _single_file(pickles[0])
    return f"{path} is no model folder: it holds no model_index.json."


def _json(path: Path) -> dict:
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FolderError(f"The model is damaged: {path} cannot be read ({error}). Download it again.") from error
    if not isinstance(stored, dict):
        raise FolderError(f"The model is damaged: {path} holds no settings. Download it again.")
    return stored


def _shown(name: object) -> str:
    """A name from a file, made safe to show."""
    text = " ".join(map(str, name)) if isinstance(name, list) else str(name)
    return "".join(c for c in text if c.isprintable())[:80]
