# SPDX-License-Identifier: Apache-2.0
"""Fetching a model from the hub: only what Patina loads, never a pickle, and on from where a broken download ended.

Knows the hub and the folder that model_store.py gives the model; nothing of what is fetched is executed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlparse

from addon import protocol

from .diffusion import folder
from .diffusion.interface import ModelError
from .model_store import FACTS, alone, check, facts_of, place, preset, sha256_of, size_of

FETCHED = re.compile(r"\.(safetensors|json|txt|model|jinja)$")
_PIECE = re.compile(r"-(\d{5})-of-(\d{5})\.")  # of weights in several files


def pull(identifier: str, accept: bool, tell=print) -> Path:
    """Fetch a model, or the rest of it; its folder. Raises ModelError, also when the licence is not accepted."""
    target = place(identifier)
    hub, info = _ask_hub(identifier)
    wanted = _wanted_files(hub, identifier, info)
    total = sum(size or 0 for size, _ in wanted.values())
    known = preset(identifier)
    licence = known.licence if known else _licence(info)
    tell(f"{identifier}: {total / 1e9:.1f} GB, licence: {licence}")
    if not accept:
        raise ModelError(f"Nothing was fetched. Read the licence at {_address(hub, identifier)}, then add --accept.")
    with alone(target, f"Another Patina is fetching “{identifier}” just now. Wait until that has ended."):
        _fetch_all(hub, identifier, info.sha, wanted, target, tell)
        facts = {"id": identifier, "revision": info.sha, "licence": licence, "files": wanted}
        protocol.write_beside(target / FACTS, json.dumps(facts, indent=1).encode())
        check(target)
    return target


def _fetch_all(hub, identifier: str, revision: str, wanted: dict, target: Path, tell) -> None:
    """The `wanted` files, of which some may be in `target`. Raises ModelError."""
    total = sum(size or 0 for size, _ in wanted.values())
    free = shutil.disk_usage(_existing(target)).free
    there = size_of(target) if target.is_dir() else 0
    if total - there > free:
        raise ModelError(f"The disk has {free / 1e9:.1f} GB free; the model needs {(total - there) / 1e9:.1f} GB more.")
    _clear(target, wanted, revision)
    for number, name in enumerate(wanted, 1):
        tell(f"[{number}/{len(wanted)}] {name}")
        _fetch(hub, identifier, name, revision, target)


def _clear(target: Path, wanted: dict, revision: str) -> None:
    """Delete what is damaged, of another revision, or would be loaded instead of the `wanted`."""
    try:
        known = facts_of(target).get("revision") == revision
    except ModelError:
        known = False
    for name, (size, digest) in wanted.items():
        file = target / name
        # Without a digest, nothing but the revision says what a file of this size holds.
        if file.is_file() and (file.stat().st_size != size or (sha256_of(file) != digest if digest else not known)):
            file.unlink()
    kept = {*wanted, *(_part_name(name, revision) for name in wanted)}
    for file in list(target.rglob("*")):
        name = file.relative_to(target).as_posix()
        if name not in kept and re.search(r"\.safetensors|\.part$", name) and file.is_file():
            file.unlink()


def _part_name(name: str, revision: str) -> str:
    return f"{name}.{revision[:8]}.part"


def _ask_hub(identifier: str):
    """(huggingface_hub, what it knows about the model)."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ModelError(f"Fetching models needs the library “{error.name}”. Repair the backend.") from error
    try:
        return hub, hub.HfApi(endpoint=_endpoint()).model_info(identifier, files_metadata=True, timeout=20)
    except hub.errors.GatedRepoError as error:
        raise ModelError(_gated(hub, identifier)) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise ModelError(f"There is no model “{identifier}” on the hub, or it needs `hf auth login`.") from error
    except Exception as error:  # the client's transport raises its own library's errors
        raise ModelError(
            f"The hub cannot be reached ({type(error).__name__}). Models that are here still work."
        ) from error


def _wanted_files(hub, identifier: str, info) -> dict[str, tuple[int | None, str | None]]:
    """File -> (size, sha256 of large ones) of what Patina loads."""
    there = {file.rfilename: (file.size, file.lfs.sha256 if file.lfs else None) for file in info.siblings or []}
    if "model_index.json" not in there:
        return _wanted_of_control(hub, identifier, info, there)
    pipeline = _class_in(hub, identifier, "model_index.json", info.sha)
    if pipeline not in folder.KNOWN:
        raise ModelError(f"“{identifier}” is a “{pipeline}”, which Patina does not know: {', '.join(folder.KNOWN)}.")
    wanted = {"model_index.json": there["model_index.json"]}
    for part in folder.KNOWN[pipeline]:
        # A name from the network becomes a path here: a plain file of the part, nothing above or below it.
        names = [name for name in there if re.fullmatch(rf"{part}/[\w.-]+", name) and FETCHED.search(name)]
        weights = [name for name in names if ".safetensors" in name]
        if not weights and part not in ("scheduler",) and not part.startswith("tokenizer") and names:
            raise ModelError(f"“{identifier}” has no safetensors for its {part}; Patina opens nothing else.")
        other = [name for name in names if name not in weights]
        wanted |= {name: there[name] for name in (*other, *_smallest(weights))}
    return wanted


def _class_in(hub, identifier: str, name: str, revision: str) -> object:
    """The class that a model's settings name. What is here of the model stays as it is: nobody has accepted it yet."""
    with tempfile.TemporaryDirectory() as beside:
        file = _fetch(hub, identifier, name, revision, Path(beside))
        return json.loads(file.read_text("utf-8")).get("_class_name")


def _wanted_of_control(hub, identifier: str, info, there: dict) -> dict[str, tuple[int | None, str | None]]:
    refused = ModelError(
        f"“{identifier}” is neither a model nor a control in diffusers' format: it holds no model_index.json, and no "
        "config.json of a ControlNet."
    )
    if "config.json" not in there:
        raise refused
    if _class_in(hub, identifier, "config.json", info.sha) not in folder.CONTROLS:
        raise refused
    weights = [name for name in there if re.fullmatch(r"diffusion_pytorch_model[\w.-]*\.safetensors[\w.]*", name)]
    if not weights:
        raise ModelError(f"“{identifier}” has no safetensors; Patina opens nothing else.")
    return {name: there[name] for name in ("config.json", *_smallest(weights))}


def _smallest(weights: list[str]) -> list[str]:
    """Those of half precision where all of them are there, else the others. Never both: one of them is loaded."""
    half = [name for name in weights if re.search(r"\.fp16[.-]", name)]
    files = [name for name in half if name.endswith(".safetensors")]
    pieces = [piece for piece in map(_PIECE.search, files) if piece]
    if len(files) > len(pieces):
        return [name for name in files if not _PIECE.search(name)]
    # A list names the pieces: "model.safetensors.index.fp16.json". Without it nobody loads them.
    if pieces and len(half) > len(files) and len({piece[1] for piece in pieces}) == int(pieces[0][2]):
        return half
    return [name for name in weights if not re.search(r"\.(fp16|bf16)[.-]", name)] or weights


def _fetch(hub, identifier: str, name: str, revision: str, target: Path) -> Path:
    """One file of the model, as a whole. What a broken download brought is kept beside it, and gone on with:
    huggingface_hub itself does so only as long as its process lives."""
    whole = target / name
    if whole.is_file():
        return whole
    part = target / _part_name(name, revision)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        told = hub.get_hf_file_metadata(hub.hf_hub_url(identifier, name, revision=revision, endpoint=_endpoint()))
        headers = hub.utils.build_hf_headers()
        if urlparse(told.location).netloc != urlparse(_address(hub, identifier)).netloc:
            headers.pop("authorization", None)  # the store behind the hub has no business with it
        there = part.stat().st_size if part.is_file() else 0
        if told.size is not None and there > told.size:  # two that fetched it at once, or a disk's fault
            part.unlink()
            there = 0
        if there != told.size:
            with part.open("ab") as file:
                hub.file_download.http_get(
                    told.location, file, resume_size=there, headers=headers, expected_size=told.size,
                    displayed_filename=name,
                )  # fmt: skip
    except hub.errors.GatedRepoError as error:
        raise ModelError(_gated(hub, identifier)) from error
    except OSError as error:
        if error.errno is not None:  # the disk's; the transport's own have no number
            raise
        raise _broken(name, error) from error
    except Exception as error:  # the client's transport raises its own library's errors
        raise _broken(name, error) from error
    os.replace(part, whole)
    return whole


def _broken(name: str, error: Exception) -> ModelError:
    return ModelError(f"{name} could not be fetched ({type(error).__name__}). Pull again: it goes on where it ended.")


def _gated(hub, identifier: str) -> str:
    return (
        f"“{identifier}” is given only to those who agreed to its licence: agree at {_address(hub, identifier)}, "
        "then type: hf auth login"
    )


def _address(hub, identifier: str) -> str:
    return f"{_endpoint() or hub.constants.ENDPOINT}/{identifier}"


def _endpoint() -> str | None:
    """Another hub than the usual one, as huggingface_hub's own variable names it."""
    return os.environ.get("HF_ENDPOINT") or None


def _licence(info) -> str:
    told = (info.card_data or {}).get("license") if info.card_data else None
    return str(told or "not named: ask its authors")[:80]


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
