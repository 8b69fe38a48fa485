# SPDX-License-Identifier: GPL-3.0-or-later
"""A batch on the disk: a folder of job folders, each with the place its maps belong to; and what runs them.

    <batch>/items/<id>/item.json     an Item; written last, so a folder without it is not ready
    <batch>/items/<id>/...           an ordinary job folder
    <batch>/report.json              how it went

Knows no bpy: what is in the queue can be run wherever its folder is. Whoever is killed here is gone on with by `run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import protocol, worker

ITEM, STAMP, REPORT = "item.json", "patina-batch.json", "report.json"
_OF_THE_COMPUTER = {"device", "rasterizer"}  # fields of a request that do not change what is wished for
_TICK_S = 0.1
_SILENT_GIVE_UP_S = 60.0
_EVENT_GIVE_UP_S = 900.0  # signs of life, but nothing happens
_LOCKED_GIVE_UP_S = 180.0  # who was killed may leave a backend behind, which ends its step and saves
_LOCKED_AGAIN_S = 2.0


@dataclass(frozen=True)
class Item:
    """One set of maps to make. `out`: its folder, relative to the batch's parent folder."""

    id: str
    object_name: str
    prompt: str
    seed: int
    out: str


@dataclass
class Entry:
    """An item and how it stands: waiting, running, done, skipped, failed."""

    item: Item
    state: str = "waiting"
    message: str = ""
    attempts: int = 0
    seconds: float = 0.0
    fraction: float = 0.0
    warnings: list[str] = field(default_factory=list)
    locked_since: float = 0.0  # time.monotonic(); 0: it was not
    not_before: float = 0.0


class BatchProblem(ValueError):
    """The batch cannot be run as it is; the text is a sentence for a person."""


def item_id(object_name: str, out: str, request: protocol.TextureRequest) -> str:
    """The same for the same wish, also after an update that adds fields and on another computer: what is done is known
    by it."""
    usual = dataclasses.asdict(protocol.TextureRequest(prompt="-"))
    wished = {name: value for name, value in dataclasses.asdict(request).items() if name not in _OF_THE_COMPUTER}
    unusual = {name: value for name, value in wished.items() if value != usual[name]}
    wish = json.dumps([object_name, out, unusual], sort_keys=True)
    plain = "".join(c if c.isalnum() and c.isascii() else "-" for c in object_name)[:40]
    return f"{plain}-{hashlib.sha256(wish.encode()).hexdigest()[:10]}"


def folder_of(batch: Path, item: Item) -> protocol.JobFolder:
    return protocol.JobFolder(batch / "items" / item.id)


def output_of(batch: Path, item: Item) -> Path:
    return batch.parent / item.out


def put(batch: Path, item: Item) -> None:
    """Mark a job folder as ready to run. Raises OSError."""
    content = json.dumps(dataclasses.asdict(item), indent=1).encode()
    protocol.write_beside(folder_of(batch, item).path / ITEM, content)


def forget(batch: Path, item: Item) -> None:
    """What was made of the job so far fits its mesh no more. Raises OSError, BatchProblem."""
    folder = folder_of(batch, item)
    lock = protocol.take_job_lock(folder.lock, f"process {os.getpid()}")
    if lock is None:
        raise BatchProblem("Its mesh has changed, and an earlier run of it is still ending. Start the batch once more.")
    try:
        (folder.path / ITEM).unlink(missing_ok=True)
        folder.checkpoint.unlink(missing_ok=True)
    finally:
        protocol.release_lock(lock)


def is_ready(batch: Path, item: Item) -> bool:
    return (folder_of(batch, item).path / ITEM).is_file()


def items(batch: Path) -> list[Item]:
    """What is in the queue, in the order of its ids. Raises BatchProblem."""
    found = []
    for path in sorted(batch.glob(f"items/*/{ITEM}")):
        try:
            found.append(Item(**json.loads(path.read_text("utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise BatchProblem(f"{path} cannot be read: {error}. Delete its folder to have it made anew.") from error
    return found


def is_done(batch: Path, item: Item) -> bool:
    """Its maps are where they belong, made by this very wish."""
    out = output_of(batch, item)
    return _stamp(out) == {"id": item.id} and all((out / f"{name}.png").is_file() for name in protocol.MAP_NAMES)


def is_in_the_way(batch: Path, item: Item) -> bool:
    """Maps of another origin lie where this item's belong; some of its own may, if it was killed as it put them."""
    out = output_of(batch, item)
    return _stamp(out).get("id") != item.id and any((out / f"{name}.png").exists() for name in protocol.MAP_NAMES)


def _stamp(out: Path) -> dict:
    """Whose maps lie there; {"id": ...} alone if all of them do."""
    try:
        stamp = json.loads((out / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


@dataclass
class _Lane:
    """One backend process and what it is doing."""

    home: Path
    process: worker.Worker | None = None
    entry: Entry | None = None
    attempt: protocol.AttemptFolder | None = None
    offset: int = 0
    began: float = 0.0
    heard: float = 0.0


@contextlib.contextmanager
def alone(batch: Path) -> Iterator[None]:
    """Hold the batch inside: nobody else prepares or runs it. Raises BatchProblem."""
    try:
        lock = protocol.take_lock(_made(batch) / "lock", f"process {os.getpid()}")
    except OSError as error:
        raise BatchProblem(f"{batch} cannot be written: {error.strerror or error}.") from error
    if lock is None:
        raise BatchProblem(f"Another Patina is running the batch {batch}. Wait for it or end it there.")
    try:
        yield
    finally:
        protocol.release_lock(lock)


def run(
    batch: Path,
    entries: list[Entry],
    start: Callable[[Path], worker.Worker],
    lanes: int,
    retries: int,
    force: bool,
    tell: Callable[[str], None],
) -> None:
    """Run all waiting entries to their end on `lanes` processes at once; entries are changed, the report is written.

    To be called inside `alone`. `start(home)` starts a backend. KeyboardInterrupt pauses what runs (it goes on with the
    next `run`) and is raised. Raises OSError when the report cannot be written at the end.
    """
    working = [_Lane(batch / "workers" / str(number)) for number in range(lanes)]
    told: list[str] = []
    try:
        waiting = [entry for entry in entries if entry.state == "waiting"]
        while waiting or any(lane.entry is not None for lane in working):
            for lane in working:
                ready = next((entry for entry in waiting if entry.not_before <= time.monotonic()), None)
                if lane.entry is None and ready is not None:
                    waiting.remove(ready)
                    _begin(batch, lane, ready, start, force, tell)
                elif lane.entry is not None:
                    _go_on(batch, lane, waiting, retries, tell)
            states = [entry.state for entry in entries]
            if states != told:
                told = states
                with contextlib.suppress(OSError):  # on a full disk all else goes on; at the end it is told
                    write_report(batch, entries)
            time.sleep(_TICK_S)
    finally:
        for lane in working:
            if lane.process is not None:
                lane.process.close()  # what runs saves its state
        for lane in working:
            if lane.process is not None:
                lane.process.stop(20.0)
            if lane.entry is not None:
                lane.entry.state = "waiting"
        write_report(batch, entries)


def write_report(batch: Path, entries: list[Entry]) -> None:
    """The one JSON file that says how all stands. Raises OSError."""
    states = ("done", "skipped", "failed", "running", "waiting")
    counts = {state: sum(entry.state == state for entry in entries) for state in states}
    rows = [{**dataclasses.asdict(entry.item), **_plain(entry)} for entry in entries]
    protocol.write_beside(batch / REPORT, json.dumps({"counts": counts, "items": rows}, indent=1).encode())


def _plain(entry: Entry) -> dict:
    values = {name: getattr(entry, name) for name in ("state", "message", "attempts", "fraction", "warnings")}
    return {**values, "seconds": round(entry.seconds, 1)}


def _begin(batch: Path, lane: _Lane, entry: Entry, start, force: bool, tell) -> None:
    item, folder = entry.item, folder_of(batch, entry.item)
    if is_done(batch, item) and not force:
        entry.state, entry.fraction = "skipped", 1.0
        tell(f"{item.object_name}, {item.prompt!r}: is done already")
        return
    if is_in_the_way(batch, item) and not force:
        _fail(entry, f"Other maps lie in {output_of(batch, item)}. Choose another folder, or add --force.", tell)
        return
    try:
        if lane.process is None or lane.process.poll() is not None:
            lane.process = start(lane.home)
        lane.attempt, lane.offset = folder.new_attempt(), 0
        lane.process.send(protocol.Run(str(folder.path.absolute()), lane.attempt.number))
    except worker.WorkerError as error:
        _fail(entry, str(error), tell)
        return
    except OSError as error:
        _fail(entry, f"{folder.path} cannot be written: {error.strerror or error}.", tell)
        return
    entry.state, entry.attempts = "running", entry.attempts + 1
    lane.entry, lane.began, lane.heard = entry, time.monotonic(), time.monotonic()
    tell(f"{item.object_name}, {item.prompt!r}, seed {item.seed}: started")


def _go_on(batch: Path, lane: _Lane, waiting: list[Entry], retries: int, tell) -> None:
    entry, item = lane.entry, lane.entry.item
    lane.process.tick()
    ended = lane.process.poll() is not None
    ending = None
    try:
        events, lane.offset = protocol.read_lines(lane.attempt.events, lane.offset, protocol.Event)
    except protocol.ProtocolError as error:
        events, ending = [], protocol.Failed("internal", f"The backend cannot be understood: {error}")
    for event in events:
        lane.heard = time.monotonic()
        if isinstance(event, protocol.Progress):
            if int(event.fraction * 4) > int(entry.fraction * 4):
                tell(f"{item.object_name}, {item.prompt!r}: {event.fraction:.0%}")
            entry.fraction = event.fraction
        elif isinstance(event, protocol.Warning):
            entry.warnings.append(event.message)
        elif isinstance(event, protocol.TERMINAL_EVENTS):
            ending = event
    if ending is None and ended and not events:
        ending = protocol.Failed("internal", lane.process.end_sentence() or "The backend ended unexpectedly.")
    limit = _SILENT_GIVE_UP_S if lane.process.is_stuck() else _EVENT_GIVE_UP_S
    if ending is None and time.monotonic() - lane.heard > limit:
        lane.process.stop(0.0)
        ending = protocol.Failed("internal", "The backend did not react any more and was ended.")
    if ending is None:
        return
    entry.seconds += time.monotonic() - lane.began
    lane.entry = None
    if isinstance(ending, protocol.Done):
        try:
            _take(batch, item, ending)
        except OSError as error:
            _fail(entry, f"The maps could not be written: {error.strerror or error} ({error.filename}).", tell)
            return
        entry.state, entry.fraction, entry.message = "done", 1.0, ""
        tell(f"{item.object_name}, {item.prompt!r}: done in {entry.seconds:.0f} s, {output_of(batch, item)}")
        return
    sentence = getattr(ending, "message", "It was stopped.")
    now = time.monotonic()
    if getattr(ending, "kind", "") == "locked":
        if not entry.locked_since:
            tell(f"{item.object_name}, {item.prompt!r}: {sentence} It is waited for.")
            entry.locked_since = now
        if now - entry.locked_since < _LOCKED_GIVE_UP_S:
            entry.state, entry.not_before, entry.attempts = "waiting", now + _LOCKED_AGAIN_S, entry.attempts - 1
            waiting.append(entry)
            return
    if entry.attempts <= retries and getattr(ending, "kind", "internal") in ("internal", "out_of_memory"):
        entry.state = "waiting"
        waiting.append(entry)  # behind all others: what hindered it may be gone by then
        tell(f"{item.object_name}, {item.prompt!r}: {sentence} It will be tried again.")
        return
    _fail(entry, f"{sentence} {getattr(ending, 'hint', '')}".strip(), tell)


def _take(batch: Path, item: Item, done: protocol.Done) -> None:
    """Put the maps where they belong; first the stamp says whose they are, at last that they are whole. OSError."""
    folder, out = folder_of(batch, item), output_of(batch, item)
    sources = {f"{name}.png": folder.path / relative for name, relative in done.maps.items()}
    extra = (folder.report, folder.picture, folder.path / "uvs.npy")
    sources |= {source.name: source for source in extra if source.is_file()}
    _write(out, STAMP, json.dumps({"id": item.id, "partly": True}).encode())
    for name, source in sources.items():
        _write(out, name, source.read_bytes())
    _write(out, STAMP, json.dumps({"id": item.id}).encode())


def _write(folder: Path, name: str, content: bytes) -> None:
    """Put a file there, and remove what one who was killed while writing it has left. Raises OSError."""
    for left in folder.glob(f".{glob.escape(name)}.*.part"):
        left.unlink(missing_ok=True)
    protocol.write_beside(folder / name, content)


def _fail(entry: Entry, sentence: str, tell) -> None:
    entry.state, entry.message = "failed", sentence
    tell(f"{entry.item.object_name}, {entry.item.prompt!r}: failed. {sentence}")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
