# SPDX-License-Identifier: GPL-3.0-or-later
"""Saving and resuming a run, bit for bit."""

import json
from dataclasses import replace

import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch
from safetensors.torch import load_file, save_file

from backend import checkpoint, ggx_tables, optimisation
from backend.diffusion.interface import Prediction

TABLES = ggx_tables.load()
PLAN = oracle.plan_for(steps=20, render_size=24, finest=32, views=2)


def reddish(gbuffer):
    return torch.tensor([0.8, 0.2, 0.1, 0.1, 0.4, 0.55, 0.5]).expand(gbuffer.uv.shape[0], 7)


class Noisy(oracle.Oracle):
    """Its answer depends on the noise as well, as a real model's does."""

    def predict(self, noisy, timestep, scene, guided=True):
        prediction = super().predict(noisy, timestep, scene)
        return Prediction(prediction.conditional + 0.2 * noisy, prediction.unconditional)


@pytest.fixture(scope="module")
def mesh():
    return shapes.mesh_of(shapes.torus(16, 8))


def fresh(plan=PLAN):
    return optimisation.new_state(plan, torch.device("cpu"))


def advance(state, mesh, until, plan=PLAN):
    pool = oracle.new_pool(mesh, PLAN.render_size, PLAN.seed)
    while state.step < until:
        optimisation.step(state, plan, Noisy(reddish, PLAN.render_size), pool, TABLES)
    return state


def same(one, other):
    tensors = [
        [*state.maps.parameters(), *state.average.parameters(), state.generator.get_state()] for state in (one, other)
    ]
    return one.step == other.step and all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_a_resumed_run_ends_as_an_unbroken_one_bit_for_bit(mesh, tmp_path):
    unbroken = advance(fresh(), mesh, 20)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, advance(fresh(), mesh, 10), PLAN)
    resumed = fresh()
    assert checkpoint.read_into(path, resumed, PLAN) is True
    assert resumed.step == 10
    assert same(advance(resumed, mesh, 20), unbroken)
    assert not same(resumed, fresh())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_checkpoint_from_before_the_first_step_is_the_start(mesh, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, fresh(), PLAN)
    resumed = fresh()
    assert checkpoint.read_into(path, resumed, PLAN)
    assert same(advance(resumed, mesh, 5), advance(fresh(), mesh, 5))


def test_a_checkpoint_does_not_change_the_run_that_writes_it(mesh, tmp_path):
    state = advance(fresh(), mesh, 5)
    checkpoint.write(tmp_path / "one", state, PLAN)
    state = advance(state, mesh, 6)
    checkpoint.write(tmp_path / "two", state, PLAN)
    assert same(advance(state, mesh, 10), advance(fresh(), mesh, 10))


def spoil(path, how):
    content = path.read_bytes()
    stored = load_file(path)
    if how == "missing":
        path.unlink()
    elif how == "torn":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "header cut":
        path.write_bytes(content[:20])
    elif how == "noise":
        path.write_bytes(bytes(range(256)) * 100)
    elif how == "huge header":
        path.write_bytes((2**62).to_bytes(8, "little") + content[8:])
    elif how == "no metadata":
        save_file(stored, path)
    elif how == "another plan":
        save_file(stored, path, metadata={"step": "10", "plan": "0" * 64})
    elif how == "a tensor less":
        metadata = metadata_of(content)
        stored.pop("maps.0")
        save_file(stored, path, metadata=metadata)
    elif how == "another shape":
        metadata = metadata_of(content)
        stored["average.1"] = stored["average.1"][..., :-1].contiguous()
        save_file(stored, path, metadata=metadata)
    elif how == "step no number":
        save_file(stored, path, metadata={**metadata_of(content), "step": "ten"})


def metadata_of(content):
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


@pytest.mark.parametrize(
    "how",
    ["missing", "torn", "empty", "header cut", "noise", "huge header", "no metadata", "another plan",
     "a tensor less", "another shape", "step no number"],
)  # fmt: skip
def test_what_does_not_fit_is_left_alone(how, mesh, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, advance(fresh(), mesh, 2), PLAN)
    spoil(path, how)
    state = fresh()
    assert checkpoint.read_into(path, state, PLAN) is False
    assert same(state, fresh()) and not state.told.any() and not any(m.any() for m in state.sums.moves)


@pytest.mark.parametrize("change", [{"seed": 1}, {"guidance_scale": 2.0}, {"steps": 21}, {"guidance": "sds"}])
def test_a_checkpoint_of_another_plan_is_not_taken(change, mesh, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, advance(fresh(), mesh, 2), PLAN)
    other = replace(PLAN, **change)
    state = optimisation.new_state(other, torch.device("cpu"))
    assert checkpoint.read_into(path, state, other) is False and state.step == 0
