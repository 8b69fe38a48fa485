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
        for name, maps in (("maps", state.maps), ("average", state.average)):
            for index, parameter in enumerate(maps.parameters()):
                parameter.copy_(stored[f"{name}.{index}"])
    for index, parameter in enumerate(state.maps.parameters()):
        state.optimiser.state[parameter] = {
            "step": stored[f"adam_step.{index}"].clone(),
            "exp_avg": stored[f"adam_mean.{index}"].to(parameter.device),
            "exp_avg_sq": stored[f"adam_square.{index}"].to(parameter.device),
        }
    state.generator.set_state(stored["generator"])
    state.step = step
    return True


def _tensors(state: State) -> dict[str, Tensor]:
    """All tensors of a state by name."""
    tensors = {"generator": state.generator.get_state()}
    for index, parameter in enumerate(state.maps.parameters()):
        adam = state.optimiser.state.get(parameter)
        if not adam:  # a level that is not open yet: Adam begins with zeros
            zeros = torch.zeros_like(parameter)
            adam = {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros}
        tensors[f"maps.{index}"] = parameter.detach().contiguous()
        tensors[f"adam_step.{index}"] = adam["step"].detach().clone()
        tensors[f"adam_mean.{index}"] = adam["exp_avg"].detach().clone()
        tensors[f"adam_square.{index}"] = adam["exp_avg_sq"].detach().clone()
    for index, parameter in enumerate(state.average.parameters()):
        tensors[f"average.{index}"] = parameter.contiguous()
    return tensors


def _fingerprint(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()
