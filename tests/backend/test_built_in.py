# SPDX-License-Identifier: GPL-3.0-or-later
"""The built-in prior: its wiring with small random weights of the real classes, and the shipped ones where present."""

import json
import shutil
from dataclasses import replace

import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch
from safetensors.torch import save_file

from addon.protocol import BUILT_IN_MODEL
from backend import lighting, models, optimisation
from backend.diffusion import built_in
from backend.diffusion.built_in import BuiltInPrior
from backend.diffusion.interface import Adaptable, ModelError, Worded
from backend.prior import conditions, network, vocabulary
from backend.prior.field import MaterialField
from backend.prior.training import train
from backend.prompts import PromptError

CPU = torch.device("cpu")
SHIPPED = built_in.WEIGHTS / "unet" / "config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prior as the training writes it, with random weights and 32 px pictures."""
    place = tmp_path_factory.mktemp("prior")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = network.new_unet((32, 32, 32), size=32)
        unet.conv_out.weight.data += 0.1 * torch.randn_like(unet.conv_out.weight)  # it begins at zero
        field = MaterialField(len(vocabulary.WORDS))
    train.export(unet, field.state_dict(), place, {})
    return place


@pytest.fixture(scope="module")
def tiny(folder):
    return BuiltInPrior(CPU, folder)


def scene_of(size, pictures=2, seed=0, pattern_scale=1.0):
    pool = oracle.new_pool(shapes.mesh_of(shapes.torus()), size, seed)
    indices = list(range(pictures))
    lights = lighting.sample(pictures, torch.Generator().manual_seed(seed))
    offset = torch.tensor([0.1, 0.5, 0.9])
    return pool.scene(indices, lights, pattern_scale, offset)


def ask(model, scene, time=700, seed=1):
    count = len(scene.gbuffer.coverage)
    noisy = torch.randn(count, 3, scene.size, scene.size, generator=torch.Generator().manual_seed(seed))
    return model.predict(noisy, torch.full((count,), time), scene)


def object_pixels(scene):
    return (scene.gbuffer.coverage == 1)[:, None].expand(-1, 3, -1, -1)


def test_it_says_what_it_was_made_for(tiny):
    assert tiny.name == BUILT_IN_MODEL and tiny.render_size == 32
    assert tiny.background == conditions.BACKGROUND and tiny.guidance_scale >= 1
    alphas_cumprod = tiny.alphas_cumprod
    assert alphas_cumprod.shape == (1000,) and (alphas_cumprod[1:] < alphas_cumprod[:-1]).all()
    assert 0.99 < alphas_cumprod[0] < 1 and 0 <= alphas_cumprod[-1] < 0.01
    assert not any(p.requires_grad for p in (*tiny.unet.parameters(), *tiny.field.parameters()))
    assert not tiny.unet.training


def test_predictions_are_pictures_over_the_background(tiny):
    scene = scene_of(32)
    tiny.set_prompt("red plastic", "")
    prediction = ask(tiny, scene)
    for x0_hat in (prediction.conditional, prediction.unconditional):
        assert x0_hat.shape == (2, 3, 32, 32) and x0_hat.dtype == torch.float32 and not x0_hat.requires_grad
        assert torch.isfinite(x0_hat).all()
        outside = (scene.gbuffer.coverage == 0)[:, None].expand_as(x0_hat)
        assert torch.allclose(x0_hat[outside], torch.tensor(2 * conditions.BACKGROUND - 1))
        assert x0_hat[object_pixels(scene)].std() > 0.01
    assert not torch.allclose(prediction.conditional, prediction.unconditional, atol=1e-3)


def test_the_same_question_has_the_same_answer(tiny):
    scene = scene_of(32)
    tiny.set_prompt("oak", "")
    one, two = ask(tiny, scene), ask(tiny, scene)
    assert torch.equal(one.conditional, two.conditional) and torch.equal(one.unconditional, two.unconditional)


def test_everything_it_is_told_matters(tiny):
    scene = scene_of(32)
    tiny.set_prompt("oak", "")
    before = ask(tiny, scene)
    others = {
        "noise": ask(tiny, scene, seed=2),
        "time": ask(tiny, scene, time=100),
        "pattern scale": ask(tiny, scene_of(32, pattern_scale=3.0)),
        "light": ask(tiny, replace(scene, lights=lighting.uniform(2))),
        "offset": ask(tiny, replace(scene, pattern_offset=torch.tensor([0.9, 0.2, 0.4]))),
    }
    for name, other in others.items():
        assert not torch.allclose(before.conditional, other.conditional, atol=1e-3), name
    tiny.set_prompt("brick", "")
    after = ask(tiny, scene)
    assert not torch.allclose(before.conditional, after.conditional, atol=1e-3)
    assert torch.allclose(before.unconditional, after.unconditional, atol=2e-2), "no prompt knows no prompt"
    tiny.set_prompt("brick", "oak")
    negative = ask(tiny, scene)
    assert torch.allclose(negative.unconditional, before.conditional, atol=2e-2)


def test_remembering_a_view_changes_nothing(tiny):
    scene = scene_of(32)
    tiny.set_prompt("oak", "")
    one = scene_of(32, 1)
    ask(tiny, replace(one, memory=scene.memory))  # the first view is known, the second is not
    remembered, fresh = ask(tiny, scene), ask(tiny, replace(scene, memory=None))
    assert torch.allclose(remembered.conditional, fresh.conditional, atol=1e-5)
    assert len(scene.memory) == 4, "two views, with and without the prompt"


def test_without_guidance_the_other_branch_is_not_asked(tiny):
    scene = scene_of(32)
    tiny.set_prompt("oak", "")
    noisy = torch.zeros(2, 3, 32, 32)
    alone = tiny.predict(noisy, torch.tensor([500, 500]), scene, guided=False)
    assert torch.equal(alone.conditional, alone.unconditional) and len(scene.memory) == 2
    assert tiny.guidance_scale == 1
    tiny.set_prompt("oak", "brick")
    assert tiny.guidance_scale > 1, "a negative prompt works by guidance alone"


def test_it_can_be_asked_for_nothing_and_for_the_negative_prompt_and_has_no_views(tiny):
    scene = scene_of(32)
    noisy = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    time = torch.tensor([700, 300])

    def words(kind):
        return tiny.predict_words(noisy, time, scene, (kind, kind))

    tiny.set_prompt("oak", "")
    assert isinstance(tiny, Worded)
    nothing = tiny.predict(noisy, time, scene).unconditional
    assert torch.equal(words("nothing"), nothing) and torch.equal(words("negative"), nothing), "there is none"
    tiny.set_prompt("oak", "brick")
    assert torch.equal(words("nothing"), nothing)
    assert torch.equal(words("negative"), tiny.predict(noisy, time, scene).unconditional)
    assert not torch.allclose(words("negative"), nothing, atol=1e-3)
    sentence = "same from every side.*“built-in” knows no view words. Switch Perp-Neg off"
    for asked in (("front view", "front view"), ("nothing", "side view")):
        with pytest.raises(ModelError, match=sentence):
            tiny.predict_words(noisy, time, scene, asked)


def test_a_picture_does_not_depend_on_its_neighbours(tiny):
    tiny.set_prompt("oak", "")
    both, first = scene_of(32, 2), scene_of(32, 1)
    noisy = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    lights = lighting.sample(2, torch.Generator().manual_seed(0))
    both, first = (replace(s, lights=lights[:n]) for s, n in ((both, 2), (first, 1)))
    together = tiny.predict(noisy, torch.tensor([600, 200]), both).conditional[:1]
    alone = tiny.predict(noisy[:1], torch.tensor([600]), first).conditional
    assert (together - alone).abs().max() < 0.05  # half precision


def test_words_are_understood_or_refused(tiny):
    assert tiny.set_prompt("red plastic", "") == ()
    assert any("flurb" in sentence for sentence in tiny.set_prompt("red flurb plastic", ""))
    assert any("negative prompt" in sentence for sentence in tiny.set_prompt("gold", "blurry, ugly"))
    with pytest.raises(PromptError):
        tiny.set_prompt("happiness", "")


def test_weights_that_are_missing_or_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(OSError):
        BuiltInPrior(CPU, tmp_path)
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "words.json").write_text(json.dumps({"words": ["gold"]}))
    with pytest.raises(OSError, match="does not fit"):
        BuiltInPrior(CPU, other)


def test_the_shelf_keeps_one_model_and_lets_it_go(folder, monkeypatch):
    monkeypatch.setattr(built_in, "BuiltInPrior", lambda device, stage: BuiltInPrior(device, folder, stage))
    shelf = models.ModelShelf()
    first = shelf.get(BUILT_IN_MODEL, CPU)
    assert shelf.get(BUILT_IN_MODEL, CPU) is first
    shelf.release()
    assert shelf.get(BUILT_IN_MODEL, CPU) is not first
    with pytest.raises(models.ModelError, match="does not know the model"):
        shelf.get("unknown/model", CPU)
    monkeypatch.setattr(built_in, "BuiltInPrior", lambda device, stage: BuiltInPrior(device, folder / "nothing", stage))
    with pytest.raises(models.ModelError, match="cannot be loaded"):
        models.ModelShelf().get(BUILT_IN_MODEL, CPU)


def tear(place):
    path = place / "field.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def shrink(place):
    save_file({"words.weight": torch.zeros(3, 3)}, place / "field.safetensors")


def scribble(place):
    (place / "words.json").write_text("{")


def tear_unet(place):
    path = next((place / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("spoil", [tear, shrink, scribble, tear_unet])
def test_damaged_weights_are_the_models_fault_in_a_sentence(spoil, folder, tmp_path, monkeypatch):
    place = shutil.copytree(folder, tmp_path / "spoilt")
    spoil(place)
    monkeypatch.setattr(built_in, "BuiltInPrior", lambda device, stage: BuiltInPrior(device, place, stage))
    with pytest.raises(models.ModelError, match="install Patina again"):
        models.ModelShelf().get(BUILT_IN_MODEL, CPU)


# --- the shipped weights ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[built_in.FIRST, built_in.SECOND])
def shipped(request):
    if not SHIPPED.exists():
        pytest.skip("the prior's weights are not in this tree")
    return BuiltInPrior(CPU, stage=request.param)


def test_each_stage_has_its_size(shipped):
    first = shipped.name == "built-in"
    assert shipped.render_size == (64 if first else 128) and (first or "second" in shipped.name)


def test_the_shipped_prior_knows_colours_and_metals(shipped):
    scene = scene_of(shipped.render_size, pictures=3)
    inside = object_pixels(scene)

    def mean_of(prompt):
        shipped.set_prompt(prompt, "")
        noisiest = 950 if shipped.render_size == 64 else 600  # the second stage never sees more noise
        return [float(ask(shipped, scene, time=noisiest).conditional[:, c][inside[:, c]].mean()) for c in range(3)]

    red, blue, gold = (mean_of(prompt) for prompt in ("red plastic", "blue plastic", "gold"))
    print("red", red, "blue", blue, "gold", gold)
    assert red[0] > red[2] + 0.2 and red[0] > red[1] + 0.2
    assert blue[2] > blue[0] + 0.2
    assert gold[0] > gold[2] + 0.1 and gold[1] > gold[2]


def test_the_shipped_prior_keeps_a_picture_that_is_hardly_noisy(shipped):
    """At the last timesteps it denoises; it does not paint anew."""
    scene = scene_of(shipped.render_size, pictures=3)
    red = torch.tensor([0.7, 0.2, 0.2, 0.0, 0.5, 0.5, 0.5])
    points = oracle.render(lambda g: red.expand(len(g.uv), 7), scene.gbuffer, scene.lights)
    behind = torch.full((3, scene.size, scene.size, 3), 2 * conditions.BACKGROUND - 1)
    picture = scene.gbuffer.picture(points * 2 - 1, behind).permute(0, 3, 1, 2)
    shipped.set_prompt("red plastic", "")
    timestep = torch.full((3,), 20)
    alpha_bar = shipped.alphas_cumprod[timestep].view(-1, 1, 1, 1)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(4))
    noisy = alpha_bar.sqrt() * picture + (1 - alpha_bar).sqrt() * noise
    x0_hat = shipped.predict(noisy, timestep, scene).conditional
    error = (x0_hat - picture)[object_pixels(scene)].square().mean().sqrt()
    print(f"off by {error:.3f}")
    assert error < 0.15


def test_the_shipped_prior_leads_maps_back_that_went_astray(shipped):
    """Nothing else would: a picture without noise is believed, and errors would add up over the steps."""
    scene = scene_of(shipped.render_size, pictures=3)
    shipped.set_prompt("matte steel", "")
    timestep = torch.full((3,), 200)
    alpha_bar = shipped.alphas_cumprod[timestep].view(-1, 1, 1, 1)
    inside, behind = object_pixels(scene), torch.full((3, scene.size, scene.size, 3), 2 * conditions.BACKGROUND - 1)

    def shown(grey):
        steel = torch.tensor([grey, grey, grey, 1.0, 0.75, 0.5, 0.5])
        points = oracle.render(lambda g: steel.expand(len(g.uv), 7), scene.gbuffer, scene.lights)
        return scene.gbuffer.picture(points * 2 - 1, behind).permute(0, 3, 1, 2)

    astray = shown(0.95)
    noise = torch.randn(astray.shape, generator=torch.Generator().manual_seed(4))
    x0_hat = shipped.predict(alpha_bar.sqrt() * astray + (1 - alpha_bar).sqrt() * noise, timestep, scene).conditional
    wanted, found, gone = (float(picture[inside].mean()) for picture in (shown(0.7), x0_hat, astray))
    assert abs(found - wanted) < 0.35 * (gone - wanted)


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the weights are not here")
def test_its_copy_learns_the_pictures_of_the_run_and_leaves_it_alone():
    model = BuiltInPrior(CPU)
    model.set_prompt("red plastic", "")
    size = model.render_size
    scene, time = scene_of(size, pictures=1), torch.tensor([500])
    gbuffer = scene.gbuffer
    # What the run shows: the model's own materials, a little darker and rougher, which lies within its reach.
    believed = model.believed_material(scene) + torch.tensor([-0.04, -0.02, -0.02, 0.0, 0.08])
    surface = conditions.surface_of(believed, torch.nn.functional.normalize(gbuffer.normal, dim=1))
    shown = conditions.render(gbuffer, surface, scene.lights, model.tables)
    x0 = gbuffer.picture(shown, torch.full((1, size, size, 3), model.background)).permute(0, 3, 1, 2) * 2 - 1
    alpha_bar = model.alphas_cumprod[time].view(-1, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    noisy = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    before = model.predict(noisy, time, scene, guided=False).conditional
    copy = model.companion(0)
    assert isinstance(model, Adaptable)
    assert torch.equal(model.predict(noisy, time, scene, guided=False).conditional, before)
    assert torch.allclose(copy.predict(noisy, time, scene), before, atol=1e-3)

    def error():
        return float((copy.predict(noisy, time, scene) - x0).square().mean())

    start, generator = error(), torch.Generator().manual_seed(3)
    for _ in range(40):
        copy.learn(x0, scene, generator)
    print(f"error of the copy {start:.2e} before, {error():.2e} after")
    assert error() < 0.9 * start, "it has learnt nothing"
    assert torch.equal(model.predict(noisy, time, scene, guided=False).conditional, before), "the model has changed"
    kept = {name: tensor.clone() for name, tensor in copy.tensors().items()}
    fresh = model.companion(1)
    assert torch.allclose(fresh.predict(noisy, time, scene), before, atol=1e-3), "a fresh one has not forgotten"
    fresh.load(kept)
    assert all(torch.equal(kept[name], tensor) for name, tensor in fresh.tensors().items())


def test_a_run_with_vsd_ends_with_numbers(folder):
    model = BuiltInPrior(CPU, folder)
    model.set_prompt("red plastic", "")
    plan = replace(oracle.plan_for(steps=3, render_size=32, finest=32, views=2), guidance="vsd", guidance_scale=1.0)
    state, pool = optimisation.new_state(plan, CPU), oracle.new_pool(shapes.mesh_of(shapes.torus(16, 8)), 32, 0)
    optimisation.add_companion(state, plan, model)
    assert state.companion is not None
    before = [p.detach().clone() for p in state.maps.parameters()]
    for _ in range(3):
        optimisation.step(state, plan, model, pool, model.tables)
    assert all(torch.isfinite(p).all() for p in state.maps.parameters())
    assert any(not torch.equal(*pair) for pair in zip(before, state.maps.parameters(), strict=True))
