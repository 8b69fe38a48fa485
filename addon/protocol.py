# SPDX-License-Identifier: Apache-2.0
"""The contract between Blender and the backend: messages, their wire form, and the job folder.

Imported by both sides, so it uses the standard library only and knows neither bpy nor torch.
Small things travel as JSON lines, arrays as files in the job folder:

    <job>/request.json          TextureRequest
    <job>/mesh.npz              MESH_ARRAYS
    <job>/lock                  who runs the job (an OS lock is held on it)
    <job>/attempts/0001/        one start: events.jsonl, control.jsonl, log.txt
    <job>/lights/  <job>/reference.png   what lights the pictures, and what one of them shall look like; if asked for
    <job>/start/                the four maps a run begins from, mask.png (white may change); only if asked for
    <job>/preview/  <job>/maps/  <job>/picture.png  <job>/report.json  <job>/checkpoint.safetensors

Every message word is a class below; on the wire its name stands under "type". An unknown type, a
missing, extra or wrongly typed field raises `ProtocolError` naming the field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import time
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

PROTOCOL_VERSION = 3

# The four maps by their Principled sockets; this order everywhere.
MAP_NAMES = ("base_color", "metallic", "roughness", "normal")
EXTRA_MAPS = ("ambient_occlusion", "height")  # made where asked for; no part of the material
QUALITIES = ("draft", "standard", "high")
TEXTURE_SIZES = (512, 1024, 2048, 4096)
FILE_FORMATS = {"png": (8, 16), "exr": (16, 32)}  # and their bits a channel, the usual ones first
RASTERIZERS = ("auto", "torch", "embree", "nvdiffrast")  # auto never takes nvdiffrast: its licence is not free
# In the object's frame, the object in the unit sphere: azimuth 0 is its front, distance from its middle.
REFERENCE_VIEW = {
    "azimuth_deg": (-360.0, 360.0), "elevation_deg": (-90.0, 90.0), "distance": (1.01, 100.0), "fov_deg": (1.0, 120.0)
}  # fmt: skip
STARTS = ("uniform", "four_views", "latent_paint")  # what a run begins with; guidance “none” leaves it at that
CONTROL_KINDS = ("depth", "normal")
BUILT_IN_MODEL = "built-in"
LOCK_PATIENCE_S = 2.0  # for an attempt that has ended to give its job's lock back

# mesh.npz: name -> (shape behind the triangle axis, dtype). Corners of the triangulated evaluated
# mesh in object space with the object's scale applied, Blender units, +Z up, front is -Y.
MESH_ARRAYS = {
    "positions": ((3, 3), "float32"),
    "normals": ((3, 3), "float32"),  # corner normals, unit length
    "tangents": ((3, 4), "float32"),  # MikkTSpace tangent xyz and bitangent sign (+1 or -1)
    "uvs": ((3, 2), "float32"),  # origin bottom left, as in Blender
    "material_slot": ((), "int32"),
    "face_mask": ((), "bool"),  # True where the texture may change
}


class ProtocolError(ValueError):
    """A message, request or job folder does not follow the contract; says which field."""


# --- exit codes of the backend: what needs no disk to be told --------------------------------

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BAD_REQUEST = 3
EXIT_OUT_OF_MEMORY = 4
EXIT_DISK_FULL = 5
EXIT_HOST_GONE = 6
EXIT_JOB_LOCKED = 7
EXIT_CANCELLED = 8

EXIT_SENTENCES = {
    EXIT_FAILED: "The backend stopped with an error. Its log says more.",
    EXIT_USAGE: "The backend was started with arguments it does not know. Repair the backend.",
    EXIT_BAD_REQUEST: "The request or the mesh of this job cannot be used.",
    EXIT_OUT_OF_MEMORY: "The backend ran out of memory. Choose a smaller texture size or draft quality.",
    EXIT_DISK_FULL: "The disk is full. Free some space, then press Generate again.",
    EXIT_HOST_GONE: "Blender went away while the job ran. The job is paused and can be resumed.",
    EXIT_JOB_LOCKED: "Another Blender is running this job. Wait for it or cancel it there.",
    EXIT_CANCELLED: "The job was cancelled.",
}


# --- request ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextureRequest:
    """Everything a run needs besides the mesh. `None` means: what `quality` says."""

    prompt: str
    negative_prompt: str = ""
    object_name: str = ""
    seed: int = 0
    quality: str = "draft"
    texture_size: int = 1024
    model: str = BUILT_IN_MODEL
    pattern_scale: float = 1.0  # 2.0: bricks twice as large
    guidance: str = "clamped"
    guidance_scale: float | None = None  # w = 1 conditional, w = 0 unconditional
    steps: int | None = None
    views: int | None = None  # rendered views a step
    render_size: int | None = None  # pixels; None: what the model was made for
    device: str = "auto"  # auto | cpu | cuda | mps
    file_format: str = "png"
    bit_depth: int | None = None  # None: what the format usually has
    rasterizer: str = "auto"
    protocol_version: int = PROTOCOL_VERSION
    start_maps: bool = False  # begin from the maps in start/; face_mask and start/mask.png then bind
    strength: float = 1.0  # with start_maps: 1 paints anew, less changes less
    locked_maps: list[str] = field(default_factory=list)  # maps that stay as they are in start/
    mask_border: float = 0.0  # width of the soft border inside the mask, in object radii
    control: str = ""  # folder or id of a ControlNet
    control_kind: str = ""  # one of CONTROL_KINDS; empty: what the folder is called
    control_strength: float = 1.0
    second_stage: str = ""  # folder or id of a model that enlarges what `model` paints
    start: str = "uniform"  # one of STARTS
    reference: str = ""  # a square picture, in the job folder or by its whole path
    reference_view: dict[str, float] = field(default_factory=dict)  # where it was taken from: some of REFERENCE_VIEW
    options: dict[str, str] = field(default_factory=dict)  # of the guidance, by name, in words
    panoramas: str = ""  # folder of .exr or .hdr lights, in the job folder or by its whole path; empty: random lights
    extra_maps: list[str] = field(default_factory=list)  # some of EXTRA_MAPS

    def __post_init__(self) -> None:
        check_types(self)
        _require(
            self.protocol_version == PROTOCOL_VERSION,
            "protocol_version",
            f"is {self.protocol_version}, this Patina speaks {PROTOCOL_VERSION}",
        )
        _require(bool(self.prompt.strip()), "prompt", "is empty. Type what the surface should be made of")
        for name in ("prompt", "negative_prompt"):
            _require(len(getattr(self, name)) <= 2000, name, "is longer than 2000 characters")
        _require(self.quality in QUALITIES, "quality", f"must be one of {', '.join(QUALITIES)}")
        _require(
            self.texture_size in TEXTURE_SIZES,
            "texture_size",
            f"must be one of {', '.join(map(str, TEXTURE_SIZES))}",
        )
        _require(0 <= self.seed < 2**31, "seed", "must lie between 0 and 2147483647")
        _require(0.05 <= self.pattern_scale <= 20.0, "pattern_scale", "must lie between 0.05 and 20")
        _require(bool(self.model.strip()), "model", "is empty")
        _require(self.device in ("auto", "cpu", "cuda", "mps"), "device", "must be auto, cpu, cuda or mps")
        formats = ", ".join(FILE_FORMATS)
        _require(self.file_format in FILE_FORMATS, "file_format", f"must be one of {formats}")
        depths = FILE_FORMATS[self.file_format]
        problem = f"must be {' or '.join(map(str, depths))} in {self.file_format} files"
        _require(self.bit_depth is None or self.bit_depth in depths, "bit_depth", problem)
        _require(self.rasterizer in RASTERIZERS, "rasterizer", f"must be one of {', '.join(RASTERIZERS)}")
        if self.guidance_scale is not None:
            _require(0.0 <= self.guidance_scale <= 200.0, "guidance_scale", "must lie between 0 and 200")
        _require(0.0 < self.strength <= 1.0, "strength", "must lie above 0 and up to 1")
        _require(0.0 <= self.mask_border <= 1.0, "mask_border", "must lie between 0 and 1")
        for name in self.locked_maps:
            _require(name in MAP_NAMES, "locked_maps", f"may hold {', '.join(MAP_NAMES)} only")
        _require(len(set(self.locked_maps)) < len(MAP_NAMES), "locked_maps", "holds all maps, so nothing can change")
        _require(self.start_maps or not self.locked_maps, "locked_maps", "needs start_maps")
        for name in self.extra_maps:
            _require(name in EXTRA_MAPS, "extra_maps", f"may hold {', '.join(EXTRA_MAPS)} only")
        _require(self.control_kind in ("", *CONTROL_KINDS), "control_kind", f"must be {' or '.join(CONTROL_KINDS)}")
        _require(0.0 <= self.control_strength <= 2.0, "control_strength", "must lie between 0 and 2")
        _require(self.start in STARTS, "start", f"must be one of {', '.join(STARTS)}")
        for name, value in self.reference_view.items():
            known = ", ".join(REFERENCE_VIEW)
            _require(name in REFERENCE_VIEW, "reference_view", f"knows no “{name}”; it knows {known}")
            lowest, highest = REFERENCE_VIEW[name]
            _require(lowest <= value <= highest, f"reference_view.{name}", f"must lie between {lowest} and {highest}")
        for name, lowest, highest in (("steps", 1, 100_000), ("views", 1, 64), ("render_size", 16, 2048)):
            value = getattr(self, name)
            _require(value is None or lowest <= value <= highest, name, f"must lie between {lowest} and {highest}")


def upgrade_request(stored: dict) -> dict:
    """Bring a stored request of an older protocol version to this one: what was added since is at its default."""
    version = stored.get("protocol_version")
    if not isinstance(version, int) or not 1 <= version <= PROTOCOL_VERSION:
        raise ProtocolError(f"protocol_version {version!r} is newer than this Patina ({PROTOCOL_VERSION})")
    if version == PROTOCOL_VERSION:
        return stored
    added = dataclasses.asdict(TextureRequest(prompt="-"))
    del added["prompt"]
    return {**added, **stored, "protocol_version": PROTOCOL_VERSION}


# --- events: backend -> host, one JSON line each in events.jsonl ------------------------------


@dataclass(frozen=True)
class Started:
    backend_version: str
    device: str
    model: str
    total_steps: int
    resumed_from_step: int = 0


@dataclass(frozen=True)
class Progress:
    """`stage` is a short phrase for a person; `fraction` of the whole job in 0..1."""

    stage: str
    step: int
    total_steps: int
    fraction: float
    seconds_left: float | None = None


@dataclass(frozen=True)
class Preview:
    """`maps`: map name -> path relative to the job folder."""

    number: int
    step: int
    maps: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    step: int


@dataclass(frozen=True)
class Warning:
    message: str


@dataclass(frozen=True)
class Done:
    maps: dict[str, str]
    report: str  # relative path of report.json


@dataclass(frozen=True)
class Cancelled:
    step: int
    maps: dict[str, str] = field(default_factory=dict)  # the partial maps, if any were made


@dataclass(frozen=True)
class Paused:
    reason: str  # "asked" | "host gone"
    step: int


@dataclass(frozen=True)
class Failed:
    """`kind` is one of FAILURE_KINDS; `message` says what happened, `hint` what to do."""

    kind: str
    message: str
    hint: str = ""

    def __post_init__(self) -> None:
        _require(self.kind in FAILURE_KINDS, "kind", f"must be one of {', '.join(FAILURE_KINDS)}")


FAILURE_KINDS = {
    "bad_request": EXIT_BAD_REQUEST,
    "bad_mesh": EXIT_BAD_REQUEST,
    "bad_prompt": EXIT_BAD_REQUEST,
    "bad_model": EXIT_BAD_REQUEST,
    "out_of_memory": EXIT_OUT_OF_MEMORY,
    "disk_full": EXIT_DISK_FULL,
    "locked": EXIT_JOB_LOCKED,
    "internal": EXIT_FAILED,
}

Event = Started | Progress | Preview | Checkpoint | Warning | Done | Cancelled | Paused | Failed
TERMINAL_EVENTS = (Done, Cancelled, Paused, Failed)


# --- control: host -> running job, appended to control.jsonl ----------------------------------


@dataclass(frozen=True)
class Pause:
    pass


@dataclass(frozen=True)
class Cancel:
    pass


Control = Pause | Cancel


# --- stdin of the resident backend ------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    job: str  # absolute path of the job folder
    attempt: int

    def __post_init__(self) -> None:
        check_types(self)
        _require(self.attempt >= 1, "attempt", "must be at least 1")


@dataclass(frozen=True)
class ReleaseMemory:
    pass


@dataclass(frozen=True)
class Shutdown:
    pass


Command = Run | ReleaseMemory | Shutdown


# --- wire form --------------------------------------------------------------------------------


def encode(message: object) -> str:
    """One message as one JSON line, newline included."""
    return json.dumps({"type": type(message).__name__, **dataclasses.asdict(message)}, allow_nan=False) + "\n"


def decode(line: str, family: object) -> object:
    """The message on `line`; `family` is Event, Control or Command. Raises ProtocolError."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no JSONDecodeError
        raise ProtocolError(f"a line is not JSON: {line.strip()[:80]!r}") from error
    if not isinstance(fields, dict):
        raise ProtocolError(f"a line is not a JSON object: {line.strip()[:80]!r}")
    name = fields.pop("type", None)
    known = {cls.__name__: cls for cls in typing.get_args(family)}
    if not isinstance(name, str) or name not in known:
        raise ProtocolError(f"type {name!r} is unknown (expected one of {', '.join(known)})")
    return _build(known[name], fields)


def _build(cls: type, fields: dict) -> object:
    declared = {f.name: f for f in dataclasses.fields(cls)}
    for extra in fields.keys() - declared.keys():
        raise ProtocolError(f"{cls.__name__}.{extra} is not a known field")
    for missing in declared.keys() - fields.keys():
        raise ProtocolError(f"{cls.__name__}.{missing} is missing")
    try:
        message = cls(**fields)
        check_types(message)
    except ProtocolError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"{cls.__name__} holds values of the wrong kind: {error}") from error
    return message


@functools.cache
def _field_types(cls: type) -> dict[str, object]:
    return typing.get_type_hints(cls)


def check_types(message: object) -> None:
    """Raise ProtocolError when a field of a dataclass does not hold its declared type."""
    for name, expected in _field_types(type(message)).items():
        value = getattr(message, name)
        if not _is_instance(value, expected):
            raise ProtocolError(f"{type(message).__name__}.{name} has the wrong type: {value!r:.80}")


def _is_instance(value: object, expected: object) -> bool:
    origin = typing.get_origin(expected)
    if origin in (types.UnionType, typing.Union):
        return any(_is_instance(value, option) for option in typing.get_args(expected))
    if origin is list:
        return isinstance(value, list) and all(_is_instance(item, typing.get_args(expected)[0]) for item in value)
    if origin is dict:
        of_key, of_value = typing.get_args(expected)
        return isinstance(value, dict) and all(
            _is_instance(k, of_key) and _is_instance(v, of_value) for k, v in value.items()
        )
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def _require(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise ProtocolError(f"{name} {problem}.")


# --- the job folder ---------------------------------------------------------------------------


@dataclass(frozen=True)
class AttemptFolder:
    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def control(self) -> Path:
        return self.path / "control.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"


@dataclass(frozen=True)
class JobFolder:
    """Names of everything inside a job folder; makes nothing but what its methods say."""

    path: Path

    @property
    def request(self) -> Path:
        return self.path / "request.json"

    @property
    def mesh(self) -> Path:
        return self.path / "mesh.npz"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def previews(self) -> Path:
        return self.path / "preview"

    @property
    def maps(self) -> Path:
        return self.path / "maps"

    @property
    def start(self) -> Path:
        return self.path / "start"

    @property
    def mask(self) -> Path:
        return self.start / "mask.png"

    @property
    def lights(self) -> Path:
        return self.path / "lights"

    @property
    def reference(self) -> Path:
        return self.path / "reference.png"

    @property
    def picture(self) -> Path:
        """The textured object, small, on nothing."""
        return self.path / "picture.png"

    def preview_picture(self, number: int) -> Path:
        return self.previews / f"{number:05d}_picture.png"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def attempt(self, number: int) -> AttemptFolder:
        return AttemptFolder(self.path / "attempts" / f"{number:04d}")

    def attempts(self) -> list[AttemptFolder]:
        """All attempts, oldest first."""
        root = self.path / "attempts"
        names = sorted(p.name for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []
        return [AttemptFolder(root / name) for name in names]

    def new_attempt(self) -> AttemptFolder:
        """Make the folder of the next attempt (host side, before sending Run)."""
        taken = self.attempts()
        attempt = self.attempt(taken[-1].number + 1 if taken else 1)
        attempt.path.mkdir(parents=True)
        return attempt

    def write_request(self, request: TextureRequest) -> None:
        write_beside(self.request, json.dumps(dataclasses.asdict(request), indent=1).encode())

    def read_request(self) -> TextureRequest:
        """The stored request, upgraded if an older Patina wrote it. Raises ProtocolError."""
        try:
            stored = json.loads(self.request.read_text("utf-8"))
        except FileNotFoundError:
            raise ProtocolError(f"There is no request.json in {self.path}.") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ProtocolError(f"request.json in {self.path} cannot be read: {error}") from error
        if not isinstance(stored, dict):
            raise ProtocolError(f"request.json in {self.path} is not a JSON object.")
        return _build(TextureRequest, upgrade_request(stored))


def write_beside(path: Path, content: bytes) -> None:
    """Write to a new file beside `path`, then rename it into place: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def take_lock(path: Path, content: str) -> int | None:
    """Take the OS lock on `path` and write `content` into it; the open file descriptor, None if another holds it.

    The lock ends with `release_lock` or with the process, however it dies. The file itself stays: removing it
    would let two processes hold locks on two files of one name.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.name == "nt":
            import msvcrt  # exists on Windows only

            # A byte far behind the content: Windows forbids others to read what is locked.
            os.lseek(descriptor, 1 << 30, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl  # does not exist on Windows

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    with contextlib.suppress(OSError):  # a full disk: the lock holds, only its holder stays unnamed
        os.ftruncate(descriptor, 0)
        os.write(descriptor, content.encode())
    return descriptor


def take_job_lock(path: Path, content: str) -> int | None:
    """`take_lock` for a job: an attempt that has said its last word may need a moment to give its lock back."""
    end = time.monotonic() + LOCK_PATIENCE_S
    while (descriptor := take_lock(path, content)) is None and time.monotonic() < end:
        time.sleep(0.05)
    return descriptor


def release_lock(descriptor: int) -> None:
    """Give back a lock of `take_lock`."""
    os.close(descriptor)


def append_line(path: Path, message: object) -> None:
    """Append one message to a .jsonl file in one write."""
    with open(path, "ab") as file:
        file.write(encode(message).encode())


def read_lines(path: Path, offset: int, family: object, limit: int = 1 << 20) -> tuple[list[object], int]:
    """Messages behind byte `offset` and the offset behind them.

    A line without its newline is left for the next call, a missing file holds nothing; at most
    `limit` bytes are read a call, so that a flood cannot stall Blender. Raises ProtocolError.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            block = file.read(limit)
    except FileNotFoundError:
        return [], offset
    end = block.rfind(b"\n") + 1
    if end == 0 and len(block) == limit:
        raise ProtocolError(f"{path.name} holds a line of over {limit} bytes.")
    try:
        lines = block[:end].decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"{path.name} is not UTF-8.") from error
    return [decode(line, family) for line in lines if line.strip()], offset + end
