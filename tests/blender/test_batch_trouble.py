# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches and runs to which something happens: interrupted, a full or read-only disk, folders taken away, two at once.

Each ends by itself, with one sentence and the exit code that says so; what was made so far is kept, and the same
command goes on from there.
"""

import os
import sys

import pytest

pytest.importorskip("bpy")

from .harness import run_scenario  # noqa: E402

_BATCH = """
import contextlib, ctypes, io, json, os, shutil, signal, subprocess, threading
from addon import batch, batch_queue, command
place = tmp
def patina(what, *words):
    '''Exit code and what it said to stderr.'''
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = command._execute([what, str(place / "list.toml"), *words])
    print(said.getvalue())
    assert "Traceback" not in said.getvalue() and said.getvalue().count("\\n") <= 1
    return code, said.getvalue()
def wish(prompt, objects="Cube", more="seeds = [1, 2]"):
    (place / "list.toml").write_text(f'''[[job]]
objects = "{objects}"
prompt = "{prompt}"
texture_size = 512
out = "made/{{seed}}"
{more}
''')
def rows():
    return json.loads((place / "list.batch" / "report.json").read_text())["items"]
def whole(folder):
    return {p.name for p in folder.glob("*.png")} >= {f"{name}.png" for name in protocol.MAP_NAMES}
def later(seconds, do):
    thread = threading.Timer(seconds, do)
    thread.start()
    return thread
def small_disk(folder, size):
    '''A file system of its own, which ends with this process.'''
    assert ctypes.CDLL(None).unshare(0x20000) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
"""

_MOUNTS = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system: Linux and root only"
)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_batch_says_how_to_go_on_and_goes_on(tmp_path, name, code):
    run_scenario(
        tmp_path,
        _BATCH
        + f"""
wish("slow")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
before = signal.getsignal(signal.{name})
later(3.0, lambda: os.kill(os.getpid(), signal.{name}))
ended, said = patina("batch")
assert ended == {code} and said.startswith("Patina: Interrupted. To go on: patina batch "), (ended, said)
assert signal.getsignal(signal.{name}) == before
assert {{row["state"] for row in rows()}} == {{"waiting"}}
children = Path(f"/proc/self/task/{{os.getpid()}}/children")
assert not children.exists() or not children.read_text().split(), "a backend was left behind"
assert patina("resume") == (0, "") and whole(tmp / "made" / "1") and whole(tmp / "made" / "2")

later(1.5, lambda: os.kill(os.getpid(), signal.{name}))
said = io.StringIO()
with contextlib.redirect_stderr(said):
    ended = command._execute(["run", "--prompt", "endless", "--out", str(tmp / "one")])
assert ended == {code} and "Cancelled" in said.getvalue(), (ended, said.getvalue())
""",
        limit=90,
    )


@_MOUNTS
def test_a_full_disk_is_told_and_with_room_it_goes_on(tmp_path):
    run_scenario(
        tmp_path,
        _BATCH
        + """
place = tmp / "small"
small_disk(place, "8m")
wish("slow")
filler = place / "filler"
def fill():
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
fill()
code, said = patina("batch")
assert code == 1 and "No space left" in said and "list.batch" in said, (code, said)
filler.unlink()
later(3.0, fill)
code, said = patina("batch")
assert code == 1 and (not said or "No space left" in said), (code, said)
assert not any(whole(folder) and (folder / batch_queue.STAMP).exists() for folder in place.glob("made/*"))
filler.unlink()
assert patina("batch") == (0, "") and whole(place / "made" / "1") and whole(place / "made" / "2")
assert not list(place.rglob("*.part"))
""",
        limit=90,
    )


@_MOUNTS
def test_an_output_folder_that_cannot_be_written_is_told(tmp_path):
    run_scenario(
        tmp_path,
        _BATCH
        + """
small_disk(tmp / "made", "8m")
subprocess.run(["mount", "-o", "remount,ro", str(tmp / "made")], check=True)
wish("red")
code, said = patina("batch")
assert code == 1 and [row["state"] for row in rows()] == ["failed"] * 2
assert all("Read-only" in row["message"] and "made" in row["message"] for row in rows()), rows()
subprocess.run(["mount", "-o", "remount,rw", str(tmp / "made")], check=True)
assert patina("batch") == (0, "") and whole(tmp / "made" / "1")
subprocess.run(["mount", "-o", "remount,ro", str(tmp / "made")], check=True)
place = tmp / "made"
code, said = patina("batch")
assert code == 2 and "cannot be read" in said, said
code, said = patina("resume")
assert code == 2 and "There is no queue" in said, said
""",
        limit=90,
    )


@pytest.mark.parametrize("what", ["list.batch", "made", "list.batch/items"])
def test_a_folder_that_is_taken_away_hangs_nothing(tmp_path, what):
    run_scenario(
        tmp_path,
        _BATCH
        + f"""
wish("slow", more="seeds = [1, 2]")
later(8.0, lambda: shutil.rmtree(tmp / "{what}"))
began = time.monotonic()
code, said = patina("batch")
print("ended with", code, said, [row["message"] for row in rows()])
assert code in (0, 1) and all(row["message"] for row in rows() if row["state"] == "failed")
assert code == 1 or (whole(tmp / "made" / "2") and all(row["state"] == "done" for row in rows()))
assert patina("batch") == (0, "") and whole(tmp / "made" / "1") and whole(tmp / "made" / "2")
""",
        limit=120,
    )


def test_of_two_batches_of_one_list_the_second_is_told(tmp_path):
    run_scenario(
        tmp_path,
        _BATCH
        + """
wish("red")
hold = "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from addon import batch_queue\\n"
hold += "with batch_queue.alone(Path(sys.argv[2])): print('held', flush=True); sys.stdin.read()"
words = [sys.executable, "-c", hold, str(Path(batch.__file__).parents[1]), str(tmp / "list.batch")]
holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert holder.stdout.readline() == b"held\\n"
for _ in range(2):
    code, said = patina("batch")
    assert code == 2 and "Another Patina is running the batch" in said, said
    assert not list((tmp / "list.batch").glob("items/*")), "it prepared what another was preparing"
holder.stdin.close(), holder.wait(30), holder.stdout.close()
assert patina("batch") == (0, "")
""",
        limit=60,
    )


def test_a_file_without_meshes_and_lists_that_are_none(tmp_path):
    run_scenario(
        tmp_path,
        _BATCH
        + """
wish("red", objects="*")
bpy.data.objects.remove(cube)
code, said = patina("batch")
assert code == 1 and rows()[0]["message"] == "No mesh object is called '*' in this file."
assert command._execute(["run", "--prompt", "red", "--out", str(tmp / "one")]) == 1
(tmp / "list.toml").unlink()
code, said = patina("batch")
assert code == 2 and "cannot be read" in said, said
(tmp / "list.toml").mkdir()
code, said = patina("batch")
assert code == 2 and "cannot be read" in said, said
assert patina("status")[0] == 2
""",
        limit=60,
    )


def test_a_mesh_that_has_changed_is_made_anew(tmp_path):
    run_scenario(
        tmp_path,
        _BATCH
        + """
wish("red", more="seed = 1")
assert patina("batch") == (0, "")
(job,) = (tmp / "list.batch" / "items").iterdir()
first = (job / "mesh.npz").read_bytes()
(job / "checkpoint.safetensors").write_text("of this mesh")
assert patina("batch", "--force") == (0, "")
assert (job / "mesh.npz").read_bytes() == first and (job / "checkpoint.safetensors").exists()
cube.data.vertices[0].co.x *= 3
assert patina("batch") == (0, "") and rows()[0]["state"] == "skipped", "what is done is done"
assert patina("batch", "--force") == (0, "")
assert (job / "mesh.npz").read_bytes() != first, "--force textured the mesh of yesterday"
assert not (job / "checkpoint.safetensors").exists(), "the state of another mesh would be gone on with"
""",
        limit=60,
    )


def test_maps_of_an_unwrapped_object_are_applied_after_a_new_start_too(tmp_path):
    run_scenario(
        tmp_path,
        _BATCH
        + """
while cube.data.uv_layers:
    cube.data.uv_layers.remove(cube.data.uv_layers[0])
bpy.ops.wm.save_as_mainfile(filepath=str(tmp / "in.blend"))
wish("red")
assert patina("batch") == (0, "")
for turn in range(2):  # all is done; then all was prepared by one who was killed
    bpy.ops.wm.open_mainfile(filepath=str(tmp / "in.blend"))
    assert patina("batch", "--save-as", str(tmp / "out.blend"))[0] == 0
    bpy.ops.wm.open_mainfile(filepath=str(tmp / "out.blend"))
    mesh = bpy.data.objects["Cube"].data
    assert "Patina" in mesh.uv_layers, "the maps fit a layer that is not there"
    shown = bpy.data.objects["Cube"].material_slots[0].material.node_tree.nodes
    assert len([node for node in shown if node.type == "TEX_IMAGE"]) == 4
    if not turn:
        uvs = [tuple(round(v, 5) for v in loop.uv) for loop in mesh.uv_layers["Patina"].data]
        shutil.rmtree(tmp / "made")
    else:
        assert uvs == [tuple(round(v, 5) for v in loop.uv) for loop in mesh.uv_layers["Patina"].data]
""",
        limit=90,
    )


@_MOUNTS
def test_a_run_that_cannot_keep_what_it_makes_says_so(tmp_path):
    run_scenario(
        tmp_path,
        _BATCH
        + """
def refused(sentence, *words, code=1):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        ended = command._execute([*words])
    assert ended == code and sentence in said.getvalue() and "Errno" not in said.getvalue(), (ended, said.getvalue())
    assert said.getvalue().count("\\n") == 1 and "Error: " not in said.getvalue(), said.getvalue()
small = tmp / "small"
small_disk(small, "4m")
(tmp / "file").touch()
wish("red", more="seed = 1")
refused("File exists", "run", "--prompt", "red", "--out", str(tmp / "file"))
refused("is a folder", "run", "--prompt", "red", "--save-as", str(tmp))
refused("is a folder", "batch", str(tmp / "list.toml"), "--save-as", str(tmp), code=2)
with contextlib.suppress(OSError), open(small / "filler", "ab", buffering=0) as file:
    while True:
        file.write(bytes(4096))
refused("No space left", "run", "--prompt", "red", "--out", str(small / "out"))
refused("No space left", "run", "--prompt", "red", "--save-as", str(small / "out.blend"))
subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
refused("Read-only", "run", "--prompt", "red", "--out", str(small / "out2"))
refused("Read-only", "run", "--prompt", "red", "--save-as", str(small / "out.blend"))
assert cube.material_slots[0].material.name == "Material" and not cube.patina.kept_slots
refused("Read-only", "batch", str(tmp / "list.toml"), "--save-as", str(small / "out.blend"))
assert rows()[0]["state"] == "done" and whole(tmp / "made" / "1"), "the maps are kept all the same"
""",
        limit=60,
    )
