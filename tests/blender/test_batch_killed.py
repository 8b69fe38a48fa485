# SPDX-License-Identifier: GPL-3.0-or-later
"""A batch that is killed (kill -9) at random moments and gone on with: file by file what an undisturbed one makes.

With the fake backend a moment is a number of file operations of the batch's process, so that it falls between any two
of them: between the export and its mark, in the middle of four maps, before the stamp. Every other time the backend is
killed with it. With the real one, whose run has stages, it is a random time behind what its events tell, so that no
stage is left out.
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("bpy")

from addon import protocol  # noqa: E402

from . import harness  # noqa: E402

KILLS = 10

# What the file operations count in: `open` is heard when the events are polled too, so they go on with the time.
_COUNTED = """
import os, signal
heard, kill_at = [0], int(os.environ.get("KILL_AT", 0))
def count(event, _arguments):
    if event in ("open", "os.mkdir", "os.rename", "os.remove"):
        heard[0] += 1
        if heard[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
"""

_LIST = """
from addon import command
for number in range(8):
    bpy.ops.mesh.primitive_cube_add(size=1 + number / 10)
    bpy.context.object.name = f"Chair.{number}"
(tmp / "list.toml").write_text('''%s''')
sys.addaudithook(count)
code = command._execute(["batch", str(tmp / "list.toml"), "--jobs", "%d"])
print("ended with", code, "after", heard[0], flush=True)
"""

_FAKE = """
[defaults]
texture_size = 512
out = "made/{object}"
[[job]]
objects = "Chair.[0-6]"
prompt = "red"
seed = 3
[[job]]
objects = ["Chair.7", "Nobody*"]
prompt = "failed"
[[job]]
objects = "Cube"
prompt = "red"
seeds = [1, 2]
out = "made/{object}/{seed}"
"""

_REAL = """
[defaults]
texture_size = 512
steps = 60
views = 1
out = "made/{object}"
[[job]]
objects = "Chair.[0-1]"
prompt = "red brick"
seed = 3
[[job]]
objects = "Chair.2"
prompt = "polished gold"
[[job]]
objects = "Cube"
prompt = "an unknown word"
"""

# Behind what of the backend (nothing: the batch's own start), who is killed, at most how many seconds later. A batch
# whose backend alone was killed goes on, and the next kill is its.
_MOMENTS = (
    ("nothing", "batch", 6.0),
    ("Choosing the material", "both", 1.5),
    ("Painting", "backend", 1.0),
    ("Checkpoint", "both", 0.6),
    ("Checkpoint", "batch", 0.6),
    ("Checkpoint", "backend", 0.6),
    ("Writing the maps", "backend", 0.4),
    ("Choosing the material", "batch", 1.5),
    ("Checkpoint", "both", 0.6),
    ("Checkpoint", "both", 0.6),
    ("Writing the maps", "both", 0.4),
)
_CHECKPOINT_SECONDS = "0.4"  # instead of 20: the state of a run of a few seconds shall be saved, too


def _start(folder: Path, script: Path, kill_at: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        "BLENDER_USER_RESOURCES": str(folder / "user"),
        "PATINA_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "KILL_AT": str(kill_at),
    }
    with open(folder / "log.txt", "a") as log:
        command = [sys.executable, "-u", str(script)]
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def _script(folder: Path, wishes: str, lanes: int, package_root: str | None) -> Path:
    folder.mkdir()
    prelude = harness._PRELUDE.format(
        limit=500 * harness.PATIENCE,
        patience=harness.PATIENCE,
        repo=str(harness.REPO),
        here=str(Path(__file__).parent),
        tmp=str(folder),
    )
    root = f"running.package_root = Path({package_root!r})\n" if package_root else ""
    script = folder / "scenario.py"
    script.write_text(prelude + _COUNTED + root + textwrap.dedent(_LIST % (wishes, lanes)) + "addon.unregister()\n")
    return script


def _children(pid: int) -> list[int]:
    """The processes that this one started (Linux)."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def _wait(process: subprocess.Popen, limit: float) -> tuple[int, list[int]]:
    """The exit code, and the backends that it had."""
    end, backends = time.monotonic() + limit, []
    while process.poll() is None:
        assert time.monotonic() < end, "it hangs"
        backends = _children(process.pid) or backends
        time.sleep(0.02)
    return process.returncode, backends


def _said(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def _files(folder: Path) -> dict[str, str]:
    """What was made, by its hash; of a report all but what is measured (time, memory)."""
    made = {}
    for path in sorted((folder / "made").rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.name == "report.json":
            told = {k: v for k, v in json.loads(content).items() if k not in ("seconds", "peak_memory_mb")}
            content = json.dumps(told).encode()
        made[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return made


def _killed_is_as_whole(tmp_path: Path, wishes: str, lanes: int, package_root: str | None, kills: int, limit: float):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    code, _ = _wait(_start(whole, _script(whole, wishes, lanes, package_root), 0), limit)
    assert code == 0 and "ended with 1" in _said(whole), _said(whole)[-3000:]
    operations = int(_said(whole).rpartition("after ")[2].split()[0])
    script, chance, moments = _script(parted, wishes, lanes, package_root), random.Random(8), []
    for number in range(kills):
        moments.append(chance.randrange(1, operations // 4))
        process = _start(parted, script, moments[-1])
        code, backends = _wait(process, limit)
        assert code == -signal.SIGKILL, f"it came to its end before it was killed ({moments}):\n{_said(parted)[-2000:]}"
        for backend in backends if number % 2 else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(backend, signal.SIGKILL)
    code, _ = _wait(_start(parted, script, 0), limit)
    assert code == 0 and "ended with 1" in _said(parted), _said(parted)[-3000:]
    expected, made = _files(whole), _files(parted)
    differing = sorted(name for name in expected.keys() | made.keys() if expected.get(name) != made.get(name))
    assert differing == [], f"{differing} after kills at {moments}"
    rows = json.loads((parted / "list.batch" / "report.json").read_text())["items"]
    print(f"{kills} kills at {moments} of {operations} operations, {len(made)} files the same")
    return made, [row["state"] for row in rows]


_TAKE = """
import sys
sys.path.insert(0, {repo!r})
from pathlib import Path
from addon import batch_queue, protocol
batch = Path({batch!r})
item = batch_queue.Item("one", "Cube", "red", 1, "made")
maps = {{name: f"maps/{{name}}.png" for name in protocol.MAP_NAMES}}
assert not batch_queue.is_in_the_way(batch, item), "its own maps are in its way"
{count}
sys.addaudithook(count)
batch_queue._take(batch, item, protocol.Done(maps, "report.json"))
assert batch_queue.is_done(batch, item)
"""


def test_killed_at_every_file_operation_while_the_maps_are_put_where_they_belong(tmp_path):
    folder = tmp_path / "list.batch" / "items" / "one"
    (folder / "maps").mkdir(parents=True)
    for name in ("base_color", "metallic", "roughness", "normal"):
        (folder / "maps" / f"{name}.png").write_bytes(name.encode())
    (folder / "report.json").write_text("{}")
    script = _TAKE.format(repo=str(harness.REPO), batch=str(tmp_path / "list.batch"), count=_COUNTED)

    def take(kill_at: int) -> int:
        environment = {**os.environ, "KILL_AT": str(kill_at)}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    moments, code = 0, -signal.SIGKILL
    while code:
        moments += 1
        code = take(moments)  # over what the last one left
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    maps = ["base_color.png", "metallic.png", "normal.png"]
    assert names == [*maps, "patina-batch.json", "report.json", "roughness.png"]
    assert all((tmp_path / "made" / name).read_text() == name.removesuffix(".png") for name in maps)
    assert moments > 20, "it is to be killed between all of them"


@pytest.mark.parametrize("kills", [2, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_ten_items_with_a_fast_backend(tmp_path, kills):
    made, states = _killed_is_as_whole(tmp_path, _FAKE, 2, None, kills, 120)
    assert len(made) == 9 * 7, sorted(made)
    assert states.count("failed") == 2 and set(states) <= {"done", "skipped", "failed"}


def _real_root(folder: Path) -> Path:
    """A package root with the real add-on and the real backend, file by file, that saves its state more often."""
    often = re.sub(
        r"(?m)^CHECKPOINT_SECONDS = .*$",
        f"CHECKPOINT_SECONDS = {_CHECKPOINT_SECONDS}",
        (harness.REPO / "backend" / "texturing.py").read_text("utf-8"),
    )
    assert f"CHECKPOINT_SECONDS = {_CHECKPOINT_SECONDS}\n" in often
    (folder / "backend").mkdir(parents=True)
    (folder / "addon").symlink_to(harness.REPO / "addon")
    for path in (harness.REPO / "backend").iterdir():
        if path.name not in ("texturing.py", "__pycache__"):
            (folder / "backend" / path.name).symlink_to(path)
    (folder / "backend" / "texturing.py").write_text(often, "utf-8")
    return folder


def _attempts(folder: Path) -> list[protocol.AttemptFolder]:
    paths = (folder / "list.batch" / "items").glob("*/attempts/*")
    return [protocol.AttemptFolder(path) for path in sorted(paths)]


def _told(attempt: protocol.AttemptFolder) -> list[protocol.Event]:
    return protocol.read_lines(attempt.events, 0, protocol.Event)[0]


def _has_come(what: str, attempt: protocol.AttemptFolder) -> bool:
    """Is it where this attempt stands? A stage that is over has not come: it will in another attempt."""
    told = _told(attempt)
    if not told or isinstance(told[-1], protocol.TERMINAL_EVENTS):
        return False
    if what == "Checkpoint":
        return any(isinstance(event, protocol.Checkpoint) for event in told) and not _has_come("Writing", attempt)
    stages = [event.stage for event in told if isinstance(event, protocol.Progress)]
    return bool(stages) and stages[-1].startswith(what)


def _stage(attempts: list[protocol.AttemptFolder]) -> str:
    """Where the newest of these attempts stood."""
    told = _told(attempts[-1]) if attempts else []
    steps = [event.step for event in told if isinstance(event, (protocol.Progress, protocol.Checkpoint))]
    saved = [event.step for event in told if isinstance(event, protocol.Checkpoint)]
    stages = [event.stage for event in told if isinstance(event, protocol.Progress)]
    end = f", ended as {type(told[-1]).__name__}" if told and isinstance(told[-1], protocol.TERMINAL_EVENTS) else ""
    if not stages:
        return f"before its first stage{end}"
    return f"{stages[-1]}, step {steps[-1]}, saved {saved[-1] if saved else 'not'}{end}"


def _kill_at_the_next(what: str, whom: str, later: float, process: subprocess.Popen, folder: Path, seen: set) -> str:
    """Wait for the moment, kill; where the attempt stood that it hit. `seen`: the attempts that are over."""
    end = time.monotonic() + 150 * harness.PATIENCE
    hit = []
    while what != "nothing" and not hit:
        assert time.monotonic() < end, f"{what!r} did not come:\n{_said(folder)[-2000:]}"
        assert process.poll() is None, f"it came to its end before {what!r}:\n{_said(folder)[-2000:]}"
        hit = [attempt for attempt in _attempts(folder) if attempt.path not in seen and _has_come(what, attempt)]
        time.sleep(0.01)
    time.sleep(later)
    backends = _children(process.pid)
    if whom != "backend":
        assert process.poll() is None, f"it came to its end before it was killed at {what!r}"
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    for backend in backends if whom != "batch" else ():
        os.killpg(backend, signal.SIGKILL)
    hit = hit or [attempt for attempt in _attempts(folder) if attempt.path not in seen]
    stood = _stage(hit)
    seen.update(attempt.path for attempt in hit)
    return stood


def _gone_on_with(folder: Path) -> int:
    """How many attempts went on from a state that one had saved whose process was killed."""
    count = 0
    for item in (folder / "list.batch" / "items").iterdir():
        told = [_told(protocol.AttemptFolder(path)) for path in sorted(item.glob("attempts/*"))]
        told = [events for events in told if events and isinstance(events[0], protocol.Started)]
        for before, after in itertools.pairwise(told):
            saved = [event.step for event in before if isinstance(event, protocol.Checkpoint)]
            cut_off = not isinstance(before[-1], protocol.TERMINAL_EVENTS)
            count += bool(cut_off and saved and after[0].resumed_from_step >= saved[-1] > 0)
    return count


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the backends in /proc")
def test_the_real_backend_goes_on_from_its_checkpoints(tmp_path):
    pytest.importorskip("torch")
    began, limit = time.monotonic(), 300 * harness.PATIENCE
    root, chance = str(_real_root(tmp_path / "root")), random.Random(8)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    code, _ = _wait(_start(whole, _script(whole, _REAL, 1, root), 0), limit)
    assert code == 0 and "ended with 1" in _said(whole), _said(whole)[-3000:]
    undisturbed = time.monotonic() - began
    script, seen, process, stood = _script(parted, _REAL, 1, root), set(), None, []
    try:
        for what, whom, latest in _MOMENTS:
            if process is None or process.poll() is not None:
                process = _start(parted, script, 0)
            later = chance.uniform(0.0, latest)
            stood.append(_kill_at_the_next(what, whom, later, process, parted, seen))
            print(f"{time.monotonic() - began:4.0f} s: {whom} killed {later:.2f} s behind {what}: {stood[-1]}")
    finally:
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
    code, _ = _wait(_start(parted, script, 0), limit)
    assert code == 0 and "ended with 1" in _said(parted), _said(parted)[-3000:]
    expected, made = _files(whole), _files(parted)
    differing = sorted(name for name in expected.keys() | made.keys() if expected.get(name) != made.get(name))
    assert differing == [], f"{differing} after kills at {stood}"
    assert sum(name.endswith(".png") for name in made) >= 3 * 4
    rows = json.loads((parted / "list.batch" / "report.json").read_text())["items"]
    assert sorted(row["state"] for row in rows if row["state"] != "skipped")[-1] == "failed" and len(rows) == 4
    assert _gone_on_with(parted) >= 2, f"nearly no run went on from what a killed one had saved: {stood}"
    print(f"{len(stood)} kills, {_gone_on_with(parted)} gone on with from a checkpoint, {len(made)} files the same")
    print(f"{undisturbed:.0f} s undisturbed, {time.monotonic() - began:.0f} s in all")
