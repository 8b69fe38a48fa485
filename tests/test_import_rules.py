# SPDX-License-Identifier: GPL-3.0-or-later
"""The import rules of DESIGN 3.2, read from the source: who may know whom."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ADDON = sorted((ROOT / "addon").rglob("*.py"))
BACKEND = sorted((ROOT / "backend").rglob("*.py"))
ADDON_NEVER = {"torch", "backend", "diffusers", "xatlas", "trimesh", "PIL", "safetensors", "scipy"}
ADDON_ALLOWED_ROOTS = {"bpy", "bpy_extras", "mathutils", "bmesh", "gpu", "blf", "numpy", "addon_utils"}
DIFFUSERS_ROOMS = ("backend/diffusion/", "backend/prior/")  # the prior is made of diffusers classes


def imports_of(path: Path) -> list[tuple[str, int, bool]]:
    """(root module or relative path, level, at the top of the module or not) of each import in a file."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    at_top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], 0, id(node) in at_top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(((node.module or "").partition(".")[0], node.level, id(node) in at_top))
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_rules_see_the_files():
    assert {"addon/protocol.py", "addon/worker.py"} <= {name(path) for path in ADDON}
    assert {"backend/job.py", "backend/__main__.py"} <= {name(path) for path in BACKEND}


@pytest.mark.parametrize("path", ADDON, ids=name)
def test_addon_imports(path):
    for root, level, at_top in imports_of(path):
        if level:
            assert level == 1, f"{name(path)}: an add-on's rooms are side by side"
            continue
        assert root not in ADDON_NEVER, f"{name(path)} imports {root}"
        assert root != "addon", f"{name(path)} must import relatively: the installed add-on has another name"
        assert root in sys.stdlib_module_names | ADDON_ALLOWED_ROOTS, f"{name(path)} imports {root}"
        if path.name in ("__init__.py", "protocol.py", "worker.py", "environment.py", "pip_output.py"):
            assert root != "bpy" or (path.name == "__init__.py" and not at_top), f"{name(path)} must do without bpy"


def test_the_protocol_needs_the_standard_library_alone():
    for root, level, _ in imports_of(ROOT / "addon" / "protocol.py"):
        assert level == 0 and root in sys.stdlib_module_names


@pytest.mark.parametrize("path", BACKEND, ids=name)
def test_backend_imports(path):
    for root, level, _ in imports_of(path):
        assert level or root not in ("bpy", "bmesh", "mathutils"), f"{name(path)} imports {root}"
        if root == "diffusers" and not level:
            assert name(path).startswith(DIFFUSERS_ROOMS), f"{name(path)} imports diffusers"
        if root == "xatlas" and not level:
            assert name(path) == "backend/uv.py", f"{name(path)} imports xatlas"
        assert level or root != "backend", f"{name(path)} must import relatively"


@pytest.mark.parametrize("path", BACKEND, ids=name)
def test_of_the_addon_the_backend_knows_the_protocol_alone(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("addon"):
            imported = {node.module} if node.module != "addon" else {f"addon.{alias.name}" for alias in node.names}
            assert imported == {"addon.protocol"}, f"{name(path)} imports {imported}"


@pytest.mark.parametrize("name_", ["__main__", "job", "serve", "terminal"])
def test_the_process_side_starts_without_anything_heavy(name_):
    for root, level, at_top in imports_of(ROOT / "backend" / f"{name_}.py"):
        assert not (at_top and not level and root in {"torch", "numpy", "diffusers", "trimesh"})


@pytest.mark.parametrize("path", [*ADDON, *BACKEND], ids=name)
def test_nothing_is_unpickled(path):
    for root, level, _ in imports_of(path):
        assert level or root not in ("pickle", "dill", "joblib", "shelve"), f"{name(path)} imports {root}"
    source = path.read_text("utf-8")
    assert "allow_pickle=True" not in source and "weights_only=False" not in source


def test_no_property_brings_a_search_function_into_blender_4_2():
    """There it ends Blender with a crash, so that the one in settings.py is asked for by its version."""
    for path in ADDON:
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        given = [node.lineno for node in calls for option in node.keywords if option.arg == "search"]
        assert given == [], f"{name(path)}, line {given[0]}: use **settings._SUGGESTED"


@pytest.mark.parametrize("path", [p for p in [*ADDON, *BACKEND] if p.stat().st_size], ids=name)
def test_every_file_says_its_licence(path):
    first = path.read_text("utf-8").splitlines()[0]
    apache = name(path).startswith("backend/") or name(path) == "addon/protocol.py"
    assert first == f"# SPDX-License-Identifier: {'Apache-2.0' if apache else 'GPL-3.0-or-later'}"


def test_the_backend_imports_only_what_is_installed_for_it():
    pins = (ROOT / "backend" / "requirements.txt").read_text("utf-8").splitlines()
    installed = {line.partition("==")[0].replace("pillow", "PIL") for line in pins if "==" in line}
    shipped = [path for path in BACKEND if not name(path).startswith("backend/evaluate/")]
    found = [(root, at_top) for path in shipped for root, level, at_top in imports_of(path) if not level]
    used_where_installed = {"embreex", "nvdiffrast"}
    assert not used_where_installed & {root for root, at_top in found if at_top}
    imported = {root for root, _ in found} - used_where_installed
    assert imported - sys.stdlib_module_names - {"addon"} == installed
