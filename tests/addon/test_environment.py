# SPDX-License-Identifier: GPL-3.0-or-later
"""Building the backend's environment, with real venvs and a real pip against a small package index of the test's."""

import functools
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from addon import environment, protocol, tasks, worker
from addon.pip_output import PipOutput

POSIX = pytest.mark.skipif(os.name == "nt", reason="makes shell scripts")


def write_wheel(folder: Path, version: str) -> str:
    """A package `tinypart` that holds one module; the wheel's file name."""
    name = f"tinypart-{version}-py3-none-any.whl"
    info = f"tinypart-{version}.dist-info"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("tinypart.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinypart\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index with tinypart 1.0; its folder. A second one, /special, is left for the test to fill."""
    site = tmp_path / "site"
    page = site / "plain" / "tinypart"
    page.mkdir(parents=True)
    name = write_wheel(page, "1.0")
    (page / "index.html").write_text(f'<a href="{name}">{name}</a>')
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for variable in [name for name in os.environ if name.startswith(("PIP_", "PATINA_"))]:
        monkeypatch.delenv(variable)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/plain")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield address, site
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "requirements.txt").write_text("tinypart==1.0\n")
    (tmp_path / "constraints.txt").write_text("")
    return environment.Recipe(
        requirements=(tmp_path / "requirements.txt",),
        constraints=tmp_path / "constraints.txt",
        versions=("{}.{}".format(*sys.version_info[:2]),),
        check="import tinypart; print(tinypart.VERSION)",
        download_mb=1,
    )


def finish(build, seconds=120.0):
    """Tick a build to its end; the states it went through and the longest tick."""
    states, longest, deadline = [], 0.0, time.monotonic() + seconds
    while not build.finished:
        assert time.monotonic() < deadline, build.last_log_lines()
        began = time.perf_counter()
        states.append(build.tick())
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.02)
    return states, longest


def test_an_environment_is_built_and_known_as_ready(tmp_path, index, recipe):
    folder = tmp_path / "où est l'environnement" / "backend-env"
    broken = tmp_path / "python3.11"
    broken.write_text("#!/bin/sh\necho pyenv: no such version >&2; exit 127\n")
    broken.chmod(0o755)
    assert not environment.environment_ready(folder, recipe)
    build = environment.EnvironmentBuild(folder, (broken, tmp_path / "nowhere", Path(sys.executable)), recipe)
    states, longest = finish(build)
    assert build.error == "" and environment.environment_ready(folder, recipe), build.last_log_lines()
    fractions = [fraction for fraction, _ in states]
    assert fractions == sorted(fractions) and fractions[0] < 0.05 and fractions[-1] == 1.0
    assert {"Creating the environment", "Updating pip", "Trying it out"} <= {text for _, text in states}
    assert longest < 0.25  # a wait for a process or the network would be much longer
    assert environment.environment_python(folder).exists()
    assert build.last_log_lines()[-1] == "1.0"

    (tmp_path / "requirements.txt").write_text("tinypart==2.0\n")
    assert not environment.environment_ready(folder, recipe)
    build = environment.EnvironmentBuild(folder, (Path(sys.executable),), recipe)
    finish(build)
    assert "no fitting tinypart==2.0" in build.error and str(build.log) in build.error
    assert not environment.environment_ready(folder, recipe)


def test_a_failing_extra_index_does_not_break_the_installation(tmp_path, index, recipe, monkeypatch):
    """The index answers and has a better version, but its file cannot be fetched: then without it."""
    address, site = index
    (site / "special" / "torch").mkdir(parents=True)
    (site / "special" / "torch" / "index.html").write_text("")
    (site / "special" / "tinypart").mkdir()
    name = "tinypart-1.0+cpu-py3-none-any.whl"
    (site / "special" / "tinypart" / "index.html").write_text(f'<a href="{name.replace("+", "%2B")}">{name}</a>')
    monkeypatch.setenv("PATINA_TORCH_INDEX", f"{address}/special")
    build = environment.EnvironmentBuild(tmp_path / "env", (Path(sys.executable),), recipe)
    states, _ = finish(build)
    assert build.error == "", build.last_log_lines()
    assert [fraction for fraction, _ in states] == sorted(fraction for fraction, _ in states)  # though it began twice
    log = build.log.read_text()
    assert "tinypart-1.0+cpu" in log.replace("%2B", "+") and log.rstrip().endswith("1.0")


def test_an_index_that_does_not_answer_is_left_out(tmp_path, index, recipe, monkeypatch):
    monkeypatch.setenv("PATINA_TORCH_INDEX", "http://127.0.0.1:9/whl")
    build = environment.EnvironmentBuild(tmp_path / "env", (Path(sys.executable),), recipe)
    finish(build)
    assert build.error == "" and "Looking in indexes: http://127.0.0.1:9" not in build.log.read_text()


def test_cancel_ends_the_children_and_leaves_no_environment(tmp_path, index, recipe):
    (tmp_path / "requirements.txt").write_text("tinypart==1.0\n")
    folder = tmp_path / "env"
    build = environment.EnvironmentBuild(folder, (Path(sys.executable),), recipe)
    deadline = time.monotonic() + 30
    while build.tick()[1] != "Updating pip":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    build.tick()
    child = build._child
    assert child.poll() is None
    began = time.monotonic()
    build.cancel()
    assert time.monotonic() - began < 1.0 and child.poll() is not None
    assert build.finished and "cancelled" in build.error and not environment.environment_ready(folder, recipe)
    assert build.tick()[0] < 1.0
    again = environment.EnvironmentBuild(folder, (Path(sys.executable),), recipe)
    again.tick()  # the lock was given back
    assert not again.finished
    again.cancel()


def test_two_builds_of_one_folder_exclude_each_other(tmp_path, recipe):
    lock = protocol.take_lock(tmp_path / "env.lock", "another Blender")
    build = environment.EnvironmentBuild(tmp_path / "env", (Path(sys.executable),), recipe)
    finish(build)
    assert "Another Blender is installing" in build.error
    (tmp_path / "env").mkdir()
    with pytest.raises(environment.EnvironmentFailed, match="Another Blender is installing"):
        tasks.Removal(tmp_path / "env", 0.01, tmp_path / "worker")
    assert (tmp_path / "env").exists()
    protocol.release_lock(lock)


def test_an_environment_that_another_blender_uses_is_left_alone(tmp_path, recipe):
    folder, workers = tmp_path / "env", tmp_path / "worker"
    alive = {pid: workers / f"{pid}-1" / "alive" for pid in (1, os.getpid())}
    for file in alive.values():
        file.parent.mkdir(parents=True)
        file.touch()
    begun = environment.EnvironmentBuild(folder, (Path(sys.executable),), recipe, workers=workers)
    begun.tick()
    assert not begun.finished, "there is no environment yet that it could use"
    begun.cancel()
    folder.mkdir()
    build = environment.EnvironmentBuild(folder, (Path(sys.executable),), recipe, workers=workers)
    finish(build)
    assert "Another Blender is using" in build.error
    with pytest.raises(environment.EnvironmentFailed, match="Another Blender is using"):
        tasks.Removal(folder, 0.01, workers)
    assert folder.exists()
    os.utime(alive[1], (time.time() - 2 * worker.STUCK_AFTER_S,) * 2)  # ended; our own does not count
    again = environment.EnvironmentBuild(folder, (Path(sys.executable),), recipe, workers=workers)
    again.tick()
    assert not again.finished
    again.cancel()
    tasks.Removal(folder, 0.01, workers)
    assert not folder.exists()


@POSIX
def test_pythons_that_cannot_be_used_are_named(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(environment, "PROBE_LIMIT_S", 0.3)
    hanging = tmp_path / "python-hangs"
    hanging.write_text("#!/bin/sh\nsleep 600\n")
    hanging.chmod(0o755)
    build = environment.EnvironmentBuild(tmp_path / "env", (hanging, tmp_path / "missing"), recipe)
    finish(build, 10)
    assert build.error.startswith("No Python 3.") and "-venv" in build.error
    build = environment.EnvironmentBuild(tmp_path / "env", (hanging,), recipe)
    finish(build, 10)
    assert str(hanging) in build.error and "Choose another one" in build.error


def test_a_python_of_the_wrong_version_is_refused(tmp_path, recipe):
    wrong = environment.Recipe(recipe.requirements, recipe.constraints, ("2.7",))
    build = environment.EnvironmentBuild(tmp_path / "env", (Path(sys.executable),), wrong)
    finish(build)
    assert "is not a Python 2.7" in build.error and not (tmp_path / "env").exists()


def test_what_does_not_work_after_the_installation_is_told(tmp_path, index, recipe):
    broken = environment.Recipe(recipe.requirements, recipe.constraints, recipe.versions, 1, "import tinypart_missing")
    build = environment.EnvironmentBuild(tmp_path / "env", (Path(sys.executable),), broken)
    finish(build)
    assert "does not work here" in build.error and "tinypart_missing" in build.error


def test_a_full_disk_is_told_before_anything_is_made(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    build = environment.EnvironmentBuild(tmp_path / "env", (Path(sys.executable),), recipe)
    finish(build)
    assert "GB left" in build.error and not (tmp_path / "env").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path, recipe):
    (tmp_path / "file").touch()
    build = environment.EnvironmentBuild(tmp_path / "file" / "env", (Path(sys.executable),), recipe)
    finish(build)
    assert "could not be installed" in build.error and "file" in build.error


def test_patina_python_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATINA_PYTHON", sys.executable)
    assert environment.environment_ready(tmp_path / "nowhere")
    assert environment.environment_python(tmp_path / "nowhere") == Path(sys.executable)
    monkeypatch.setenv("PATINA_PYTHON", str(tmp_path / "nowhere"))
    assert not environment.environment_ready(tmp_path)


def test_the_shipped_pins_can_be_read():
    assert len(environment.Recipe().fingerprint()) == 64


@POSIX
def test_candidates_come_in_order(tmp_path, monkeypatch):
    for name in ("a/python3.12", "b/python3.11", "b/python3", "blender/python3.13", "mine/python"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join(str(tmp_path / name) for name in "ab"))
    found = environment.python_candidates(None, tmp_path / "blender/python3.13")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "b/python3.11", "a/python3.12", "b/python3", "blender/python3.13",
    ]  # fmt: skip
    assert environment.python_candidates(tmp_path / "mine/python", None) == [tmp_path / "mine/python"]


@pytest.mark.parametrize(
    ("variables", "nvidia", "expected"),
    [
        ({}, False, environment.TORCH_CPU_INDEX if sys.platform == "linux" else None),
        ({}, True, environment.TORCH_CUDA_INDEX if os.name == "nt" else None),
        ({"PIP_INDEX_URL": "https://mirror.example/simple"}, False, None),
        ({"PATINA_TORCH_INDEX": "https://mirror.example/cpu/"}, True, "https://mirror.example/cpu"),
        ({"PATINA_TORCH_INDEX": ""}, False, None),
    ],
)
def test_which_torch_is_asked_for(monkeypatch, variables, nvidia, expected):
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PATINA_TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "has_nvidia", lambda: nvidia)
    assert environment.torch_index() == expected


def test_pip_progress_is_read(tmp_path):
    output = PipOutput(tmp_path, expected_mb=200)
    states = [output.state()]
    for line in (
        "Collecting torch==2.13.0",
        "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (29 kB)",
        "  Downloading https://files.example/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (180.0 MB)",
        "Progress 90000000 of 180000000",
    ):
        output.read(line)
        states.append(output.state())
    assert states[-1][1] == "Downloading torch (90 of 180 MB)"
    assert 0.35 < states[-1][0] < 0.45
    output.read("Installing collected packages: a, b, c, d")
    for name in "ab":
        (tmp_path / "lib" / "python3.11" / "site-packages" / f"{name}.dist-info").mkdir(parents=True)
    states.append(output.state())
    assert states[-1][1] == "Unpacking package 3 of 4"
    assert [fraction for fraction, _ in states] == sorted(fraction for fraction, _ in states)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying: NewConnectionError: Temporary failure in name resolution", "cannot be reached"),
        ("  SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "certificate"),
        ("ERROR: No matching distribution found for xatlas==0.0.11", "no fitting xatlas==0.0.11"),
        ("ERROR: Something new", "Something new"),
        ("", "without saying why"),
    ],
)
def test_pip_failures_are_said_in_a_sentence(tmp_path, line, words):
    output = PipOutput(tmp_path, 1)
    output.read(line)
    assert words in output.sentence() and output.sentence().endswith(".")


@POSIX
def test_pip_ends_when_its_host_is_killed(tmp_path):
    """pip waits for a package index that never answers; the process that started it is killed."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        index = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        host = subprocess.Popen(
            [sys.executable, "-c", KILLED_HOST, sys.executable, environment.PIP, index],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "127.0.0.1"},
        )
        pip = int(host.stdout.readline())
        deaf.settimeout(30)
        deaf.accept()
        host.kill()
        host.wait()
        host.stdout.close()
        deadline = time.monotonic() + 5
        while _is_running(pip):
            assert time.monotonic() < deadline
            time.sleep(0.05)


KILLED_HOST = """
import subprocess, sys, time
python, code, index = sys.argv[1:]
command = [python, "-I", "-c", code, "download", "--no-deps", "--index-url", index, "tinypart"]
child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return b"Z" not in Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_progress_never_goes_back(tmp_path, recipe):
    build = environment.EnvironmentBuild(tmp_path / "env", (), recipe)
    build._work = iter([(0.5, "with PyTorch's own index"), (0.2, "again without it"), (0.6, "further")])
    assert [build.tick()[0] for _ in range(4)] == [0.5, 0.5, 0.6, 1.0]


def test_an_environment_is_deleted_a_little_at_a_time(tmp_path):
    home, outside = tmp_path / "backend-env", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    inner = home / "lib" / "site-packages"
    inner.mkdir(parents=True)
    for number in range(3000):
        (inner / str(number)).touch()
    (home / "lib64").symlink_to("lib")
    (home / "elsewhere").symlink_to(outside)
    left = tasks.removed(home) / "1"  # of a Blender that was killed
    left.mkdir(parents=True)
    (left / "file").touch()
    task, longest = tasks.Removal(home, 0.01, tmp_path / "worker"), 0.0
    assert not home.exists(), "a new one may be made at once"
    home.mkdir()
    for _ in range(1000):
        began = time.monotonic()
        task.tick()
        longest = max(longest, time.monotonic() - began)
        if task.finished:
            break
    assert task.finished and not task.error and not tasks.removed(home).exists()
    assert home.exists() and (outside / "kept").exists() and longest < 0.5

    (home / "file").touch()
    task = tasks.Removal(home, 0.01, tmp_path / "worker")
    task.cancel()
    assert task.error == "Cancelled." and tasks.removed(home).exists()
