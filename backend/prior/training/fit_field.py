# SPDX-License-Identifier: Apache-2.0
"""Fit the material field (field.py) to the generator: what each word means at each point, on average.

`python -m backend.prior.training.fit_field OUT --minutes 20` needs no pictures, only points: every batch draws
prompts, materials and points afresh. Resumable: started again with the same OUT it goes on; where OUT holds but the
weights (a copy of the shipped field.safetensors), it goes on from those.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import instances, procedural
from ..field import MaterialField
from ..vocabulary import WORDS, encode
from .prompts import DROP_WORDS, random_prompt

PROMPTS, POINTS = 64, 192  # per batch
WEIGHTS = (1.0, 1.0, 1.0, 1.5, 1.0, 1.0)  # of the outputs' squared errors; metallic is what matters most
DECAY = 0.999  # of the average that is kept


def random_points(count: int, generator: torch.Generator) -> procedural.Procedural:
    """Textures of points and normals all over the pattern space."""
    q = (torch.rand(count, 3, generator=generator) - 0.5) * 32
    normal = torch.randn(count, 3, generator=generator)
    return procedural.evaluate(q, torch.nn.functional.normalize(normal, dim=1))


def batch(generator: torch.Generator, often: tuple[str, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Textures (P, N, C), word numbers (P, 4) and wanted values (P, N, 6)."""
    textures = random_points(PROMPTS * POINTS, generator)
    stacked = textures.stacked().view(PROMPTS, POINTS, -1)
    numbers, wanted = [], []
    for index in range(PROMPTS):
        prompt = random_prompt(generator, often)
        instance = instances.draw(prompt, generator)
        rows = slice(index * POINTS, (index + 1) * POINTS)
        here = procedural.Procedural(**{name: values[rows] for name, values in textures.__dict__.items()})
        color, metallic, roughness = instances.components(instance, here)
        height = instances.relief(instance, here)
        wanted.append(torch.cat((color, metallic[:, None], roughness[:, None], height[:, None]), dim=1))
        known = float(torch.rand((), generator=generator)) > DROP_WORDS
        numbers.append(encode(prompt if known else None))
    return stacked, torch.stack(numbers).long(), torch.stack(wanted)


def fit(out: Path, minutes: float, learning_rate: float, seed: int, often: tuple[str, ...] = ()) -> None:
    torch.manual_seed(seed)
    field, average = MaterialField(len(WORDS)), MaterialField(len(WORDS)).requires_grad_(False)
    optimiser = torch.optim.AdamW(field.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    facts = {"step": 0, "minutes": 0.0, "seed": seed}
    state_file, weights_file, facts_file = (out / f"field{r}" for r in ("_state.pt", ".safetensors", "_facts.json"))
    if facts_file.exists():
        facts = json.loads(facts_file.read_text())
    if weights_file.exists():
        field.load_state_dict({name: values.float() for name, values in load_file(weights_file).items()})
    average.load_state_dict(field.state_dict())
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        field.load_state_dict(state["field"])
        optimiser.load_state_dict(state["optimiser"])
    generator = torch.Generator().manual_seed(seed + facts["step"])
    weights = torch.tensor(WEIGHTS)
    before, began, saved, errors = facts["minutes"], time.monotonic(), time.monotonic(), []
    while facts["minutes"] < minutes:
        share = facts["minutes"] / minutes
        for group in optimiser.param_groups:
            warm = min(1.0, facts["step"] / 200)
            group["lr"] = learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        textures, numbers, wanted = batch(generator, often)
        squared = ((field(textures, numbers) - wanted) ** 2).mean(1)
        optimiser.zero_grad(set_to_none=True)
        (squared.mean(0) * weights).sum().backward()
        torch.nn.utils.clip_grad_norm_(field.parameters(), 1.0)
        optimiser.step()
        decay = min(DECAY, (1 + facts["step"]) / (10 + facts["step"]))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(field.parameters()), 1 - decay)
        errors.append(squared.detach()[(numbers >= 0).any(1)].mean(0))
        facts["step"] += 1
        facts["minutes"] = before + (time.monotonic() - began) / 60
        if facts["step"] % 200 == 0:
            _log(out, facts, torch.stack(errors).mean(0).sqrt())
            errors = []
        if time.monotonic() - saved > 60 or facts["minutes"] >= minutes:
            _save(out, field, average, optimiser, facts)
            saved = time.monotonic()


def _log(out: Path, facts: dict, error: Tensor) -> None:
    names = ("red", "green", "blue", "metallic", "roughness", "height")
    errors = {name: round(float(value), 4) for name, value in zip(names, error, strict=True)}
    line = json.dumps({"step": facts["step"], "minutes": round(facts["minutes"], 2), **errors})
    print(line, flush=True)
    with open(out / "field_log.jsonl", "a") as log:
        log.write(line + "\n")


def _save(out: Path, field: MaterialField, average: MaterialField, optimiser, facts: dict) -> None:
    beside = out / "field_state.part"
    torch.save({"field": field.state_dict(), "optimiser": optimiser.state_dict()}, beside)
    os.replace(beside, out / "field_state.pt")
    save_file(average.state_dict(), out / "field.safetensors")
    (out / "field_facts.json").write_text(json.dumps(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--often", nargs="+", default=(), help="materials that are stuck: every second prompt is of them"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    fit(arguments.out, arguments.minutes, arguments.lr, arguments.seed, tuple(arguments.often))


if __name__ == "__main__":
    main()
