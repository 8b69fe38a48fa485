# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's "One line per file", written from the first lines of the files' docstrings.

    .venv/bin/python docs/files.py
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "## One line per file\n", "## Where a change goes\n"
TRAINING = "prior/training/"
# What a docstring cannot say for a folder.
TRAINING_LINE = "Makes the prior: `shapes`, `prompts`, `fit_field`, `pictures`, `train`. Not in the package."


def table(folder: str, title: str) -> list[str]:
    lines = [f"| {title} | |", "|---|---|"]
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT / folder).as_posix()
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        if docstring and not name.startswith(TRAINING):
            lines.append(f"| `{name}` | {_first_sentence(docstring)} |")
    if folder == "backend":
        lines.append(f"| `{TRAINING}` | {TRAINING_LINE} |")
    return lines


def _first_sentence(docstring: str) -> str:
    """The first line; a bar would end the table's cell, indented calls are no part of it."""
    return docstring.strip().splitlines()[0].replace(" |", ",").rstrip(":")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    before, after = text.split(START)[0], text.split(END, 1)[1]
    addon = table("addon", "addon/ (GPL, inside Blender)")
    backend = table("backend", "backend/ (Apache-2.0, own process)")
    readme.write_text(before + START + "\n".join([*addon, "", *backend]) + "\n\n" + END + after, "utf-8")
