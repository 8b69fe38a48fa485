# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's side of the backend process, against backends that are slow, deaf, silent, killed, stopped or noisy."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from addon import protocol, worker

IDLE = "def run(*_):\n    yield\n"
SLOW = """
import time
from addon import protocol
def run(request, job, shelf, stop_asked):
    yield protocol.Started("test", "cpu", request.model, 600, 0)
    while not (asked := stop_asked()):
        time.sleep(0.02)
        yield protocol.Progress("Painting", 1, 600, 0.1, None)
    yield protocol.Cancelled(1, {}) if asked == "cancel" else protocol.Paused("host gone", 1)
"""
DEAF = """
import time
from addon import protocol
def run(request, job, shelf, stop_asked):
    yield protocol.Started("test", "cpu", request.model, 600, 0)
    time.sleep(600)
"""
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture
def start(tmp_path, package_root):
    """Start a worker on a texturing room of the test's making; killed at the end, if it was only stopped."""
    workers = []

    def start_with(source):
        root = package_root(source) if not (tmp_path / "package").exists() else tmp_path / "package"
        workers.append(worker.Worker.start(Path(sys.executable), root, tmp_path / "home"))
        return workers[-1]

    yield start_with
    for one in workers:
        one.stop(timeout=0)


@pytest.fixture
def new_job(tmp_path):
    job = protocol.JobFolder(tmp_path / "job")
    job.write_request(protocol.TextureRequest(prompt="rusty iron"))
    return job


def tick_until(one, condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long; log: {one.last_log_lines()}"
        one.tick()
        time.sleep(0.02)


def events_of(attempt):
    return protocol.read_lines(attempt.events, 0, protocol.Event)[0]


def start_job(one, job):
    attempt = job.new_attempt()
    one.send(protocol.Run(str(job.path), attempt.number))
    tick_until(one, lambda: events_of(attempt))
    return attempt


def test_a_job_is_run_and_the_worker_ends_when_asked(start, new_job):
    one = start(SLOW)
    attempt = start_job(one, new_job)
    tick_until(one, lambda: len(events_of(attempt)) > 2)
    assert one.poll() is None and one.end_sentence() is None and not one.is_stuck() and one.alive_age() < 5
    one.request_cancel(new_job, attempt.number)
    tick_until(one, lambda: isinstance(events_of(attempt)[-1], protocol.Cancelled))
    one.tick(time.monotonic() + 60)  # the cancel was obeyed: nothing is terminated
    assert one.poll() is None
    assert one.stop(5.0) == protocol.EXIT_OK and one.end_sentence() == "The backend has ended."


def test_closing_pauses_a_running_job(start, new_job):
    one = start(SLOW)
    attempt = start_job(one, new_job)
    one.close()
    tick_until(one, lambda: one.poll() is not None)
    assert isinstance(events_of(attempt)[-1], protocol.Paused)
    with pytest.raises(worker.WorkerError):
        one.send(protocol.ReleaseMemory())


def test_no_call_but_stop_takes_longer_than_a_few_milliseconds(start, new_job):
    one = start(SLOW)
    attempt = start_job(one, new_job)
    spent = {}
    for name, call in (
        ("send", lambda: one.send(protocol.ReleaseMemory())),
        ("tick", one.tick),
        ("poll", one.poll),
        ("alive_age", one.alive_age),
        ("last_log_lines", one.last_log_lines),
        ("request_cancel", lambda: one.request_cancel(new_job, attempt.number)),
        ("close", one.close),
    ):
        began = time.perf_counter()
        call()
        spent[name] = time.perf_counter() - began
    assert max(spent.values()) < 0.05, spent


def test_a_deaf_backend_is_terminated_after_a_cancel(start, new_job):
    one = start(DEAF)
    attempt = start_job(one, new_job)
    one.request_cancel(new_job, attempt.number)
    now = time.monotonic()
    one.tick(now + worker.TERMINATE_AFTER_S - 0.5)
    time.sleep(0.2)
    assert one.poll() is None
    one.tick(now + worker.TERMINATE_AFTER_S + 0.5)
    tick_until(one, lambda: one.poll() is not None, 5)
    assert one.poll() == -signal.SIGTERM and one.end_sentence() == "The backend did not answer and was ended."


@POSIX
def test_a_stopped_backend_is_stuck_not_dead_and_a_cancel_kills_it(start, new_job, monkeypatch):
    one = start(SLOW)
    attempt = start_job(one, new_job)
    monkeypatch.setattr(worker, "STUCK_AFTER_S", 2.5)
    os.kill(one.pid, signal.SIGSTOP)
    tick_until(one, one.is_stuck, 8)
    assert one.poll() is None
    one.request_cancel(new_job, attempt.number)
    now = time.monotonic()
    one.tick(now + worker.TERMINATE_AFTER_S + 0.1)
    time.sleep(0.2)
    assert one.poll() is None  # a stopped process does not even see a terminate
    one.tick(now + worker.TERMINATE_AFTER_S + worker.KILL_AFTER_S + 0.2)
    tick_until(one, lambda: one.poll() is not None, 5)
    assert one.poll() == -signal.SIGKILL and not one.is_stuck()


@POSIX
def test_a_continued_backend_is_no_longer_stuck(start, monkeypatch):
    one = start(IDLE)
    tick_until(one, lambda: "alive" in [p.name for p in one.folder.iterdir()])
    monkeypatch.setattr(worker, "STUCK_AFTER_S", 2.5)
    os.kill(one.pid, signal.SIGSTOP)
    tick_until(one, one.is_stuck, 8)
    os.kill(one.pid, signal.SIGCONT)
    tick_until(one, lambda: not one.is_stuck(), 5)


@POSIX
def test_a_killed_backend_is_seen_at_once_with_the_reason(start, new_job):
    one = start(SLOW)
    start_job(one, new_job)
    os.kill(one.pid, signal.SIGKILL)
    began = time.monotonic()
    tick_until(one, lambda: one.poll() is not None, 2)
    assert time.monotonic() - began < 2
    assert "SIGKILL" in one.end_sentence() and "memory" in one.end_sentence()
    with pytest.raises(worker.WorkerError, match="SIGKILL"):
        one.send(protocol.ReleaseMemory())


@POSIX
def test_children_of_a_backend_that_is_ended_end_with_it(start, new_job, tmp_path):
    source = DEAF.replace("    time.sleep(600)", "    import subprocess; subprocess.run(['sleep', '613'])")
    one = start(source)
    attempt = start_job(one, new_job)
    assert_running = lambda: subprocess.run(["pgrep", "-g", str(one.pid), "sleep"], capture_output=True).stdout  # noqa: E731
    tick_until(one, assert_running)
    one.request_cancel(new_job, attempt.number)
    one.tick(time.monotonic() + worker.TERMINATE_AFTER_S + 1)
    tick_until(one, lambda: one.poll() is not None and not assert_running(), 5)


def test_a_backend_that_prints_rubbish_without_end_breaks_nothing(start, new_job, tmp_path, package_root):
    noise = "        import os; os.write(1, b'\\xff\\x1b[31m rubbish ' * 3000 + b'\\n'); time.sleep(0.01)"
    root = package_root(SLOW.replace("        time.sleep(0.02)", noise))
    serve = root / "backend" / "serve.py"
    serve.write_text(serve.read_text().replace("LOG_LIMIT_BYTES = 4_000_000", "LOG_LIMIT_BYTES = 200_000"))
    one = start("")
    attempt = start_job(one, new_job)
    tick_until(one, lambda: len(events_of(attempt)) > 50)
    tick_until(one, lambda: b"older lines were dropped" in one.log.read_bytes(), 10)
    lines = one.last_log_lines(5)
    assert lines and all(len(line) <= 300 and line.isprintable() for line in lines)
    one.request_cancel(new_job, attempt.number)
    tick_until(one, lambda: isinstance(events_of(attempt)[-1], protocol.Cancelled))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_breaks_nothing(tmp_path, package_root, new_job):
    root = package_root(SLOW.replace("    while", "    print('to a full disk', flush=True)\n    while"))
    (tmp_path / "home").mkdir()
    attempt = new_job.new_attempt()
    command = [sys.executable, "-I", "-c", worker.BOOTSTRAP, str(root), "serve", "--home", str(tmp_path / "home")]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=full, stderr=full)
    process.stdin.write(protocol.encode(protocol.Run(str(new_job.path), 1)).encode())
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while len(events_of(attempt)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.stdin.close()
    assert process.wait(10) == protocol.EXIT_HOST_GONE
    assert isinstance(events_of(attempt)[-1], protocol.Paused)


def test_a_backend_that_cannot_start_says_why(tmp_path):
    with pytest.raises(worker.WorkerError, match="Repair the backend"):
        worker.Worker.start(tmp_path / "no-python", tmp_path, tmp_path / "home")


def test_a_package_without_a_backend_dies_with_its_last_words(tmp_path):
    one = worker.Worker.start(Path(sys.executable), tmp_path, tmp_path / "home")
    tick_until(one, lambda: one.poll() is not None)
    assert one.poll() != 0 and "backend" in one.last_log_lines()[-1] and one.end_sentence()


@POSIX
def test_sending_to_a_stopped_backend_never_blocks(start, new_job):
    one = start(IDLE)
    os.kill(one.pid, signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(3000):  # far more than a pipe holds
        one.send(protocol.Run(str(new_job.path) + "x" * 200, 1))
    assert time.monotonic() - began < 5.0
    os.kill(one.pid, signal.SIGCONT)


def test_the_users_python_settings_do_not_reach_the_backend(monkeypatch):
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/nonsense")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = worker.backend_environment()
    assert not {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"} & environment.keys()
    assert environment["OMP_WAIT_POLICY"] == "passive" and int(environment["OMP_NUM_THREADS"]) >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert worker.backend_environment()["OMP_NUM_THREADS"] == "1"


def test_a_module_in_the_working_folder_is_not_taken_for_ours(start, new_job, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "backend.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "here"))
    isolated = "f'{sys.flags.isolated} {sys.flags.utf8_mode} {sys.stdout.encoding}'"
    one = start(SLOW.replace("import time", "import sys, time").replace('"cpu"', isolated))
    attempt = start_job(one, new_job)
    assert one.poll() is None and events_of(attempt)[0].device == "1 1 utf-8"


def test_folders_without_life_for_a_day_are_removed(start, tmp_path):
    for name, age in (("1-1", 2 * worker.OLD_FOLDER_S), ("2-2", 60)):
        (tmp_path / "home" / name).mkdir(parents=True)
        alive = tmp_path / "home" / name / "alive"
        alive.touch()
        os.utime(alive, (time.time() - age,) * 2)
    start(IDLE)
    assert not (tmp_path / "home" / "1-1").exists() and (tmp_path / "home" / "2-2").exists()


@pytest.mark.parametrize("code", protocol.EXIT_SENTENCES)
def test_every_exit_code_has_its_sentence(code, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"], stdin=subprocess.PIPE)
    one = worker.Worker(process, tmp_path)
    process.wait()
    assert one.end_sentence() == protocol.EXIT_SENTENCES[code]
    process.stdin.close()
