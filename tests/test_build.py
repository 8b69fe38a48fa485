# SPDX-License-Identifier: GPL-3.0-or-later
"""build.py: the package holds what Blender needs and nothing else, and every refusal says what to type."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

import build
from addon import environment

ROOT = Path(build.__file__).parent
NO_OPTIONS = argparse.Namespace(repository=None)
MANIFEST = tomllib.loads((ROOT / "blender_manifest.toml").read_text("utf-8"))


def call(*arguments, **options):
    command = [sys.executable, str(ROOT / "build.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository of the shape of ours, for packaging what must and must not be taken along."""
    for name in (
        "addon/__init__.py", "addon/protocol.py", "addon/__pycache__/protocol.cpython-311.pyc", "addon/.hidden.py",
        "backend/__init__.py", "backend/LICENSE", "backend/requirements.txt", "backend/prior/unet/model.safetensors",
        "backend/prior/words.json", "backend/prior/training/train.py", "backend/prior/training/log.txt",
        "backend/notes.blend", "backend/model.ckpt", "tests/test_x.py", "README.md", "LICENSE",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# here\n")
    (tmp_path / "blender_manifest.toml").write_bytes((ROOT / "blender_manifest.toml").read_bytes())
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(build, "real_blenders", lambda: [])
    return tmp_path


def test_the_package_holds_what_blender_needs_and_nothing_else(repository):
    assert build.package(NO_OPTIONS, []) == 0
    with zipfile.ZipFile(repository / "dist" / f"patina-{MANIFEST['version']}.zip") as archive:
        assert sorted(archive.namelist()) == [
            "LICENSE", "README.md", "__init__.py", "addon/__init__.py", "addon/protocol.py", "backend/LICENSE",
            "backend/__init__.py", "backend/prior/unet/model.safetensors", "backend/prior/words.json",
            "backend/requirements.txt", "blender_manifest.toml",
        ]  # fmt: skip
        assert "from .addon import register, unregister" in archive.read("__init__.py").decode()


def test_package_refuses_options_it_does_not_have():
    done = call("package", "--quick")
    assert done.returncode != 0 and "--quick" in done.stderr and "Traceback" not in done.stderr


def test_the_real_package_is_built_and_validated_by_blenders_own_tool(tmp_path, monkeypatch):
    if build.extension_tool() is None:
        pytest.skip("no bpy in .venv and no Blender on PATH")
    assert call("package", "--repository", tmp_path / "site").returncode == 0
    (tmp_path / "site" / f"patina-{MANIFEST['version']}.zip").rename(tmp_path / "site" / "patina-0.0.1.zip")
    done = call("package", "--repository", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "patina-0.0.1.zip").exists(), "who has an index of yesterday still finds it"
    (listed,) = json.loads((tmp_path / "site" / "index.json").read_text())["data"]
    assert (listed["id"], listed["version"]) == ("patina", MANIFEST["version"])
    assert listed["archive_size"] == (tmp_path / "site" / f"patina-{MANIFEST['version']}.zip").stat().st_size
    archive = ROOT / "dist" / f"patina-{MANIFEST['version']}.zip"
    with zipfile.ZipFile(archive) as package:
        names = package.namelist()
        sizes = {info.filename: info.file_size for info in package.infolist()}
    assert {"__init__.py", "addon/worker.py", "backend/job.py", "backend/requirements.txt"} <= set(names)
    assert not [name for name in names if re.search(r"__pycache__|prior/training|\.pyc$|^tests/", name)]
    assert max(sizes.values()) <= 15 * 2**20 and archive.stat().st_size <= 32 * 2**20
    done = subprocess.run([*build.extension_tool(), "validate", str(archive)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_cannot_be_packaged_is_told_and_leaves_the_old_package(repository, monkeypatch):
    build.package(NO_OPTIONS, [])
    package = repository / "dist" / f"patina-{MANIFEST['version']}.zip"
    before = package.read_bytes()
    complain = [sys.executable, "-c", "import sys; sys.exit('tagline ends with a full stop')"]
    monkeypatch.setattr(build, "extension_tool", lambda: complain)
    with pytest.raises(build.BuildError, match="tagline ends with"):
        build.package(NO_OPTIONS, [])
    assert package.read_bytes() == before


def test_the_version_stands_in_the_manifest_alone():
    assert re.fullmatch(r"\d+\.\d+\.\d+", MANIFEST["version"]) and MANIFEST["id"] == "patina"
    for path in ("pyproject.toml", "build.py"):
        assert f'"{MANIFEST["version"]}"' not in (ROOT / path).read_text("utf-8")


def test_everything_that_is_installed_is_pinned():
    for path in ("backend/requirements.txt", "backend/constraints.txt", "tests/requirements.txt"):
        lines = [line for line in (ROOT / path).read_text("utf-8").splitlines() if line and not line.startswith("#")]
        pin = r"[\w.-]+==\d[\w.]*(; python_version [<>=]+ \"3\.\d+\")?"
        assert lines and [line for line in lines if not re.fullmatch(pin, line)] == []


@pytest.mark.parametrize("arguments", [(), ("dance",)])
def test_a_wrong_command_is_refused(arguments):
    done = call(*arguments)
    assert done.returncode == 2 and "COMMAND" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(
    not environment.is_built(build.VENV, build.development_recipe()),
    reason=".venv is not set up as the pins say",
)
def test_a_second_call_starts_at_once_and_passes_arguments_and_exit_codes_on(tmp_path):
    began = time.monotonic()
    done = call("backend", "--", "run", "some folder", cwd=tmp_path)
    assert time.monotonic() - began < 5.0
    assert done.returncode == 3 and done.stderr == "patina: some folder is no job folder: it holds no request.json.\n"
    assert call("backend", "--", "--help").stdout.startswith("usage: python -m backend")
    assert call("evaluate", "nothing", "--json", "x.json").returncode == 2


def test_a_missing_system_library_is_told_with_the_command(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'ImportError: libX11.so.6: cannot open shared object file: No such file' >&2\nexit 1\n"
    )
    python.chmod(0o755)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(build.BuildError, match=r"libX11\.so\.6.*sudo apt-get install.*libx11-6"):
        build.check_bpy(str(python))


def test_in_ci_a_missing_system_library_is_installed(tmp_path, monkeypatch):
    """apt-get is a script that leaves a mark; python finds the library from then on."""
    for name, text in (
        ("apt-get", f"#!/bin/sh\necho \"$@\" >> {tmp_path}/asked\n"),
        ("python", f"#!/bin/sh\ngrep -q libx11-6 {tmp_path}/asked 2>/dev/null && exit 0\n"
                   "echo 'ImportError: libX11.so.6: cannot open shared object file' >&2\nexit 1\n"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(build.os, "geteuid", lambda: 0)
    build.check_bpy(str(tmp_path / "python"))
    assert "update" in (tmp_path / "asked").read_text()


def test_real_blenders_are_found_by_variable_and_path(tmp_path, monkeypatch):
    for name in ("blender", "blender-5.2", "blender-launcher", "blenderproc"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BLENDER", "/opt/mine/blender")
    assert build.real_blenders() == ["/opt/mine/blender", str(tmp_path / "blender"), str(tmp_path / "blender-5.2")]
