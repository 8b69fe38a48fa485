#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything a person does with this repository, with nothing but Python: demo, test, package, evaluate, backend.

    python build.py demo --prompt "polished gold" --mesh cup.obj --out pictures
    python build.py test [--slow] [--all-blenders] [-- pytest options]
    python build.py package
    python build.py evaluate NAME --json FILE
    python build.py backend -- texture cup.obj --prompt "rusty iron" --out maps

Standard library only. Each command makes what it needs first (`.venv`, once). bpy, Blender as a module, exists for
Python 3.11 and 3.13 alone; another Python may start this file as long as one of these two can be found.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"
TEST_PROCESSES = 2
BPY_VERSIONS = ("3.11", "3.13")
BPY_MB = 400  # what bpy and the tools weigh as a download
MORE_BPY = {"4.2": "4.2.23", "5.0": "5.0.1"}  # for test --all-blenders, on Python 3.11
SYSTEM_LIBRARIES = "libx11-6 libxrender1 libxfixes3 libxi6 libxkbcommon0 libsm6 libice6 libgl1 libegl1"
NOT_PACKAGED = ("backend/prior/training", "backend/evaluate", "backend/diffusion/drawn.py")  # only developers run it
PACKAGED_SUFFIXES = (".py", ".json", ".safetensors", ".toml", ".txt", ".tsv", ".md")
ROOT_MODULE = '''# SPDX-License-Identifier: GPL-3.0-or-later
"""Patina as an installed extension; made by build.py package."""

from .addon import register, unregister

__all__ = ("register", "unregister")
'''


class BuildError(Exception):
    """The command cannot be carried out; the text is one sentence with what to do."""


def main() -> int:
    """Carry out one command; its exit code."""
    parser = argparse.ArgumentParser("python build.py", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("demo", demo, "texture a mesh along the add-on's own route (demo --help: its options)"),
        ("test", test, "ruff and the tests"),
        ("package", package, "make dist/patina-VERSION.zip for Blender's Install from Disk"),
        ("evaluate", evaluate, "measure: evaluate NAME --json FILE"),
        ("backend", backend, "run python -m backend in the managed environment: backend -- ARGS"),
    ):
        own_options = name in ("test", "package")
        command = commands.add_parser(name, help=text, add_help=own_options)
        command.set_defaults(function=function)
        if name == "package":
            command.add_argument("--repository", type=Path, metavar="DIR", help="write a repository there too")
        if name == "test":
            command.add_argument("--slow", action="store_true", help="the tests marked slow too")
            command.add_argument("--all-blenders", action="store_true", help="bpy 4.2, 5.0 and the real programs too")
    sys.path.insert(0, str(ROOT))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the children too, as Ctrl-C does
    options, rest = parser.parse_known_args()
    try:
        return options.function(options, rest[1:] if rest[:1] == ["--"] else rest)
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("build.py: interrupted", file=sys.stderr)
        return 130


# --- commands ---------------------------------------------------------------------------------


def demo(options: argparse.Namespace, rest: list[str]) -> int:
    """Texture a mesh by bpy, job folder and backend process, in background mode."""
    python = development_python()
    return run_module(python, "addon.demo", rest)


def backend(options: argparse.Namespace, rest: list[str]) -> int:
    """python -m backend in the managed environment, in the caller's folder."""
    return run_module(development_python(), "backend", rest)


def evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    """One of the evaluations of backend/evaluate/."""
    return run_module(development_python(), "backend", ["evaluate", *rest])


def test(options: argparse.Namespace, rest: list[str]) -> int:
    """ruff, then pytest with the default bpy; optionally with other Blenders. 0 when all passed."""
    python = development_python()
    say("ruff check")
    code = subprocess.run([python, "-m", "ruff", "check", "."], cwd=ROOT).returncode
    marks = ["-m", ""] if options.slow else []
    pytest = ["-m", "pytest", "-q", *marks]
    # Files side by side, each process with one thread; what has a limit of time gets more of it.
    together = ["-n", str(TEST_PROCESSES), "--dist", "loadfile"]
    shared = {"OMP_NUM_THREADS": "1", "PATINA_PATIENCE": str(TEST_PROCESSES), **child_environment(python)}
    say("pytest")
    code = subprocess.run([python, *pytest, *together, *rest], cwd=ROOT, env=shared).returncode or code
    if not options.all_blenders:
        return code
    for short, version in MORE_BPY.items():
        other = bpy_python(short, version)
        say(f"pytest with bpy {version}")
        command = [other, *pytest, *together, *rest, "tests/addon", "tests/blender"]
        code = subprocess.run(command, cwd=ROOT, env=shared).returncode or code
    for blender in real_blenders():
        say(f"pytest with {blender}")
        environment = {**child_environment(python), "BLENDER": blender}
        which = ["-m", "real" if options.slow else "real and not slow"]
        command = [python, *pytest, *rest, *which, "tests/blender"]
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode or code
    return code


def package(options: argparse.Namespace, rest: list[str]) -> int:
    """Stage what the extension holds and build dist/patina-VERSION.zip, by Blender's own tool where there is one."""
    if rest:
        raise BuildError(f"package takes no options, not {' '.join(rest)}.")
    manifest = (ROOT / "blender_manifest.toml").read_text("utf-8")
    name, version = (re.search(rf'^{key} = "([^"]+)"', manifest, re.M)[1] for key in ("id", "version"))
    target = ROOT / "dist" / f"{name}-{version}.zip"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="patina-package-") as scratch:
        stage, built = Path(scratch, name), Path(scratch, target.name)
        stage_package(stage)
        tool = extension_tool()
        if tool is None:
            say("neither bpy nor a Blender is here: the zip is written, but Blender did not validate it")
            write_zip(stage, built)
        else:
            run_or_fail([*tool, "build", "--source-dir", str(stage), "--output-filepath", str(built)])
            run_or_fail([*tool, "validate", str(built)])
        shutil.move(built, target)
    print(f"{target.relative_to(ROOT)}  {target.stat().st_size / 1e6:.1f} MB")
    if options.repository is not None:
        write_repository(options.repository, target, tool)
    return 0


def write_repository(folder: Path, package_file: Path, tool: list[str] | None) -> None:
    """A static extension repository: index.json and a page, by Blender's tool, beside the zips of all versions.

    The index holds this version alone: of two, Blender shows the one and installs the other.
    """
    if tool is None:
        raise BuildError("A repository's index is written by Blender's own tool: install Blender, or set $BLENDER.")
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{package_file.name}.part"
    shutil.copyfile(package_file, beside)
    os.replace(beside, folder / package_file.name)
    versions = package_file.name.partition("-")[0] + "-*.zip"
    with tempfile.TemporaryDirectory(prefix=".index-", dir=folder) as scratch:
        for path in folder.glob("*.zip"):
            if path.name == package_file.name or not path.match(versions):
                shutil.copyfile(path, Path(scratch, path.name))
        run_or_fail([*tool, "server-generate", "--repo-dir", scratch, "--html"])
        for name in ("index.html", "index.json"):
            os.replace(Path(scratch, name), folder / name)
    address = (folder.absolute() / "index.json").as_uri()
    print(f"{folder}  serve it as it is; in Blender: Get Extensions > Repositories > + > Add Remote, {address}")


# --- environments -----------------------------------------------------------------------------


def development_python() -> str:
    """The interpreter of .venv, which is made first if it is missing or its pins have changed."""
    return make_environment(VENV, development_recipe())


def development_recipe():
    """What .venv holds: the backend's packages, bpy and the tools."""
    from addon import environment

    recipe = environment.Recipe()
    return dataclasses.replace(
        recipe,
        requirements=(*recipe.requirements, TEST_REQUIREMENTS),
        versions=BPY_VERSIONS,
        download_mb=recipe.download_mb + BPY_MB,
    )


def bpy_python(short: str, version: str) -> str:
    """The interpreter of a smaller environment with another bpy, without torch."""
    from addon import environment

    folder = ROOT / ".venvs" / f"bpy-{short}"
    folder.parent.mkdir(exist_ok=True)
    pins = re.sub(r"^bpy==.*\n", "", TEST_REQUIREMENTS.read_text("utf-8"), flags=re.M)
    requirements = folder.with_suffix(".txt")
    requirements.write_text(f"{pins}bpy=={version}\nnumpy==1.26.4\npillow==13.0.0\ntrimesh==5.2.0\n", "utf-8")
    recipe = environment.Recipe(
        requirements=(requirements,), versions=("3.11",), check="import numpy", download_mb=BPY_MB
    )
    return make_environment(folder, recipe)


def make_environment(folder: Path, recipe) -> str:
    """Build the environment unless it is ready, with a progress line; its interpreter."""
    from addon import environment

    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not environment.is_built(folder, recipe):
        say(f"setting up {folder.relative_to(ROOT)} (once; the log is {folder.name}.log)")
        started = time.monotonic()
        own = Path(getattr(sys, "_base_executable", sys.executable))  # inside a virtual environment: what it is made of
        pythons = (own, *environment.python_candidates())
        watch_build(environment.EnvironmentBuild(folder, pythons, recipe))
        say(f"{folder.relative_to(ROOT)} is ready after {time.monotonic() - started:.0f} s")
    works = folder / "patina-bpy-works"
    if not works.exists():
        check_bpy(str(python))
        works.touch()
    return str(python)


def watch_build(build) -> None:
    """Drive an EnvironmentBuild to its end and show how far it is."""
    shown, last = "", 0.0
    try:
        while not build.finished:
            fraction, text = build.tick()
            line = f"  {fraction:4.0%}  {text}"
            if sys.stderr.isatty():
                print("\r" + line[:100].ljust(100), end="", file=sys.stderr, flush=True)
            elif text != shown and time.monotonic() - last > 5.0:
                print(line, file=sys.stderr, flush=True)
                shown, last = text, time.monotonic()
            time.sleep(0.1)
    finally:
        build.cancel()
        if sys.stderr.isatty():
            print(file=sys.stderr)
    if build.error:
        raise BuildError(build.error)


def check_bpy(python: str) -> None:
    """Can bpy be imported? It needs libraries of the system that a bare machine lacks; CI may install them itself."""
    command = ["apt-get", "install", "-y", "--no-install-recommends", *SYSTEM_LIBRARIES.split()]
    can_install = "CI" in os.environ and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get")
    for attempt in range(2):
        done = subprocess.run([python, "-I", "-c", "import bpy"], capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            return
        missing = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", done.stderr)
        if missing and can_install and attempt == 0:
            say(f"{missing[1]} is missing: {' '.join(command)}")
            subprocess.run(["apt-get", "update", "-qq"], stdout=subprocess.DEVNULL)
            subprocess.run(command, stdout=subprocess.DEVNULL, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        elif missing:
            raise BuildError(f"Blender's module needs {missing[1]} of the system. Type: sudo {' '.join(command)}")
        else:
            raise BuildError(f"Blender's module cannot be imported: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    raise BuildError("Blender's module cannot be imported, although its system libraries were installed.")


def child_environment(python: str) -> dict[str, str]:
    """Environment for what runs here: the backend is .venv's, and OpenMP threads do not spin."""
    return {"PATINA_PYTHON": python, "OMP_WAIT_POLICY": "passive", **os.environ}


def run_module(python: str, module: str, arguments: list[str]) -> int:
    """Run a module of this repository with `python`, in the caller's folder; its exit code."""
    from addon import worker

    bootstrap = worker.BOOTSTRAP.replace("'backend'", repr(module))
    command = [python, "-I", "-X", "utf8", "-c", bootstrap, str(ROOT), *arguments]
    return subprocess.run(command, env=child_environment(python)).returncode


# --- Blenders and the package -----------------------------------------------------------------


def real_blenders() -> list[str]:
    """The Blender programs of this machine: $BLENDER, then blender and blender-VERSION on PATH."""
    found = [os.environ["BLENDER"]] if os.environ.get("BLENDER") else []
    for folder in map(Path, os.get_exec_path()):
        programs = sorted(folder.glob("blender*"))
        found += [str(path) for path in programs if re.fullmatch(r"blender(-[\d.]+)?(\.exe)?", path.name)]
    return list(dict.fromkeys(found))


def extension_tool() -> list[str] | None:
    """The command line of Blender's extension builder: the one inside bpy, or a Blender's own; None without either."""
    pattern = "Lib/site-packages" if os.name == "nt" else "lib/python3*/site-packages"
    for cli in sorted(VENV.glob(f"{pattern}/bpy/*/scripts/addons_core/bl_pkg/cli/blender_ext.py")):
        python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        return [str(python), str(cli)]
    for blender in real_blenders():
        return [blender, "--command", "extension"]
    return None


def stage_package(stage: Path) -> None:
    """Copy into `stage` what the extension consists of: known kinds of files, without training and evaluation."""
    stage.mkdir(parents=True)
    for name in ("addon", "backend"):
        for path in sorted((ROOT / name).rglob("*")):
            relative = path.relative_to(ROOT)
            if path.is_dir() or any(relative.is_relative_to(folder) for folder in NOT_PACKAGED):
                continue
            if "__pycache__" in relative.parts or path.name.startswith("."):
                continue
            if path.suffix not in PACKAGED_SUFFIXES and path.name != "LICENSE":
                continue
            (stage / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, stage / relative)
    for name in ("LICENSE", "README.md", "blender_manifest.toml"):
        if (ROOT / name).exists():
            shutil.copyfile(ROOT / name, stage / name)
    (stage / "__init__.py").write_text(ROOT_MODULE, "utf-8")


def write_zip(stage: Path, target: Path) -> None:
    """Zip the staged files as Blender's own tool does: paths relative to the manifest."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in stage.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(stage))


def run_or_fail(command: list[str]) -> None:
    """Run a command; BuildError with what it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command[:3])} failed: {(done.stdout + done.stderr).strip()}")


def say(text: str) -> None:
    """One line about what is being done."""
    print(f"== {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 -- an older Python may start this file
        newer = shutil.which("python3.11") or shutil.which("python3.13")
        if newer is None:
            sys.exit("build.py: Patina needs Python 3.11 or 3.13. Type: sudo apt-get install python3.11-venv")
        sys.exit(subprocess.call([newer, *sys.argv]))
    sys.exit(main())
