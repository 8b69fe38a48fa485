# SPDX-License-Identifier: GPL-3.0-or-later
"""The generator the built-in prior learns from: textures, patterns, drawn materials and the field fitted to them."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backend import ggx_tables, lighting
from backend.prior import conditions, instances, materials, patterns, procedural
from backend.prior.field import MaterialField, expect
from backend.prior.training import fit_field, pictures, train
from backend.prior.training.prompts import HELD_OUT_PROMPTS, random_prompt
from backend.prior.vocabulary import WORDS, encode
from backend.shading import SurfaceMaps, shade, shading_normal
from tests.backend import shapes_for_tests
from tests.backend.oracle_for_tests import new_pool


def clock(seconds_a_look):
    """A clock for trainings that are bounded by minutes: the same steps on a busy machine."""
    ticks = itertools.count()
    return SimpleNamespace(monotonic=lambda: next(ticks) * seconds_a_look)


def points(count=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = (torch.rand(count, 3, generator=generator) - 0.5) * 12
    return q, torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)


def test_textures_are_functions_of_the_place_alone():
    q, normal = points()
    whole = procedural.evaluate(q, normal).stacked()
    assert whole.shape == (4000, procedural.CHANNELS) and torch.isfinite(whole).all()
    assert torch.allclose(whole[100:200], procedural.evaluate(q[100:200], normal[100:200]).stacked(), atol=1e-4)
    assert (whole.abs().amax(0) < 3.5).all() and (whole.std(0) > 0.3).all(), "every texture varies, about -1..1"


def test_noise_is_continuous_and_repeats():
    q, _ = points()
    here = procedural.noise(q, 3.0)
    assert here.min() >= 0 and here.max() <= 1
    assert (procedural.noise(q + 1e-4, 3.0) - here).abs().max() < 5e-3
    assert (procedural.noise(q + procedural.LATTICE / 3.0, 3.0) - here).abs().max() < 1e-3


def test_voronoi_distances_match_brute_force():
    q, _ = points(60)
    nearest, gap, _ = procedural.cells(q, 2.5, jitter=0.8).T
    cells = torch.cartesian_prod(*[torch.arange(-17.0, 18.0)] * 3)
    index = (cells % procedural.LATTICE).long()
    random = procedural._volume(procedural.LATTICE)[0, :, index[:, 0], index[:, 1], index[:, 2]].T
    distance = torch.cdist(q * 2.5, cells + 0.5 + 0.8 * (random - 0.5)).topk(2, largest=False).values
    assert torch.allclose(nearest, distance[:, 0], atol=1e-4)
    assert torch.allclose(gap, distance[:, 1] - distance[:, 0], atol=1e-4)


def test_bricks_run_in_bond():
    """Above the middle of a brick stands a joint."""
    front = torch.tensor([[0.0, -1.0, 0.0]]).expand(2, 3)
    x = torch.tensor([[0.25, 0.0, 0.125], [0.25, 0.0, 0.375]])
    weight = patterns.bricks(procedural.evaluate(x, front)).weight
    assert weight[0] == 0 and weight[1] == 1


@pytest.mark.parametrize("name", sorted({m.pattern.__name__ for m in materials.MATERIALS.values()}))
def test_patterns_use_both_components(name):
    mix = getattr(patterns, name)(procedural.evaluate(*points()))
    assert mix.weight.min() >= 0 and mix.weight.max() <= 1
    assert name == "plain" or 0.04 < mix.weight.mean() < 0.96


def test_a_slope_tilts_the_normal_downhill():
    normal = torch.tensor([[0.0, 0.0, 1.0]])
    flat = torch.zeros(1)
    assert torch.equal(instances.bend(normal, [flat] * 4), normal)
    rising = torch.full((1,), 0.1)
    bent = instances.bend(normal, [flat, rising, flat, flat])
    assert bent[0, 0] < -0.1 and bent[0, 1] == 0 and torch.allclose(bent.norm(dim=1), torch.ones(1))


def test_materials_are_what_their_names_say():
    q, normal = points()

    def made(*prompt):
        return instances.surface(instances.draw(materials.Prompt(*prompt), torch.Generator().manual_seed(1)), q, normal)

    assert (made("gold").metallic == 1).all() and (made("plastic", "red").metallic == 0).all()
    assert made("gold", None, "polished").roughness.max() < 0.2 < made("rubber").roughness.min()
    red = made("plastic", "red").base_color.mean(0)
    assert red[0] > 0.6 > 0.3 > red[1]
    rusty = made("iron", None, "rusty")
    assert (rusty.metallic > 0.7).float().mean() > 0.2 and (rusty.metallic < 0.3).float().mean() > 0.2
    assert (made("brick").normal - normal).norm(dim=1).max() > 0.2


def test_what_covers_a_material_leaves_its_pattern_between_the_patches():
    """Mossy cobbles are cobbles with moss on them, and dirty bricks have joints."""
    q, normal = points()
    textures = instances.textures_round(q, normal)
    mossy = instances.draw(materials.Prompt("cobblestone", None, "mossy"), torch.Generator().manual_seed(2))
    color, metallic, roughness = instances.components(mossy, textures[0])
    bare_color, _, bare_roughness = instances.components(replace(mossy, layer=None), textures[0])
    cover = patterns.patches(textures[0]).weight
    free, covered = cover == 0, cover == 1
    assert 0.2 < free.float().mean() < 0.8 and 0.2 < covered.float().mean() < 0.8
    assert torch.equal(color[free], bare_color[free]) and torch.equal(roughness[free], bare_roughness[free])
    assert color[free].std(0).min() > 0.1, "stones and joints"
    assert (color[covered, 1] > color[covered, 0]).all(), "moss is green"
    assert torch.allclose(roughness[covered], torch.tensor(mossy.layer.roughness)) and not metallic.any()
    higher = instances.relief(mossy, textures[0]) - instances.relief(replace(mossy, layer=None), textures[0])
    assert higher[covered].min() > 0 and not higher[free].any()


def test_fine_textures_show_no_repetition_along_the_axes():
    """An object is two units wide: what repeats on it would be seen. The shifts are what the lattices would repeat at
    if they lay along the axes."""
    q, normal = points()
    here = procedural.evaluate(q, normal)
    for length in (2 / 3, 4 / 3, 8 / 9, 16 / 9):
        for shift in length * torch.eye(3):
            moved = procedural.evaluate(q + shift, normal)
            for name, channel in (("finer", 0), ("finest", 0), ("tiny_cells", 2)):
                pair = torch.stack([getattr(each, name)[:, channel] for each in (here, moved)])
                assert torch.corrcoef(pair)[0, 1].abs() < 0.2, (name, length)


def test_held_out_prompts_are_never_drawn():
    generator = torch.Generator().manual_seed(0)
    drawn = {random_prompt(generator) for _ in range(3000)}
    often = [random_prompt(generator, ("marble",)).material for _ in range(400)]
    assert 0.4 < often.count("marble") / 400 < 0.65
    assert not drawn & HELD_OUT_PROMPTS and len(drawn) > 500


def test_the_field_learns_words_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """A small vocabulary in a few seconds; the real one takes half an hour."""
    wanted = {"gold": 1.0, "rubber": 0.0}
    monkeypatch.setattr(
        fit_field,
        "random_prompt",
        lambda g, often: materials.Prompt(list(wanted)[int(torch.randint(2, (), generator=g))]),
    )
    monkeypatch.setattr(fit_field, "PROMPTS", 16)
    monkeypatch.setattr(fit_field, "time", clock(0.03))
    with torch.random.fork_rng():
        fit_field.fit(tmp_path, 0.04, 3e-3, 0)
        first = json.loads((tmp_path / "field_facts.json").read_text())["step"]
        fit_field.fit(tmp_path, 0.08, 3e-3, 0)
    assert json.loads((tmp_path / "field_facts.json").read_text())["step"] > first > 5
    field = MaterialField(len(WORDS))
    field.load_state_dict(load_file(tmp_path / "field.safetensors"))
    q, normal = points(500, seed=1)
    with torch.no_grad():
        for name, metallic in wanted.items():
            surface = expect(field, encode(materials.Prompt(name)).long(), q, normal)
            assert abs(float(surface.metallic.mean()) - metallic) < 0.2
            assert torch.allclose(surface.normal.norm(dim=1), torch.ones(500), atol=1e-5)


@pytest.fixture(scope="module")
def shard():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = MaterialField(len(WORDS))
    bench = pictures.Bench(np.random.default_rng(0), torch.Generator().manual_seed(0), ggx_tables.load(), field, 64)
    return pictures.pictures_of_shape("boxes", bench)


def test_training_pictures_show_the_object_and_nothing_outside(shard):
    count = len(shard.target)
    assert shard.wanted.shape == (count, 5, 64, 64) and shard.told.shape == (count, 20, 64, 64)
    outside = np.broadcast_to(shard.coverage == 0, shard.told.shape)
    assert (shard.told[outside] == 0).all() and shard.told[~outside].std() > 10
    assert (shard.target[np.broadcast_to(shard.coverage == 0, shard.target.shape)] == 128).all()
    metallic = shard.wanted[:, 3][shard.coverage[:, 0] == 255]
    assert set(np.unique(metallic)) >= {0, 255}, "metals and others"


def test_training_learns_and_goes_on_where_it_stopped(shard, tmp_path, monkeypatch):
    build = train.network.new_unet
    monkeypatch.setattr(train.network, "new_unet", lambda *_, size=64: build((32, 32, 32), size=size))
    monkeypatch.setattr(train, "time", clock(0.1))
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "000.npz", **shard.__dict__)
    options = dict(
        data=data, state=tmp_path, batch=8, lr=3e-3, seed=0, capacity=80, device="cpu", export=None, field=None,
        size=64, widths=(96, 128, 128), highest=1.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        train.train(train.argparse.Namespace(**options, minutes=0.1))
        before = json.loads((tmp_path / "facts.json").read_text())["step"]
        train.train(train.argparse.Namespace(**options, minutes=0.15))
    assert json.loads((tmp_path / "facts.json").read_text())["step"] > before > 3
    unet = train.network.new_unet()
    alphas_cumprod = train.network.new_scheduler().alphas_cumprod
    batch = {name: torch.from_numpy(values) for name, values in shard.__dict__.items()}

    @torch.no_grad()
    def loss():
        return float(train.batch_loss(unet, batch, alphas_cumprod, torch.Generator().manual_seed(3)))

    untrained = loss()
    unet.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)["average"])
    assert loss() < 0.9 * untrained


def test_a_normal_in_the_objects_frame_becomes_the_maps_vector():
    pool = new_pool(shapes_for_tests.mesh_of(shapes_for_tests.torus()), 48, seed=0)
    gbuffer = pool.gbuffer([0, 1, 2])
    smooth = torch.nn.functional.normalize(gbuffer.normal, dim=1)
    wish = 0.4 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.normalize(smooth + wish, dim=1)
    assert torch.allclose(shading_normal(gbuffer, conditions.tangent_normal(gbuffer, wanted)), wanted, atol=1e-4)
    flat = conditions.tangent_normal(gbuffer, smooth)
    assert torch.allclose(flat, torch.tensor([0.0, 0.0, 1.0]).expand_as(flat), atol=1e-4)


def test_a_flat_normal_map_changes_nothing():
    """Without a tilt the map's tangent frame has no direction of its own; the world's light must not depend on one."""
    pool = new_pool(shapes_for_tests.mesh_of(shapes_for_tests.torus()), 48, seed=0)
    gbuffer, lights = pool.gbuffer([0, 1]), lighting.sample(2, torch.Generator().manual_seed(0))
    lights = replace(lights, sun_irradiance=torch.zeros_like(lights.sun_irradiance))
    count = len(gbuffer.view)
    grey = torch.full((count, 3), 0.5), torch.zeros(count), torch.full((count,), 0.4)
    flat = torch.tensor([0.0, 0.0, 1.0]).expand(count, 3)
    tables = ggx_tables.load()
    plain = shade(gbuffer, SurfaceMaps(*grey), lights, tables)
    mapped = shade(gbuffer, SurfaceMaps(*grey, flat), lights, tables)
    assert abs(float(mapped.mean() / plain.mean()) - 1) < 0.01
