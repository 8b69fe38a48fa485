# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts as people type them, and what the built-in model makes of their words."""

import pytest
import torch

from backend.prior import vocabulary
from backend.prior.materials import COLOURS, FAMILY_WORDS, FINISHES, MATERIALS, Prompt
from backend.prior.vocabulary import read
from backend.prompts import PromptError


@pytest.mark.parametrize(
    "text, understood",
    [
        ("gold", Prompt("gold")),
        ("red plastic", Prompt("plastic", "red")),
        ("plastic, red", Prompt("plastic", "red")),
        ("Plastic that is RED!!", Prompt("plastic", "red")),
        ("dark green marble", Prompt("marble", "green", None, "dark")),
        ("marble of a dark green", Prompt("marble", "green", None, "dark")),
        ("polished pink marble", Prompt("marble", "pink", "polished")),
        ("a DSLR photo of a polished golden statue, highly detailed", Prompt("gold", None, "polished")),
        ("a photo of a cup made of worn wooden boards", Prompt("planks", None, "scratched")),
        ("rusted stainless-steel", Prompt("steel", None, "rusty")),
        ("stainless steel, brushed", Prompt("steel", None, "brushed")),
        ("carbon fibre", Prompt("carbon")),
        ("snake skin", Prompt("snakeskin")),
        ("checkerboard", Prompt("checks")),
        ("sky blue ceramic", Prompt("ceramic", "blue", None, "light")),
        ("off-white leather", Prompt("leather", "cream")),
        ("zebra", Prompt("zebra")),
        ("a zebra-striped vase", Prompt("zebra")),
        ("crocodile leather", Prompt("crocodile")),
        ("soft leopard fur", Prompt("leopard")),
        ("leather with stripes", Prompt("stripes")),
        ("4k seamless pbr texture of old bricks", Prompt("brick")),
        ("metal", Prompt("metal")),
        ("blue metal", Prompt("metal", "blue")),
        ("chipped blue paint", Prompt("paint", "blue", "chipped")),
        ("something rusty", Prompt("iron", None, "rusty")),
    ],
)  # fmt: skip
def test_prompts_are_understood(text, understood):
    assert read(text).prompt == understood


@pytest.mark.parametrize(
    "text",
    ["gold", "red plastic", "a DSLR photo of a polished golden statue, highly detailed", "dark green marble",
     "4k seamless pbr texture of old bricks", "the body of a toy in glossy yellow plastic", "rough grey stone wall"],
)  # fmt: skip
def test_ordinary_prompts_need_no_warning(text):
    assert read(text).warnings == ()


def test_what_it_does_not_know_is_named():
    (sentence,) = read("gold with flurbish engravings").warnings
    assert "“flurbish”" in sentence and "“engravings”" in sentence and "gold" not in sentence
    (sentence,) = read("redd plastic").warnings
    assert "“redd”" in sentence and "did you mean red?" in sentence
    (sentence,) = read("marbel and gold").warnings
    assert "did you mean marble?" in sentence


def test_a_colour_that_does_not_apply_is_named_and_left_out():
    reading = read("blue gold")
    assert reading.prompt == Prompt("gold")
    assert len(reading.warnings) == 1 and "“blue”" in reading.warnings[0] and "gold" in reading.warnings[0]
    painted = read("blue painted iron")
    assert painted.prompt == Prompt("iron", "blue", "painted") and not painted.warnings


def test_one_material_colour_and_finish_each_and_the_rest_is_named():
    reading = read("red and blue plastic")
    assert reading.prompt == Prompt("plastic", "red") and any("blue" in sentence for sentence in reading.warnings)
    reading = read("marble and gold")
    assert reading.prompt.material == "gold" and any("marble" in sentence for sentence in reading.warnings)
    reading = read("polished matte gold")
    assert reading.prompt.finish == "polished" and any("matte" in sentence for sentence in reading.warnings)


@pytest.mark.parametrize("text", ["a friendly dragonfly", "red", "very shiny", "!!!", "日本語", "a 3d house, 4k"])
def test_no_material_is_refused_with_the_list(text):
    with pytest.raises(PromptError) as caught:
        read(text)
    sentence = str(caught.value)
    assert text[:20] in sentence and "red plastic" in sentence
    assert all(material in sentence for material in MATERIALS)


@pytest.mark.parametrize("word", list(vocabulary.IMPOSSIBLE))
def test_what_four_opaque_maps_cannot_be_is_said(word):
    assert any("cannot" in sentence and f"“{word}”" in sentence for sentence in read(f"{word} gold").warnings)


def test_every_word_of_the_table_is_understood_as_itself():
    for material in MATERIALS:
        assert read(material).prompt == Prompt(material), material
    for word in FAMILY_WORDS:
        assert read(word).prompt.material == word
    for colour in COLOURS:
        assert read(f"{colour} plastic").prompt == Prompt("plastic", colour)
    for finish in FINISHES:
        assert read(f"{finish} iron").prompt == Prompt("iron", None, finish)


def test_synonyms_lead_to_known_words_and_no_list_contradicts_another():
    known = set(vocabulary.WORDS)
    assert len(known) == len(vocabulary.WORDS)
    for typed, meant in vocabulary.SYNONYMS.items():
        assert set(meant.split()) <= known, f"{typed} means {meant}, which the table does not hold"
    lists = (vocabulary.FILLERS, set(vocabulary.IMPOSSIBLE), set(vocabulary.SYNONYMS), known)
    for number, one in enumerate(lists):
        for other in lists[:number]:
            assert not one & other


def test_prompts_become_numbers():
    code = vocabulary.encode(Prompt("marble", "green", "polished", "dark"))
    assert code.shape == (vocabulary.SLOTS,)
    assert [vocabulary.WORDS[i] for i in code] == ["dark", "polished", "green", "marble"]
    assert (vocabulary.encode(None) == -1).all() and vocabulary.encode(None).shape == (vocabulary.SLOTS,)
    short = vocabulary.encode(Prompt("gold"))
    assert vocabulary.WORDS[short[0]] == "gold" and (short[1:] == -1).all()
    codes = torch.stack([vocabulary.encode(Prompt(m)) for m in MATERIALS])
    assert len(torch.unique(codes, dim=0)) == len(MATERIALS)
