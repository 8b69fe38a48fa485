# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy that vsd trains beside the maps: real peft layers in the real networks at toy size."""

import builtins
import sys
import warnings
from dataclasses import dataclass, replace

import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch
import toy_models

from backend import checkpoint, ggx_tables, optimisation
from backend.diffusion import families
from backend.diffusion.interface import ModelError, encode

CPU = torch.device("cpu")
FAMILIES = [name for name in toy_models.FAMILIES if name != "sd_v"]  # of which the network is sd's


@dataclass(frozen=True)
class Views:
    azimuth_deg: torch.Tensor | None = None
    elevation_deg: torch.Tensor | None = None


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("lora")
    return {name: toy_models.save(name, home / name) for name in FAMILIES}


def loaded(folder):
    model = families.load(folder, CPU)
    model.set_prompt("red plastic", "")
    return model


def pictures(model, count=3):
    size = model.render_size
    generator = torch.Generator().manual_seed(1)
    return encode(model, torch.rand(count, 3, size, size, generator=generator) * 2 - 1)


FRONT = Views(torch.tensor([0.0, 90.0, 180.0]), torch.tensor([0.0, 10.0, 40.0]))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_copy_begins_as_the_model_learns_the_pictures_and_leaves_the_model_alone(folders, name):
    model = loaded(folders[name])
    x0 = pictures(model)
    timestep, noise = torch.tensor([300, 600, 900]), torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    before = model.predict(noise, timestep, FRONT, guided=False).conditional
    copy = model.companion(0)
    assert torch.equal(model.predict(noise, timestep, FRONT, guided=False).conditional, before)
    assert torch.allclose(copy.predict(noise, timestep, FRONT), before, rtol=1e-5, atol=1e-5)
    copy.optimiser.param_groups[0]["lr"] = 3e-2  # toy networks are not moved by the published rate
    alpha_bar = model.alphas_cumprod[timestep].view(-1, 1, 1, 1)
    noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise

    def error():
        weight = alpha_bar / (1 - alpha_bar)
        return float((weight * (copy.predict(noisy, timestep, FRONT) - x0) ** 2).mean())

    start, generator = error(), torch.Generator().manual_seed(3)
    for _ in range(40):
        copy.learn(x0, FRONT, generator)
    assert error() < 0.995 * start, "it has learnt nothing"
    assert all(parameter.abs().max() > 0 for name, parameter in copy.layers.items() if "lora_B" in name)
    after = model.predict(noise, timestep, FRONT, guided=False).conditional
    assert torch.equal(after, before), "the model itself has changed"
    assert torch.isfinite(copy.predict(noise, timestep, Views())).all(), "pictures of no single view"
    # A fresh one has forgotten.
    assert torch.allclose(model.companion(0).predict(noise, timestep, FRONT), before, rtol=1e-5, atol=1e-5)


def test_the_copy_knows_the_camera_beside_the_view_words(folders):
    model = loaded(folders["sd"])
    x0, copy = pictures(model), model.companion(0)
    copy.optimiser.param_groups[0]["lr"] = 3e-2
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        copy.learn(x0, FRONT, generator)
    # Both are side views in words.
    left = Views(torch.full((3,), 90.0), torch.zeros(3))
    right = Views(torch.full((3,), 270.0), torch.zeros(3))
    noise, timestep = torch.randn(x0.shape), torch.full((3,), 500)
    assert torch.equal(*(model.predict(noise, timestep, views).conditional for views in (left, right)))
    assert not torch.allclose(*(copy.predict(noise, timestep, views) for views in (left, right)), atol=1e-5)


def test_its_memory_does_not_grow_with_the_views_and_parts_change_nothing(folders):
    made = []
    for rows in (1, 4):
        model = loaded(folders["sd"])
        model.rows = rows
        x0, copy = pictures(model), model.companion(0)
        sizes = []
        copy.network.register_forward_hook(lambda module, inputs, output, sizes=sizes: sizes.append(len(inputs[0])))
        copy.learn(x0, FRONT, torch.Generator().manual_seed(3))
        assert sizes == ([1, 1, 1] if rows == 1 else [3])
        made.append(copy.tensors())
    for name, tensor in made[0].items():
        assert torch.allclose(tensor, made[1][name], atol=2e-4), name


def test_a_run_with_it_resumes_bit_for_bit(folders, tmp_path):
    mesh = shapes.mesh_of(shapes.torus(16, 8))
    tables = ggx_tables.load()
    plan = replace(oracle.plan_for(steps=6, render_size=16, finest=32, views=2), guidance="vsd", guidance_scale=2.0)

    def fresh():
        model, state = loaded(folders["sd"]), optimisation.new_state(plan, CPU)
        optimisation.add_companion(state, plan, model)
        return model, state

    def advance(model, state, until):
        pool = oracle.new_pool(mesh, plan.render_size, plan.seed)
        while state.step < until:
            optimisation.step(state, plan, model, pool, tables)
        return state

    unbroken = advance(*fresh(), 6)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, advance(*fresh(), 3), plan)
    model, state = fresh()
    assert checkpoint.read_into(path, state, plan) and state.step == 3
    resumed = advance(model, state, 6)
    for one, other in zip(unbroken.maps.parameters(), resumed.maps.parameters(), strict=True):
        assert torch.equal(one, other)
    learnt, again = unbroken.companion.tensors(), resumed.companion.tensors()
    assert all(torch.equal(learnt[name], again[name]) for name in learnt)
    assert any(learnt[name].abs().max() > 0 for name in learnt if "lora_B" in name and name.endswith("weight"))


def test_the_next_copy_of_a_warm_model_is_made_in_silence(folders):
    model = loaded(folders["sd"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.companion(0)
        model.companion(1)


def test_without_the_library_a_sentence_says_so(folders, monkeypatch):
    model = loaded(folders["sd"])
    monkeypatch.delitem(sys.modules, "backend.diffusion.lora", raising=False)
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError("No module named 'peft'", name="peft")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match="“vsd” needs the library “peft”, which is missing. Repair the backend, or"):
        model.companion(0)
