# SPDX-License-Identifier: GPL-3.0-or-later
"""Every word the panel shows has its translations, and every button and setting says what it does."""

import ast
import re
from pathlib import Path

ADDON = Path(__file__).resolve().parents[2] / "addon"
LANGUAGES = 3
ITEM_TABLES = ("_DEVICES", "_QUALITY_ITEMS", "_GUIDANCE_ITEMS")
DRAWN = ("label", "operator", "prop", "prop_search", "menu")


def table():
    files = (ADDON / name for name in ("words.tsv", "tooltips.tsv"))
    return [line.split("\t") for file in files for line in file.read_text("utf-8").splitlines()]


def trees():
    return {path.name: ast.parse(path.read_text("utf-8")) for path in sorted(ADDON.glob("*.py"))}


def called(node):
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def text_of(node):
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def shown_words():
    """Labels, names, items, words drawn and reasons of grey buttons, read from the source."""
    words = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("bl_label", "title"):
                words.add(text_of(node.value))
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ITEM_TABLES:
                words |= {text_of(item.elts[1]) for item in node.value.elts}
            if not isinstance(node, ast.Call):
                continue
            options = {option.arg: option.value for option in node.keywords}
            if called(node) in ("_", "poll_message_set") and node.args:
                words.add(text_of(node.args[0]))
            if called(node).endswith("Property"):
                words.add(text_of(options.get("name")))
                if isinstance(options.get("items"), ast.Tuple):
                    words |= {text_of(item.elts[1]) for item in options["items"].elts}
            if called(node) in DRAWN and "translate" not in options:
                words.add(text_of(options.get("text")))
    return words - {None, ""}


def test_no_word_lacks_its_translations():
    rows = table()
    assert all(len(row) == 1 + LANGUAGES and all(cell.strip() for cell in row) for row in rows)
    keys = [row[0] for row in rows]
    assert len(keys) == len(set(keys))
    assert len(shown_words()) > 100 and shown_words() - set(keys) == set()


def tooltips_of_buttons():
    """What Blender shows of an operator: its docstring."""
    nodes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {ast.get_docstring(node) for node in nodes if "_OT_" in node.name}


def test_no_tooltip_of_a_button_lacks_its_translations():
    assert len(tooltips_of_buttons()) > 25 and tooltips_of_buttons() - {row[0] for row in table()} == set()


def test_translations_keep_what_is_put_into_them():
    for english, *others in table():
        for other in others:
            assert set(re.findall(r"\{\w+\}", other)) == set(re.findall(r"\{\w+\}", english)), english


def test_every_button_and_setting_says_what_it_does():
    silent = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and "_OT_" in node.name and not ast.get_docstring(node):
                silent.append(node.name)
            if isinstance(node, ast.Call) and called(node).endswith("Property") and called(node) != "Property":
                options = {option.arg for option in node.keywords}
                if "name" in options and "description" not in options:
                    silent.append(f"{name}:{node.lineno}")
    assert silent == []
