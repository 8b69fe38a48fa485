# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches inside bpy against the fake backend: what is done is skipped, what failed is told, killed ones go on."""

import pytest

pytest.importorskip("bpy")

from . import harness  # noqa: E402
from .harness import run_scenario  # noqa: E402

_TEN = """
from addon import command
def scene():
    for number in range(8):
        bpy.ops.mesh.primitive_cube_add(size=1 + number / 10)
        bpy.context.object.name = f"Chair.{number}"
(tmp / "list.toml").write_text('''
[defaults]
texture_size = 512
out = "made/{object}"
[[job]]
objects = "Chair.[0-6]"
prompt = "slow"
seed = 3
[[job]]
objects = ["Chair.7", "Nobody*"]
prompt = "failed"
[[job]]
objects = "Cube"
prompt = "red"
seeds = [1, 2]
out = "made/{object}/{seed}"
''')
def patina(*words):
    return command._execute([*words[:1], str(tmp / "list.toml"), *words[1:]])
def report():
    import json
    return json.loads((tmp / "list.batch" / "report.json").read_text())
"""


def test_ten_of_which_two_cannot_be_made(tmp_path):
    said = run_scenario(
        tmp_path,
        _TEN
        + """
scene()
assert patina("batch", "--jobs", "3", "--save-as", str(tmp / "out.blend")) == 1
made = report()
assert made["counts"] == {"done": 9, "skipped": 0, "failed": 2, "running": 0, "waiting": 0}, made["counts"]
by_name = {row["object_name"]: row for row in made["items"]}
assert "Choose a smaller texture size" in by_name["Chair.7"]["message"] and by_name["Chair.7"]["attempts"] == 2
assert "No mesh object" in by_name["Nobody*"]["message"]
for place in [f"Chair.{n}" for n in range(7)] + ["Cube/1", "Cube/2"]:
    names = {p.name for p in (tmp / "made" / place).iterdir()}
    assert {"base_color.png", "metallic.png", "roughness.png", "normal.png", "report.json", "picture.png"} <= names
times = {p: p.stat().st_mtime_ns for p in (tmp / "made").rglob("*.png")}
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()) as heard:
    assert patina("status") == 1
(line,) = [line for line in heard.getvalue().splitlines() if "Chair.7" in line]
assert line.split()[0] == "failed" and "There is not enough memory" in line, line
assert patina("batch") == 1 and report()["counts"]["skipped"] == 9
assert {p: p.stat().st_mtime_ns for p in (tmp / "made").rglob("*.png")} == times, "what is done is not touched"
assert patina("resume") == 1

stamp = tmp / "made" / "Chair.0" / "patina-batch.json"
stamp.unlink()
assert patina("batch") == 1
row = {r["object_name"]: r for r in report()["items"]}["Chair.0"]
assert row["state"] == "failed" and "--force" in row["message"]
assert {p: p.stat().st_mtime_ns for p in (tmp / "made").rglob("*.png")} == times
assert patina("batch", "--force") == 1 and stamp.exists()
bpy.ops.wm.open_mainfile(filepath=str(tmp / "out.blend"))
chair = bpy.data.objects["Chair.3"]
shown = [n.image for n in chair.material_slots[0].material.node_tree.nodes if n.type == "TEX_IMAGE"]
assert len(shown) == 4 and all("made" in i.filepath and tuple(i.size) == (512, 512) for i in shown)
""",
        limit=220,
    )
    assert "[1/" in said or "[2/" in said


_ONE = '[[job]]\nobjects="Cube"\nprompt="x"\n'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("nonsense", "cannot be read"),
        ("", "must hold [[job]]"),
        ('[[job]]\nobjects="Cube"\nprompt="x"\ncolour=1', "colour is not known"),
        ('[[job]]\nobjects="Cube"', "prompt is missing"),
        ('[[job]]\nobjects="Cube"\nprompt="x"\nquality="best"', "quality must be"),
        ('[[job]]\nobjects="Cube"\nprompt="x"\nseeds=[1,2]\nout="one"', "Two jobs write to one"),
        (_ONE + 'out="one/two"\n' + _ONE + 'out="./one//two/."', "Two jobs write to one"),
        (_ONE + 'out="one"\n' + _ONE + 'out="two/../one"', "Two jobs write to one"),
        (_ONE + 'out="{shape}"', "out may hold"),
        (_ONE + 'out="{object.__class__}"', "out may hold"),
        (_ONE + 'out="{}"', "out may hold"),
        (_ONE + 'out="{object"', "out may hold"),
        (_ONE + "out=5", "out must be the name of a folder"),
        (_ONE + 'out=" "', "out must be the name of a folder"),
        (_ONE + 'out="a\\u0000b"', "out must be the name of a folder"),
        (_ONE + 'seed="1"', "seed is missing or not a number"),
        (_ONE + "seed=1.5", "seed is missing or not a number"),
        (_ONE + "seed=true", "seed is missing or not a number"),
        (_ONE + "seed=-1", "seed must lie between"),
        (_ONE + "seeds=[]", "seed is missing"),
        (_ONE + 'texture_size="big"', "texture_size has the wrong type"),
        (_ONE + 'extra_maps="height"', "extra_maps has the wrong type"),
        (_ONE + "steps=nan", "steps has the wrong type"),
        ('[[job]]\nobjects=[1]\nprompt="x"', "objects is missing or not text"),
        ('[[job]]\nobjects="Cube"\nprompt={a=1}', "prompt is missing or not text"),
        ("job = [1, 2]", "must hold [[job]]"),
        ("job = 5", "must hold [[job]]"),
        ('[job]\nobjects="Cube"', "must hold [[job]]"),
        ("defaults = 5\n" + _ONE, "must hold [[job]]"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, content, sentence):
    from addon import batch, protocol  # noqa: F401

    (tmp_path / "list.toml").write_text(content)
    with pytest.raises(batch.BatchProblem) as problem:
        batch.read(tmp_path / "list.toml", ["Cube"])
    assert sentence in str(problem.value)


@pytest.mark.parametrize(
    "name", ["../../up", "..", "/etc", "a/../../b", "C:\\up", "{prompt}", ".", " ", "x" * 63, "机器"]
)
def test_no_objects_name_leads_out_of_its_folder(tmp_path, name):
    from addon import batch

    (tmp_path / "list.toml").write_text('[[job]]\nobjects="*"\nprompt="../x"\nout="made/{object}/{prompt}"')
    (wish,), unmatched = batch.read(tmp_path / "list.toml", [name])
    folder = (tmp_path / wish.out).resolve()
    assert folder.parents[1] == (tmp_path / "made").resolve() and not unmatched


def test_a_job_whose_old_backend_still_saves_is_waited_for(tmp_path):
    run_scenario(
        tmp_path,
        _TEN
        + """
import subprocess
(tmp / "list.toml").write_text('[[job]]\\nobjects = "Cube"\\nprompt = "red"\\ntexture_size = 512')
hold = "import sys, time; sys.path.insert(0, sys.argv[1]); from addon import protocol; "
hold += "protocol.take_lock(__import__('pathlib').Path(sys.argv[2]), ''); print('held', flush=True); time.sleep(6)"
from addon import batch, batch_queue
entry = batch.prepare(tmp / "list.toml", False, print)[0]
folder = batch_queue.folder_of(tmp / "list.batch", entry.item)
holder = subprocess.Popen([sys.executable, "-c", hold, str(REPO), str(folder.lock)], stdout=subprocess.PIPE)
assert holder.stdout.readline() == b"held\\n"
began = time.monotonic()
assert patina("batch", "--retries", "0") == 0
assert time.monotonic() - began > 3 and report()["items"][0]["attempts"] == 1
holder.wait(30), holder.stdout.close()
""".replace("REPO", repr(str(harness.REPO))),
        limit=90,
    )


def test_paths_are_relative_to_the_list_and_uvs_go_with_every_item(tmp_path):
    run_scenario(
        tmp_path,
        """
        import json
        from addon import batch, batch_queue, command, preferences
        (tmp / "models" / "mine").mkdir(parents=True)
        for layer in list(cube.data.uv_layers): cube.data.uv_layers.remove(layer)
        (tmp / "list.toml").write_text('''
        [[job]]
        objects = "Cube"
        prompts = ["red", "blue"]
        model = "models/mine"
        texture_size = 512
        out = "made/{prompt}"
        ''')
        assert command._execute(["batch", str(tmp / "list.toml")]) == 0
        for prompt in ("red", "blue"):
            assert np.load(tmp / "made" / prompt / "uvs.npy").shape == (24, 2), prompt
        items = batch_queue.items(tmp / "list.batch")
        read = lambda item: batch_queue.folder_of(tmp / "list.batch", item).read_request()
        assert [read(item).model for item in items] == [str(tmp / "models" / "mine")] * 2
        preferences.device = lambda: "cpu"  # another computer
        entries = batch.prepare(tmp / "list.toml", True, print)
        assert {entry.item for entry in entries} == set(items) and {read(item).device for item in items} == {"cpu"}
        """,
        limit=90,
    )
