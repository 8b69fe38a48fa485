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

from .descent import MeanDescent
from .optimisation import Plan, State

COMPANION = "companion."  # begins the names of what a guidance trains beside the maps


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
            # Adam's own step count stays on the CPU.
            name: value.clone() if value.dim() == 0 else value.to(parameter.device)
            for name, value in ((n, stored[f"{n}.{index}"]) for n in _fresh(state, parameter))
        }
    if state.companion is not None:
        state.companion.load({n.removeprefix(COMPANION): v for n, v in stored.items() if n.startswith(COMPANION)})
    state.generator.set_state(stored["generator"])
    state.step = step
    return True


def _tensors(state: State) -> dict[str, Tensor]:
    """All tensors of a state by name."""
    tensors = {"generator": state.generator.get_state()}
    for index, parameter in enumerate(state.maps.parameters()):
        tensors[f"maps.{index}"] = parameter.detach().contiguous()
        # A level that is not open yet begins with zeros.
        for name, value in (state.optimiser.state.get(parameter) or _fresh(state, parameter)).items():
            tensors[f"{name}.{index}"] = value.detach().clone()
    for index, parameter in enumerate(state.average.parameters()):
        tensors[f"average.{index}"] = parameter.contiguous()
    if state.companion is not None:
        tensors |= {f"{COMPANION}{name}": tensor for name, tensor in state.companion.tensors().items()}
    return tensors


def _fresh(state: State, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimiser keeps of a parameter, before its first step."""
    if isinstance(state.optimiser, MeanDescent):
        return MeanDescent.fresh(parameter)
    zeros = torch.zeros_like(parameter)
    return {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros}


def _fingerprint(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()
