# SPDX-License-Identifier: Apache-2.0
"""Saving and resuming the state of a run: one safetensors file, bit for bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from addon.protocol import write_beside

from .optimisation import Plan, State

LEARNERS = ("companion", "image_prior")  # of a state: what is trained beside the maps, or in their place


def write(path: Path, state: State, plan: Plan) -> None:
    """Write beside, then rename: the old checkpoint stays until the new one is whole."""
    write_beside(path, save(_tensors(state), metadata={"step": str(state.step), "plan": _fingerprint(plan)}))


def read_into(path: Path, state: State, plan: Plan) -> bool:
    """Fill `state` from the file; False, and nothing changed, when it is missing, torn or of another plan."""
    try:
        content = path.read_bytes()
        stored = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        step = int(metadata["step"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return False
    wanted = _tensors(state)
    fits = stored.keys() == wanted.keys() and all(stored[k].shape == wanted[k].shape for k in wanted)
    if metadata.get("plan") != _fingerprint(plan) or not fits:
        return False
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name.partition(".")[0] not in LEARNERS:
                tensor.copy_(stored[name])
    for learner in LEARNERS:
        if getattr(state, learner) is not None:
            own = {n.partition(".")[2]: v for n, v in stored.items() if n.startswith(f"{learner}.")}
            getattr(state, learner).load(own)
    state.generator.set_state(stored["generator"])
    state.step = step
    return True


def _tensors(state: State) -> dict[str, Tensor]:
    """All tensors of a state by name; but for the generator's and the learners' they are the state's own."""
    groups = {
        "maps": state.maps.parameters(),
        "average": state.average.parameters(),
        "moves": state.sums.moves,
        "reach": state.sums.reach,
        "told": [state.told],
    }
    tensors = {f"{name}.{index}": t.detach() for name, group in groups.items() for index, t in enumerate(group)}
    for learner in LEARNERS:
        if getattr(state, learner) is not None:
            tensors |= {f"{learner}.{name}": part for name, part in getattr(state, learner).tensors().items()}
    return {"generator": state.generator.get_state(), **tensors}


def _fingerprint(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()
