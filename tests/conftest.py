# SPDX-License-Identifier: GPL-3.0-or-later
"""What every test gets: the repository root on the path, and a package root with a backend of the test's making."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture
def repo_root() -> Path:
    return ROOT


@pytest.fixture
def package_root(tmp_path):
    """Make a package root: the real protocol, the real process side of the backend, and a `texturing.py` of the test's.

    Call it with the source of texturing.py (`run(request, job, shelf, stop_asked)`); it returns the folder to
    start a worker from.
    """

    def make(texturing_source: str) -> Path:
        root = tmp_path / "package"
        (root / "addon").mkdir(parents=True)
        (root / "backend").mkdir()
        (root / "addon" / "__init__.py").touch()
        shutil.copy(ROOT / "addon" / "protocol.py", root / "addon")
        for name in ("__init__", "__main__", "job", "serve", "terminal"):
            shutil.copy(ROOT / "backend" / f"{name}.py", root / "backend")
        (root / "backend" / "models.py").write_text(
            "class ModelError(Exception): pass\n"
            "class ModelShelf:\n"
            "    def release(self): print('shelf released', flush=True)\n"
        )
        (root / "backend" / "texturing.py").write_text(texturing_source)
        return root

    return make
