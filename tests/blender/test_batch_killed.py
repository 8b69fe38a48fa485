# SPDX-License-Identifier: GPL-3.0-or-later
"""A batch that is killed (kill -9) at random moments and gone on with: file by file what an undisturbed one makes.

A moment is a number of file operations of the batch's process, so that it falls between any two of them: between the
export and its mark, in the middle of four maps, before the stamp. Every other time the backend is killed with it.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("bpy")

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
steps = 40
views = 1
out = "made/{object}"
[[job]]
objects = "Chair.[0-2]"
prompt = "rusty iron"
seed = 3
[[job]]
objects = "Cube"
prompt = "an unknown word"
"""


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
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)


def _script(folder: Path, wishes: str, lanes: int, package_root: str | None) -> Path:
    folder.mkdir()
    prelude = harness._PRELUDE.format(
        limit=500, patience=1, repo=str(harness.REPO), here=str(Path(__file__).parent), tmp=str(folder)
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


@pytest.mark.slow
def test_the_real_backend_goes_on_from_its_checkpoints(tmp_path):
    pytest.importorskip("torch")
    made, states = _killed_is_as_whole(tmp_path, _REAL, 1, str(harness.REPO), KILLS, 400)
    assert sum(name.endswith(".png") for name in made) >= 3 * 4
    assert states.count("failed") == 1 and len(states) == 4
    attempts = [len(list(item.glob("attempts/*"))) for item in (tmp_path / "parted" / "list.batch" / "items").iterdir()]
    assert max(attempts) >= 3, "no run was interrupted in its middle"
