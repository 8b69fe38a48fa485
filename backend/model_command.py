# SPDX-License-Identifier: Apache-2.0
"""The command `python -m backend models list | pull ID | check PATH | remove ID`: what is told of the models."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from addon import protocol

from .diffusion import folder
from .diffusion.interface import ModelError
from .model_fetch import pull
from .model_store import (
    CONTROL_PRESETS,
    PRESETS,
    SECOND_STAGE_PRESETS,
    check,
    facts_or_id,
    fetched,
    find,
    home,
    ids,
    is_partly_here,
    remove,
    size_of,
    use_of,
)


def main(arguments: argparse.Namespace) -> int:
    match arguments.action:
        case "list" if arguments.json:
            print(json.dumps(listed()))
        case "list":
            _list()
        case "pull":
            print(pull(arguments.model, arguments.accept, lambda sentence: print(sentence, file=sys.stderr)))
        case "check":
            path = find(arguments.model)
            if path is None and is_partly_here(arguments.model):
                raise ModelError(f"The model “{arguments.model}” was not fetched to its end. Pull it again.")
            if path is None:
                raise ModelError(f"There is no model “{arguments.model}” here.")
            found = check(path)
            print(f"{path} is whole: {found.pipeline}, {size_of(path) / 1e9:.2f} GB.")
        case "remove":
            print(f"{remove(arguments.model) / 1e9:.2f} GB are free again.")
    return 0


def listed() -> list[dict]:
    """The built-in model, those fetched and those that could be: id, licence, use, gigabytes, here, problem. No
    controls: what stands here can be chosen as a model or a second stage."""
    rows = [
        {"id": protocol.BUILT_IN_MODEL, "licence": "Apache-2.0", "use": "materials by its own words", "gigabytes": 0.0}
    ]
    for path in fetched():
        if folder.is_control(path):
            continue
        facts = facts_or_id(path)
        use, problem = _use_and_problem(path, facts["id"])
        size = round(size_of(path) / 1e9, 2)
        licence = str(facts.get("licence", "unknown"))
        rows.append({"id": facts["id"], "licence": licence, "use": use, "gigabytes": size})
        rows[-1]["problem"] = problem
    here = {row["id"] for row in rows}
    rows = [{"here": True, "problem": "", **row} for row in rows]
    for preset in (*PRESETS, *SECOND_STAGE_PRESETS):
        if preset.id not in here:
            row = {"id": preset.id, "licence": preset.licence, "use": preset.use, "gigabytes": preset.gigabytes}
            rows.append({"here": False, "problem": "", **row})
    return rows


def _use_and_problem(path: Path, identifier: str) -> tuple[str, str]:
    """What a fetched model can be used for, and why it cannot (empty where it can)."""
    try:
        return use_of(identifier, check(path, thorough=False).pipeline), ""
    except ModelError as error:
        return use_of(identifier, ""), str(error)


def _list() -> None:
    print(f"{protocol.BUILT_IN_MODEL}: comes with Patina, Apache-2.0; materials by its own words")
    for path in fetched():
        facts = facts_or_id(path)
        use, problem = _use_and_problem(path, facts["id"])
        print(f"{facts['id']}: {size_of(path) / 1e9:.2f} GB, {facts.get('licence', 'unknown')}; {problem or use}")
    print(f"To fetch, with their licences (into {home()}):")
    here = ids()
    for preset in (*PRESETS, *SECOND_STAGE_PRESETS, *CONTROL_PRESETS):
        if preset.id not in here:
            print(f"  {preset.id}: about {preset.gigabytes:g} GB, {preset.licence}; {preset.use}")
