# SPDX-License-Identifier: GPL-3.0-or-later
"""`evaluate prior`: which rows are made, and made again."""

import json

import pytest

from backend.evaluate import prior


@pytest.fixture
def quick(monkeypatch):
    """Prompts of the pairs that are textured; without a run, and every map is judged alike."""
    made = []
    monkeypatch.setattr(prior, "texture", lambda folder, kind, prompt, *rest: made.append(prompt))
    row = {"ciede2000": 1.0, "metallic_error": 0.1, "roughness_error": 0.2, "kind": "metal", "unidentifiable": False}
    monkeypatch.setattr(prior, "judge", lambda job, prompt: dict(row))
    return made


def test_what_is_there_is_not_made_twice_but_with_other_weights(quick, tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    both = ["--json", str(file), "--prompts", "polished gold,chrome"]
    assert prior.main(["--json", str(file), "--prompts", "chrome"]) == 0 == prior.main(both)
    assert quick == ["chrome", "polished gold"]
    before = json.loads(file.read_text())
    assert before["summary"]["pairs"] == 2 and len({row["weights"] for row in before["rows"]}) == 1
    monkeypatch.setattr(prior.built_in, "checksum", lambda: "others")
    assert prior.main(["--json", str(file), "--prompts", "chrome"]) == 0 and quick[2:] == ["chrome"]
    rows = json.loads(file.read_text())["rows"]
    assert [(row["prompt"], row["weights"]) for row in rows] == [
        ("chrome", "others"), ("polished gold", before["rows"][1]["weights"])
    ]  # fmt: skip
