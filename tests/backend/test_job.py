# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt of a job, in this process and in real ones that are killed, starved or left by their host."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from addon import protocol, worker
from backend import job as job_module

MAPS = {"base_color": "maps/base_color.png"}
SLOW = """
import time
from addon import protocol
def run(request, job, shelf, stop_asked):
    yield protocol.Started("test", "cpu", request.model, 600, 0)
    for step in range(600):
        asked = stop_asked()
        if asked == "cancel":
            yield protocol.Cancelled(step, {})
            return
        if asked:
            job.checkpoint.write_text(str(step))
            yield protocol.Paused("host gone" if asked == "host gone" else "asked", step)
            return
        yield protocol.Progress("Painting", step, 600, step / 600, 1.0)
        time.sleep(0.05)
    yield protocol.Done({}, "report.json")
"""
QUICK = """
from addon import protocol
def run(request, job, shelf, stop_asked):
    yield protocol.Started("test", "cpu", request.model, 1, 0)
    if "explode" in request.prompt:
        raise ValueError("boom")
    if "memory" in request.prompt:
        raise MemoryError
    yield protocol.Done({}, "report.json")
"""


@pytest.fixture
def new_job(tmp_path):
    def make(name="job", prompt="rusty iron"):
        folder = protocol.JobFolder(tmp_path / name)
        folder.write_request(protocol.TextureRequest(prompt=prompt))
        return folder

    return make


@pytest.fixture
def texture_with(monkeypatch):
    """Let `run` of a texturing room of the test's making do the work."""

    def use(run):
        models = types.ModuleType("backend.models")
        models.ModelError = type("ModelError", (Exception,), {})
        models.ModelShelf = type("ModelShelf", (), {"release": lambda self: None})
        texturing = types.ModuleType("backend.texturing")
        texturing.run = run
        for name, module in (("models", models), ("texturing", texturing)):
            monkeypatch.setitem(sys.modules, f"backend.{name}", module)
            monkeypatch.setattr(sys.modules["backend"], name, module, raising=False)
        return models

    return use


def run(folder, host_gone=lambda: False, **options):
    attempt = folder.new_attempt()
    code = job_module.run_job(folder.path, attempt.number, None, host_gone, **options)
    return code, events_of(attempt)


def events_of(attempt):
    return protocol.read_lines(attempt.events, 0, protocol.Event)[0]


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def backend_command(root, *arguments):
    return [sys.executable, "-I", "-X", "utf8", "-c", worker.BOOTSTRAP, str(root), *map(str, arguments)]


# --- in this process ---------------------------------------------------------------------------


def test_events_are_written_in_order_and_the_run_is_closed(new_job, texture_with):
    closed = []

    def texturing(request, job, shelf, stop_asked):
        try:
            yield protocol.Started("test", "cpu", request.model, 2, 0)
            yield protocol.Progress("Painting", 1, 2, 0.5, None)
            yield protocol.Done(MAPS, "report.json")
            yield protocol.Progress("Too late", 2, 2, 1.0, None)
        finally:
            closed.append(True)

    texture_with(texturing)
    seen = []
    code, events = run(new_job(), watch=seen.append)
    assert code == protocol.EXIT_OK and closed == [True]
    assert [type(event).__name__ for event in events] == ["Started", "Progress", "Done"] and seen == events


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), "out_of_memory", "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory", "memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/maps/x.png"), "disk_full", "/maps/x.png"),
        (protocol.ProtocolError("mesh.npz lacks uvs."), "bad_request", "lacks uvs"),
        (ImportError("No module named 'xatlas'"), "internal", "environment is incomplete"),
        (ZeroDivisionError("division by zero"), "internal", "ZeroDivisionError"),
        (SystemExit(3), "internal", "SystemExit"),
        (ValueError(), "internal", "ValueError"),
    ],
)
def test_every_exception_becomes_one_failed_event(new_job, texture_with, error, kind, words):
    def texturing(request, job, shelf, stop_asked):
        yield protocol.Started("test", "cpu", request.model, 2, 0)
        raise error

    texture_with(texturing)
    folder = new_job()
    code, events = run(folder)
    assert isinstance(events[-1], protocol.Failed) and len(events) == 2
    assert events[-1].kind == kind and words in events[-1].message and events[-1].hint
    assert code == protocol.FAILURE_KINDS[kind] != 0
    assert "Traceback" in folder.attempts()[0].log.read_text()


@pytest.mark.parametrize(("room", "name", "kind"), [e for e in job_module.NAMED_ERRORS if "backend" in e[0]])
def test_named_errors_of_the_rooms_have_their_kind(monkeypatch, room, name, kind):
    module = types.ModuleType(room)
    setattr(module, name, type(name, (Exception,), {}))
    monkeypatch.setitem(sys.modules, room, module)
    failure = job_module.failure_of(getattr(module, name)("The mesh has a NaN."))
    assert failure.kind == kind and failure.message == "The mesh has a NaN."


def test_a_torch_out_of_memory_is_told_as_such():
    torch = pytest.importorskip("torch")
    assert job_module.failure_of(torch.OutOfMemoryError("CUDA out of memory")).kind == "out_of_memory"


def test_a_run_that_ends_without_a_word_has_failed(new_job, texture_with):
    texture_with(lambda *_: (event for event in []))
    code, events = run(new_job())
    assert code != 0 and [type(event).__name__ for event in events] == ["Failed"]
    assert "ended without saying how" in events[0].message


def test_an_event_that_cannot_be_sent_fails_the_job(new_job, texture_with):
    texture_with(lambda *_: (event for event in [protocol.Progress("x", 1, 1, float("nan"), None)]))
    code, events = run(new_job())
    assert code != 0 and isinstance(events[-1], protocol.Failed)


def test_a_bad_request_is_told(new_job):
    folder = new_job()
    folder.request.write_text("{")
    code, events = run(folder)
    assert code == protocol.EXIT_BAD_REQUEST and events[-1].kind == "bad_request"
    assert "request.json" in events[-1].message


def test_an_attempt_is_never_written_twice(new_job, texture_with):
    texture_with(lambda *_: (event for event in [protocol.Done({}, "report.json")]))
    folder = new_job()
    run(folder)
    before = folder.attempts()[0].events.read_bytes()
    with pytest.raises(job_module.CannotTell) as caught:
        job_module.run_job(folder.path, 1, None, lambda: False)
    assert caught.value.exit_code != 0 and folder.attempts()[0].events.read_bytes() == before


def test_a_missing_job_can_only_be_told_by_exit_code(tmp_path):
    with pytest.raises(job_module.CannotTell, match="no folder") as caught:
        job_module.run_job(tmp_path / "nowhere", 1, None, lambda: False)
    assert caught.value.exit_code == protocol.EXIT_BAD_REQUEST


def test_a_full_disk_leaves_whole_lines_and_an_exit_code(new_job, texture_with, monkeypatch):
    """The disk takes 100 bytes more, then nothing."""
    real_write, room = os.write, [100]

    def write(descriptor, data):
        if not os.readlink(f"/proc/self/fd/{descriptor}").endswith("events.jsonl"):
            return real_write(descriptor, data)
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(descriptor, data[: room[0]])
        room[0] -= written
        return written

    def texturing(request, job, shelf, stop_asked):
        for step in range(10):
            yield protocol.Checkpoint(step)

    texture_with(texturing)
    monkeypatch.setattr(os, "write", write)
    folder = new_job()
    attempt = folder.new_attempt()
    with pytest.raises(job_module.CannotTell) as caught:
        job_module.run_job(folder.path, attempt.number, None, lambda: False)
    assert caught.value.exit_code == protocol.EXIT_DISK_FULL
    assert events_of(attempt) and attempt.events.read_bytes().endswith(b"\n")


def test_a_job_folder_deleted_under_the_run_is_noticed(new_job, texture_with):
    folder = new_job()

    def texturing(request, job, shelf, stop_asked):
        yield protocol.Checkpoint(0)
        job.attempt(1).events.unlink()
        yield protocol.Checkpoint(1)

    texture_with(texturing)
    folder.new_attempt()
    with pytest.raises(job_module.CannotTell):
        job_module.run_job(folder.path, 1, None, lambda: False)


@pytest.mark.parametrize(
    ("orders", "gone", "asked"),
    [
        ([], False, None),
        ([], True, "host gone"),
        ([protocol.Pause()], False, "pause"),
        ([protocol.Cancel()], True, "cancel"),
        ([protocol.Pause(), protocol.Cancel()], False, "cancel"),
        ([protocol.Cancel(), protocol.Pause()], False, "cancel"),
    ],
)
def test_orders_reach_the_running_job(new_job, texture_with, orders, gone, asked):
    answers = []
    folder = new_job()

    def texturing(request, job, shelf, stop_asked):
        yield protocol.Checkpoint(0)
        for order in orders:
            protocol.append_line(job.attempt(1).control, order)
        gone_now.append(gone)
        answers.append(stop_asked())
        yield protocol.Done({}, "report.json")

    gone_now = [False]
    texture_with(texturing)
    run(folder, host_gone=lambda: gone_now[-1])
    assert answers == [asked]


@pytest.mark.parametrize(
    ("order", "ending"), [(protocol.Cancel(), protocol.Cancelled(0)), (protocol.Pause(), protocol.Paused("asked", 0))]
)
def test_an_order_given_before_the_start_is_obeyed_before_torch_is_loaded(new_job, order, ending):
    folder = new_job()
    attempt = folder.new_attempt()
    protocol.append_line(attempt.control, order)
    code = job_module.run_job(folder.path, 1, None, lambda: False)
    assert events_of(attempt) == [ending] and code == job_module.exit_code_of(ending)


def test_orders_to_an_older_attempt_bind_nobody(new_job, texture_with):
    texture_with(lambda *_: (event for event in [protocol.Done({}, "report.json")]))
    folder = new_job()
    protocol.append_line(folder.new_attempt().control, protocol.Cancel())
    assert run(folder)[0] == protocol.EXIT_OK


def test_an_unreadable_order_is_a_warning_and_later_orders_count(new_job, texture_with):
    def texturing(request, job, shelf, stop_asked):
        yield protocol.Checkpoint(0)
        job.attempt(1).control.write_bytes(b"rubbish\n")
        assert stop_asked() is None
        protocol.append_line(job.attempt(1).control, protocol.Cancel())
        assert stop_asked() == "cancel"
        yield protocol.Cancelled(0, {})

    texture_with(texturing)
    code, events = run(new_job())
    assert code == protocol.EXIT_CANCELLED, events
    assert [type(event).__name__ for event in events] == ["Checkpoint", "Warning", "Cancelled"]


def test_the_attempts_log_is_bounded_and_a_full_disk_does_not_matter(new_job, texture_with, monkeypatch):
    import logging

    def texturing(request, job, shelf, stop_asked):
        for _ in range(3000):
            logging.getLogger("library").warning("x" * 100)
        yield protocol.Done({}, "report.json")

    texture_with(texturing)
    monkeypatch.setattr(job_module, "LOG_LIMIT_BYTES", 10_000)
    folder = new_job()
    assert run(folder)[0] == 0
    assert sum(path.stat().st_size for path in folder.attempts()[0].path.glob("log*")) < 25_000
    handlers = list(logging.getLogger().handlers)
    monkeypatch.setattr(logging.handlers.RotatingFileHandler, "shouldRollover", lambda *_: 1 / 0)
    assert run(folder)[0] == 0
    assert logging.getLogger().handlers == handlers


def test_jobs_queue_for_the_device(new_job, texture_with, tmp_path):
    texture_with(lambda *_: (event for event in [protocol.Done({}, "report.json")]))
    lock = tmp_path / "device.lock"
    held = protocol.take_lock(lock, "another")
    asked = []

    def watch(event):
        asked.append(event)
        if isinstance(event, protocol.Progress):
            protocol.release_lock(held)

    code, events = run(new_job(), watch=watch, device_lock=lock)
    assert code == 0 and "Waiting" in events[0].stage and isinstance(events[1], protocol.Done)
    again = protocol.take_lock(lock, "free again")
    assert again is not None
    protocol.release_lock(again)


def test_a_waiting_job_can_be_cancelled(new_job, texture_with, tmp_path):
    texture_with(lambda *_: pytest.fail("must not start"))
    held = protocol.take_lock(tmp_path / "device.lock", "another")
    folder = new_job()

    def watch(event):
        if isinstance(event, protocol.Progress):
            protocol.append_line(folder.attempt(1).control, protocol.Cancel())

    code, events = run(folder, watch=watch, device_lock=tmp_path / "device.lock")
    protocol.release_lock(held)
    assert code == protocol.EXIT_CANCELLED and isinstance(events[-1], protocol.Cancelled)


# --- real processes ----------------------------------------------------------------------------


@pytest.fixture
def backend(tmp_path, package_root):
    """Start `python -m backend ARGS` with a texturing room of the test's making; killed at the end."""
    started = []

    def start(source, *arguments):
        root = package_root(source) if not (tmp_path / "package").exists() else tmp_path / "package"
        process = subprocess.Popen(
            backend_command(root, *arguments),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def send(process, command):
    process.stdin.write(protocol.encode(command))
    process.stdin.flush()


def test_serve_runs_job_after_job_and_survives_failures(backend, new_job, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    process = backend(QUICK, "serve", "--home", home)
    endings = []
    for number, prompt in enumerate(("gold", "explode", "out of memory", "brass")):
        folder = new_job(f"job{number}", prompt)
        attempt = folder.new_attempt()
        send(process, protocol.Run(str(folder.path), 1))
        wait_for(lambda a=attempt: any(isinstance(e, protocol.TERMINAL_EVENTS) for e in events_of(a)))
        endings.append(events_of(attempt)[-1])
    assert [type(ending).__name__ for ending in endings] == ["Done", "Failed", "Failed", "Done"]
    assert [ending.kind for ending in endings[1:3]] == ["internal", "out_of_memory"]
    assert (home / "alive").exists()
    send(process, protocol.ReleaseMemory())
    send(process, protocol.Shutdown())
    out, err = process.communicate(timeout=10)
    assert process.returncode == protocol.EXIT_OK and out.count("shelf released") == 2, err


def test_serve_ends_with_a_code_on_a_command_it_does_not_know(backend, tmp_path):
    process = backend(QUICK, "serve", "--home", tmp_path)
    process.stdin.write('{"type": "Dance"}\n')
    process.stdin.flush()
    assert process.wait(10) == protocol.EXIT_USAGE and "Dance" in process.stderr.read()


def test_closed_stdin_pauses_the_job_and_it_can_be_resumed(backend, new_job, tmp_path):
    folder = new_job()
    attempt = folder.new_attempt()
    process = backend(SLOW, "serve", "--home", tmp_path)
    send(process, protocol.Run(str(folder.path), 1))
    wait_for(lambda: len(events_of(attempt)) > 3)
    process.stdin.close()
    assert process.wait(10) == protocol.EXIT_HOST_GONE
    paused = events_of(attempt)[-1]
    assert paused == protocol.Paused("host gone", paused.step) and paused.step > 0
    assert folder.checkpoint.read_text() == str(paused.step)
    again = folder.new_attempt()
    resumed = backend(SLOW, "serve", "--home", tmp_path)
    send(resumed, protocol.Run(str(folder.path), again.number))
    wait_for(lambda: len(events_of(again)) > 1)
    assert isinstance(events_of(again)[0], protocol.Started)


def test_a_backend_whose_stage_never_ends_outlives_its_host_by_a_bounded_time(backend, new_job, tmp_path, package_root):
    root = package_root("import time\ndef run(*_):\n    time.sleep(600)\n    yield\n")
    serve = root / "backend" / "serve.py"
    serve.write_text(serve.read_text().replace("HOST_GONE_LIMIT_S = 120.0", "HOST_GONE_LIMIT_S = 1.0"))
    folder = new_job()
    folder.new_attempt()
    process = backend("", "serve", "--home", tmp_path)
    send(process, protocol.Run(str(folder.path), 1))
    time.sleep(0.5)
    process.stdin.close()
    assert process.wait(10) == protocol.EXIT_HOST_GONE


def test_idle_memory_is_given_back(backend, new_job, tmp_path, package_root):
    root = package_root(QUICK)
    serve = root / "backend" / "serve.py"
    serve.write_text(serve.read_text().replace("IDLE_RELEASE_S = 600.0", "IDLE_RELEASE_S = 1.0"))
    folder = new_job()
    folder.new_attempt()
    process = backend("", "serve", "--home", tmp_path)
    send(process, protocol.Run(str(folder.path), 1))
    assert process.stdout.readline() == "shelf released\n"


def test_two_processes_never_run_one_job(backend, new_job):
    folder = new_job()
    first = backend(SLOW, "run", folder.path)
    wait_for(lambda: folder.attempts() and events_of(folder.attempts()[0]))
    second = backend(SLOW, "run", folder.path)
    _, err = second.communicate(timeout=20)
    assert second.returncode == protocol.EXIT_JOB_LOCKED
    assert f"already running: process {first.pid}" in err and len(err.strip().splitlines()) == 1
    assert events_of(folder.attempts()[1])[-1].kind == "locked"
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    third = backend(SLOW, "run", folder.path)
    wait_for(lambda: len(folder.attempts()) == 3 and events_of(folder.attempts()[2]))
    assert isinstance(events_of(folder.attempts()[2])[0], protocol.Started) and third.poll() is None


def test_an_attempt_that_gives_its_lock_back_late_is_waited_for(backend, new_job):
    folder = new_job()
    held = protocol.take_lock(folder.lock, "the attempt before, tidying up")
    process = backend(SLOW, "run", folder.path)
    wait_for(lambda: folder.attempts())
    time.sleep(0.5)
    assert process.poll() is None and not folder.attempts()[0].events.exists()
    protocol.release_lock(held)
    wait_for(lambda: folder.attempts()[0].events.exists() and events_of(folder.attempts()[0]))
    assert isinstance(events_of(folder.attempts()[0])[0], protocol.Started)


def test_ctrl_c_pauses_in_a_terminal(backend, new_job):
    folder = new_job()
    process = backend(SLOW, "run", folder.path)
    wait_for(lambda: folder.attempts() and len(events_of(folder.attempts()[0])) > 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert isinstance(events_of(folder.attempts()[0])[-1], protocol.Paused)
    assert process.returncode != 0 and "To go on" in err


def test_run_in_a_terminal(backend, new_job, tmp_path):
    process = backend(QUICK, "run", new_job().path)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "Done." in err
    process = backend(QUICK, "run", new_job("bad", "explode").path)
    _, err = process.communicate(timeout=20)
    assert process.returncode == protocol.EXIT_FAILED and "boom" in err and "Traceback" not in err
    process = backend(QUICK, "run", tmp_path / "nothing")
    _, err = process.communicate(timeout=20)
    assert process.returncode == protocol.EXIT_BAD_REQUEST and len(err.strip().splitlines()) == 1


MESH_ROOM = """
class MeshError(Exception): pass
def load_mesh_file(path, tell):
    if path.suffix != ".obj": raise MeshError(f"{path.name} is no mesh file Patina can read.")
    return {"file": path.name}
def save_job_mesh(path, arrays):
    path.write_text(arrays["file"])
"""
TEXTURE_ROOM = """
from addon import protocol
def run(request, job, shelf, stop_asked):
    yield protocol.Started("test", "cpu", request.model, 1, 0)
    assert job.mesh.read_text() == "cup.obj"
    job.maps.mkdir()
    for name in protocol.MAP_NAMES:
        (job.maps / f"{name}.{request.file_format}").write_text(request.prompt)
    job.report.write_text("{}")
    yield protocol.Done({name: f"maps/{name}.{request.file_format}" for name in protocol.MAP_NAMES}, "report.json")
"""


def test_texture_a_file_without_blender(backend, tmp_path, package_root):
    root = package_root(TEXTURE_ROOM)
    (root / "backend" / "mesh.py").write_text(MESH_ROOM)
    (root / "backend" / "uv.py").write_text("class UvError(Exception): pass\n")
    (root / "backend" / "glb.py").write_text("def write_glb(file, arrays, maps): file.touch()\n")
    (tmp_path / "cup.obj").touch()
    (tmp_path / "cup.doc").touch()
    out = tmp_path / "out folder"
    for count in (1, 2):
        options = ("--prompt", "gold", "--out", out, "--texture-size", "512")
        process = backend("", "texture", tmp_path / "cup.obj", *options)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        made = {f"{name}.png" for name in protocol.MAP_NAMES} | {"report.json", "textured.glb"}
        assert {path.name for path in out.glob("*.*")} == made
        assert len(list(out.glob("job-*"))) == count
    request = json.loads((out / "job-0001" / "request.json").read_text())
    assert request["texture_size"] == 512 and request["prompt"] == "gold"
    options = ("--prompt", "gold", "--out", tmp_path / "exr", "--format", "exr", "--bit-depth", "32")
    process = backend("", "texture", tmp_path / "cup.obj", *options, "--rasterizer", "torch")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert {path.name for path in (tmp_path / "exr").glob("*.exr")} == {f"{name}.exr" for name in protocol.MAP_NAMES}
    request = json.loads((tmp_path / "exr" / "job-0001" / "request.json").read_text())
    assert (request["file_format"], request["bit_depth"], request["rasterizer"]) == ("exr", 32, "torch")
    for arguments, words in (
        ((tmp_path / "none.obj", "--prompt", "gold", "--out", out), "no mesh file"),
        ((tmp_path / "cup.doc", "--prompt", "gold", "--out", out), "no mesh file Patina can read"),
        ((tmp_path / "cup.obj", "--prompt", " ", "--out", out), "prompt is empty"),
        ((tmp_path / "cup.obj", "--prompt", "gold", "--out", out, "--seed", "-1"), "seed"),
        ((tmp_path / "cup.obj", "--prompt", "gold", "--out", out, "--bit-depth", "32"), "8 or 16 in png files"),
        ((tmp_path / "cup.obj", "--prompt", "gold", "--out", tmp_path / "cup.doc" / "x"), "cup.doc"),
    ):
        process = backend("", "texture", *arguments)
        _, err = process.communicate(timeout=20)
        assert process.returncode not in (0, None) and words in err and len(err.strip().splitlines()) == 1, err
