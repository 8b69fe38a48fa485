# SPDX-License-Identifier: GPL-3.0-or-later
"""`evaluate ablation`: its statistics, its order, that it goes on where it was broken off, and one real run."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import shapes_for_tests as shapes
import torch

from backend import material, views
from backend.diffusion.interface import ModelError
from backend.evaluate import _ablation_table as table
from backend.evaluate import _oracles, ablation, prior
from backend.evaluate._shapes import SHAPES
from backend.guidance import GUIDANCE
from backend.models import ModelShelf
from backend.prior import instances
from backend.prior.vocabulary import read

CASES = len(ablation.PROMPTS) * len(ablation.SHAPES)


@dataclass(frozen=True)
class Named:
    name: str
    group: str = "options"
    beside: str = ""


def row(configuration, prompt, seed, value):
    figures = {key: value for key, *_ in table.FIGURES}
    return {"configuration": configuration, "prompt": prompt, "shape": "vase", "seed": seed, **figures}


def test_differences_are_paired_and_their_error_is_that_of_the_pairs():
    generator = np.random.default_rng(0)
    default, change = 10 * generator.normal(size=16), 0.3 + 0.1 * generator.normal(size=16)
    places = [(prompt, seed) for prompt in "abcdefgh" for seed in (0, 1)]
    rows = [row("default", *place, value) for place, value in zip(places, default, strict=True)]
    changed = [row("new", *place, value) for place, value in zip(places, default + change, strict=True)]
    found = table.compare(rows + changed[::-1], "new", "default", "relit")
    assert found.runs == found.pairs == 16 and found.beyond
    assert found.mean == pytest.approx((default + change).mean())
    assert found.difference == pytest.approx(change.mean())
    assert found.error == pytest.approx(change.std(ddof=1) / 4)
    # Unpaired, the same change would drown in what prompts differ by.
    assert abs(change.mean()) < 0.1 * math.hypot(default.std(), default.std()) / 4
    none = table.compare(
        [*rows, *(row("new", *p, v) for p, v in zip(places, default, strict=True))], "new", "default", "relit"
    )
    assert none.difference == 0 and not none.beyond
    half = table.compare(rows[:8] + changed, "new", "default", "relit")
    assert (half.runs, half.pairs) == (16, 8) and half.difference == pytest.approx(change[:8].mean())
    one = table.compare(rows[:1] + changed, "new", "default", "relit")
    assert math.isnan(one.error) and not one.beyond, "one pair proves nothing"
    with pytest.raises(ValueError, match="There are no runs of other"):
        table.compare(rows, "other", "default", "relit")


def test_the_table_marks_what_is_beyond_two_errors_and_says_on_which_side():
    places = [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    rows = [row("default", *place, 1.0) for place in places]
    rows += [row("worse", *place, 1.3 + 0.02 * number) for number, place in enumerate(places)]
    rows += [row("better", *place, 0.7 + 0.02 * number) for number, place in enumerate(places)]
    rows += [row("the same", *place, 1.1 + (-1) ** number) for number, place in enumerate(places)]
    told = {
        "settings": {"steps": 24, "views": 2, "prior": "abc"}, "rows": rows, "refused": {"mute": "It cannot."},
        "view_words": {"sds": {"right": 5, "places": 6, "margin": -0.1}},
        "baked_light": {"sds": {"pixels": {"wanted": 0.5, "not": 0.1}}},
    }  # fmt: skip
    strong = Named("better", beside="worse")
    names = [Named("default", "guidance"), Named("worse"), strong, Named("the same"), Named("mute"), Named("unmade")]
    text = table.document(told, names, 4)
    assert "16 of 20 runs" in text and "24 steps of 2 views" in text
    first = text.partition("## Beside")[0]
    lines = {line.split(" | ")[0]: line for line in first.splitlines() if line.startswith("| ")}
    assert "1.33 (**+0.33 ± 0.01**)" in lines["| worse"]
    assert "1.10 (+0.10 ± 0.58)" in lines["| the same"]
    assert "- *metallic*: better better; worse worse." in text
    beside = text.split("## Beside *worse*")[1]
    assert "0.73 (**-0.60 ± 0.00**)" in beside.split("## ")[0] and "the same" not in beside.split("## ")[0]
    assert "- *mute*: It cannot." in text and "unmade" not in text
    assert "| sds | 5 of 6, -0.10 | 0.50 (0.10) |" in text
    empty = {**told, "rows": [], "view_words": {}, "baked_light": {}}
    assert "0 of 20 runs" in table.document(empty, names, 4)


def test_the_order_gives_a_whole_table_early_and_nothing_is_left_out():
    every = list(ablation.runs(2))
    names = [c.name for c in ablation.CONFIGURATIONS]
    assert len(set(names)) == len(names) and names[0] == table.DEFAULT
    assert len(every) == 2 * CASES * len(names) and len({run.key for run in every}) == len(every)
    first = every[: len(names)]
    assert [run.configuration.name for run in first] == names and len({run.key[1:] for run in first}) == 1
    assert {run.seed for run in every[: len(every) // 2]} == {0}
    assert {c.beside for c in ablation.CONFIGURATIONS} <= {"", *names}
    used = {c.request.get("guidance", "clamped") for c in ablation.CONFIGURATIONS}
    assert used == set(GUIDANCE), "every guidance has its row"


@pytest.fixture
def quick(monkeypatch):
    """The command without its minutes: a run is told by its place, latent paint is refused."""
    asked = []

    def measured(run, shelf, steps, views):
        asked.append(run.key)
        if run.configuration.name == "start: latent paint":
            raise ModelError("It has no latents.")
        if len(asked) == 100:
            raise KeyboardInterrupt
        return {key: len(run.prompt) + 0.1 * run.seed for key, *_ in table.FIGURES}

    monkeypatch.setattr(ablation, "measure", measured)
    monkeypatch.setattr(ablation, "shape_of", lambda kind: None)
    monkeypatch.setattr(_oracles, "view_words", lambda method: {"right": 6, "places": 6, "margin": 0.2})
    monkeypatch.setattr(_oracles, "baked_light", lambda method, family, wanted=True: 0.25 * wanted)
    return asked


def test_it_goes_on_where_it_was_broken_off(quick, tmp_path):
    file, page = tmp_path / "a.json", tmp_path / "a.md"
    arguments = ["--json", str(file), "--markdown", str(page)]
    assert ablation.main([*arguments, "--minutes", "-1"]) == 0 and not quick, (
        "no time: nothing begun, a file all the same"
    )
    assert json.loads(file.read_text())["rows"] == []
    with pytest.raises(KeyboardInterrupt):
        ablation.main(arguments)
    before = json.loads(file.read_text())["rows"]
    assert len(before) == 98, "all that was made is kept"
    assert ablation.main(arguments) == 0
    told = json.loads(file.read_text())
    wanted = 2 * CASES * (len(ablation.CONFIGURATIONS) - 1)
    assert told["rows"][:98] == before and len(told["rows"]) == wanted
    made = [tuple(r[k] for k in ("configuration", "prompt", "shape", "seed")) for r in told["rows"]]
    assert len(set(made)) == wanted
    assert told["refused"] == {"start: latent paint": "It has no latents."}
    assert sum(key[0] == "start: latent paint" for key in quick) == 1, "asked once"
    assert set(told["view_words"]) == set(told["baked_light"]) == set(GUIDANCE)
    assert all(set(each) == set(_oracles.FAMILIES) for each in told["baked_light"].values())
    assert f"{wanted} of {wanted} runs" in page.read_text()
    count = len(quick)
    assert ablation.main(arguments) == 0 and len(quick) == count, "nothing is made twice"


def test_runs_of_other_settings_or_weights_are_not_mixed(quick, tmp_path, capsys, monkeypatch):
    file = tmp_path / "a.json"
    assert ablation.main(["--json", str(file), "--minutes", "-1", "--steps", "7"]) == 0
    for wrong in (["--steps", "8"], ["--steps", "7", "--views", "0"]):
        with pytest.raises(SystemExit):
            ablation.main(["--json", str(file), "--minutes", "-1", *wrong])
    said = capsys.readouterr().err
    assert "holds runs with {'steps': 7, 'views': 2," in said and "not with {'steps': 8, 'views': 2," in said
    assert "must be at least 1" in said and not quick
    monkeypatch.setattr(ablation.built_in, "checksum", lambda: "of other weights")
    with pytest.raises(SystemExit):
        ablation.main(["--json", str(file), "--minutes", "-1", "--steps", "7"])
    assert "'prior': 'of other weights'" in capsys.readouterr().err


# --- what is measured -------------------------------------------------------------------------


def painted(mesh, prompt, change=None):
    """Maps (7, 64, 64) of one draw's mean colour, metallic and roughness, and what the generator means."""
    meant = ablation.meant_on(mesh, prompt, 3)
    draw = instances.draw(read(prompt).prompt, torch.Generator().manual_seed(5))  # the first of meant_on's
    textures = instances.textures_round(meant.gbuffer.position, meant.gbuffer.normal)
    surface = instances.surface_at(draw, meant.gbuffer.normal, textures)
    values = [*surface.base_color.mean(0).tolist(), float(surface.metallic.mean()), float(surface.roughness.mean())]
    found = torch.tensor([*values, 0.5, 0.5]).view(7, 1, 1).repeat(1, 64, 64)
    if change is not None:
        change(found)
    return ablation.relit(found, meant)


def test_relighting_sees_light_in_the_colour_a_wrong_metal_and_too_much_colour():
    mesh = shapes.mesh_of(shapes.sphere())
    right, chroma = painted(mesh, "matte purple plastic")
    assert right < 2.0 and abs(chroma) < 1.5

    def lit(found):  # brighter above than below
        found[:3] *= torch.linspace(0.6, 1.4, 64).view(1, 64, 1)

    def metal(found):
        found[3] = 1.0

    def garish(found):
        grey = found[:3].mean(0, keepdim=True)
        found[:3] = (grey + 1.4 * (found[:3] - grey)).clamp(0, 1)

    for change in (lit, metal, garish):
        assert painted(mesh, "matte purple plastic", change)[0] > right + 2.0, change.__name__
    assert painted(mesh, "matte purple plastic", garish)[1] > chroma + 5


def test_a_real_run_and_what_the_built_in_model_refuses(monkeypatch):
    monkeypatch.setattr(views, "FULL_VIEWS", 6)
    monkeypatch.setattr(views, "CLOSE_VIEWS", 4)
    monkeypatch.setattr(prior, "DRAWS", 3)
    monkeypatch.setattr(ablation, "SIZE", 64)
    for cached in (ablation.shape_of, ablation.facts_of, ablation.meant_by, ablation.pool_of):
        cached.cache_clear()
    shelf = ModelShelf()
    refused = {}
    refusing = {"perp_neg", "joint 2x2 views", "start: latent paint"}
    chosen = {"default", "nfsd", "vsd", "deep image prior", "sds", "negative prompt", "start: four views", *refusing}
    for configuration in (c for c in ablation.CONFIGURATIONS if c.name in chosen):
        run = ablation.Run(configuration, "teal plastic", "vase", 0)
        try:
            row = ablation.measure(run, shelf, 1, 1)
        except ModelError as error:
            refused[configuration.name] = str(error)
            continue
        assert set(row) == {key for key, *_ in table.FIGURES}
        assert all(math.isfinite(value) for value in row.values()) and row["cpu_seconds"] > 0
        assert 0 < row["relit"] < 40 and row["metallic_error"] < 1 and row["seam_jump"] < 0.2
    assert refused.keys() == refusing
    assert "“built-in” knows no view words. Switch Perp-Neg off" in refused["perp_neg"]
    for cached in (ablation.shape_of, ablation.facts_of, ablation.meant_by, ablation.pool_of):
        cached.cache_clear()


def test_seams_are_read_the_right_way_up():
    """What is painted by its place in space goes on across every cut; upside down or mirrored it does not."""
    where = material.texels(SHAPES["box"](), 128)
    image = torch.zeros(128 * 128, 7)
    image[where.index, :3] = where.position * 0.5 + 0.5
    image = image.view(128, 128, 7)
    right = ablation.seam_jump(image, where)
    assert right < 0.02
    assert min(ablation.seam_jump(image.flip(side), where) for side in (0, 1)) > 0.05 + right
