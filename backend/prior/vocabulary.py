# SPDX-License-Identifier: Apache-2.0
"""The words of the built-in prior: from a typed prompt to what the table knows.

Word order is free; synonyms are folded; filler words are dropped; what is left over is named in a
warning; a prompt without any material word is refused with the list.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..prompts import PromptError
from .materials import COLOURS, FAMILY_WORDS, FINISHES, MATERIALS, Prompt

TONES = ("light", "dark")
WORDS: tuple[str, ...] = (*MATERIALS, *FAMILY_WORDS, *COLOURS, *FINISHES, *TONES)
_INDEX = {word: number for number, word in enumerate(WORDS)}
SLOTS = 4  # tone, finish, colour, material

# typed -> known; several words are joined before single words are looked at
SYNONYMS = {
    "carbon fibre": "carbon", "carbon fiber": "carbon", "polka dots": "dots", "polka dot": "dots",
    "stainless steel": "steel", "cast iron": "iron", "wrought iron": "iron", "snake skin": "snakeskin",
    "snake": "snakeskin", "dragon scales": "dragon", "dragon skin": "dragon", "lapis lazuli": "lapis",
    "tree bark": "bark", "candy cane": "candy", "beeswax": "wax", "sky blue": "light blue",
    "dark red": "dark red", "off white": "cream", "wood planks": "planks",
    "wooden planks": "planks", "wood boards": "planks", "floor boards": "planks", "paving stones": "cobblestone",
    "golden": "gold", "silvery": "silver", "coppery": "copper", "aluminum": "aluminium", "chromed": "chrome",
    "chromium": "chrome", "metallic": "metal", "metals": "metal", "brazen": "brass", "tin": "aluminium",
    "wooden": "wood", "timber": "wood", "lumber": "wood", "board": "planks", "boards": "planks", "parquet": "planks",
    "plank": "planks", "oaken": "oak", "bricks": "brick", "brickwork": "brick", "tile": "tiles", "tiled": "tiles",
    "stony": "stone", "rock": "stone", "rocky": "stone", "cobble": "cobblestone", "cobbles": "cobblestone",
    "cobblestones": "cobblestone", "cement": "concrete", "basalt": "slate", "onyx": "obsidian",
    "china": "porcelain", "glazed": "glossy", "pottery": "ceramic", "earthenware": "terracotta",
    "stoneware": "ceramic", "plastics": "plastic", "acrylic": "plastic", "polymer": "plastic", "latex": "rubber",
    "pvc": "vinyl", "enamel": "lacquer", "lacquered": "lacquer", "varnished": "polished", "alligator": "crocodile",
    "croc": "crocodile", "reptile": "crocodile", "leathery": "leather", "cloth": "fabric", "textile": "fabric",
    "linen": "canvas", "jeans": "denim", "knit": "wool", "knitted": "wool", "woolen": "wool", "woollen": "wool",
    "yarn": "wool", "satiny": "satin", "silky": "silk", "plaid": "tartan", "sackcloth": "burlap", "jute": "burlap",
    "quilted": "quilt", "padded": "quilt", "striped": "stripes", "stripe": "stripes", "checked": "checks",
    "checkered": "checks", "chequered": "checks", "checkerboard": "checks", "checker": "checks", "check": "checks",
    "chessboard": "checks", "dotted": "dots", "dot": "dots", "spotted": "spots", "spot": "spots", "spotty": "spots",
    "camo": "camouflage", "furry": "fur", "cheetah": "leopard", "jaguar": "leopard", "holstein": "cow",
    "sandy": "sand", "dune": "sand", "snowy": "snow", "icy": "ice", "frozen": "ice", "grassy": "grass",
    "lawn": "grass", "muddy": "mud", "soil": "mud", "earth": "mud", "pebbles": "gravel", "magma": "lava",
    "molten": "lava", "choco": "chocolate", "biscuit": "cookie", "candle": "wax", "ivory": "bone", "skeleton": "bone",
    "nacre": "pearl", "carton": "cardboard", "shiny": "polished", "mirror": "polished", "gleaming": "polished",
    "smooth": "polished", "lustrous": "polished", "gloss": "glossy", "semi-gloss": "satin", "semigloss": "satin",
    "matt": "matte", "flat": "matte", "dull": "matte", "coarse": "rough", "unpolished": "rough", "raw": "rough",
    "beaten": "hammered", "dented": "hammered", "scuffed": "scratched", "worn": "scratched", "weathered": "dirty",
    "used": "scratched", "rusted": "rusty", "rust": "rusty", "corroded": "rusty", "oxidized": "oxidised",
    "verdigris": "oxidised", "patinated": "oxidised", "tarnished": "oxidised", "peeling": "chipped",
    "flaking": "chipped", "coated": "painted", "damp": "wet", "dusty": "dirty", "grimy": "dirty", "filthy": "dirty",
    "soiled": "dirty", "overgrown": "mossy", "scarlet": "red", "crimson": "red", "ruby": "red", "emerald": "green",
    "azure": "blue", "cobalt": "blue", "indigo": "navy", "violet": "purple", "lilac": "purple", "fuchsia": "magenta",
    "rose": "pink", "amber": "orange", "tan": "beige", "khaki": "olive", "cyan": "turquoise", "aqua": "turquoise",
    "gray": "grey", "charcoal": "black", "deep": "dark", "pale": "light", "pastel": "light", "bright": "light",
}  # fmt: skip

FILLERS = frozenset(
    """a an the of on in at with and or for from to by is it this that my our made all over very highly high ultra super
    detailed detail details quality resolution photo photograph photography dslr picture image render rendering rendered
    3d realistic photorealistic photoreal real hyperrealistic beautiful nice good best masterpiece professional studio
    style styled look looking texture textured textures material surface pbr seamless 4k 8k hd uhd sharp focus object
    thing model mesh wall floor statue sculpture figurine toy vase cup ball sphere cube monkey cow's head body skin
    pattern patterned print printed finish color colour colored coloured natural old new ancient antique vintage modern
    some piece covered completely entirely pure solid simple clean fine large small big""".split()
)
# "Leopard fur", "zebra stripes": the animal says which fur and which stripes.
COATS = frozenset("zebra tiger leopard giraffe cow dalmatian crocodile snakeskin dragon".split())
COAT_WORDS = frozenset("fur leather stripes spots".split())
# Words for what four opaque maps cannot be.
IMPOSSIBLE = {
    "glass": "transparent glass", "crystal": "transparent crystal", "transparent": "transparency",
    "translucent": "translucency", "hair": "hair strands", "glowing": "light emission", "neon": "light emission",
    "emissive": "light emission", "luminous": "light emission", "water": "water", "holographic": "iridescence",
    "iridescent": "iridescence", "fuzzy": "fibres standing off the surface",
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """A prompt as the prior understood it, and sentences about what it did not."""

    prompt: Prompt
    warnings: tuple[str, ...]


def encode(prompt: Prompt | None) -> Tensor:
    """Word numbers (4,) int16, -1 where unused; None gives the unconditional code."""
    numbers = [_INDEX[word] for word in prompt.words] if prompt else []
    return torch.tensor(numbers + [-1] * (SLOTS - len(numbers)), dtype=torch.int16)


def read(text: str) -> Reading:
    """Understand a typed prompt. Raises PromptError when it names no material."""
    words = _fold(text)
    materials = [w for w in words if w in MATERIALS]
    if COATS & set(materials):
        materials = [w for w in materials if w not in COAT_WORDS]
    families = [w for w in words if w in FAMILY_WORDS]
    colours, finishes = [w for w in words if w in COLOURS], [w for w in words if w in FINISHES]
    tones = [w for w in words if w in TONES]
    impossible = [word for word in words if word in IMPOSSIBLE]
    warnings = [f"The built-in model cannot make {IMPOSSIBLE[w]}; the word “{w}” is ignored." for w in impossible]
    unknown = [w for w in words if w not in _INDEX and w not in FILLERS and w not in IMPOSSIBLE]
    if unknown:
        warnings.append("The built-in model does not know " + ", ".join(f"“{w}”{_hint(w)}" for w in unknown) + ".")
    named = materials or families
    if not named and finishes and finishes[0] in ("painted", "chipped"):
        named = ["paint"]
    if not named and finishes and finishes[0] in ("rusty", "brushed", "hammered"):
        named = ["iron"]
    if not named:
        raise PromptError(
            f"The built-in model finds no material in “{text.strip()[:80]}”. It knows: "
            + ", ".join([*MATERIALS, *FAMILY_WORDS])
            + ". Add one of these, for example “red plastic”, or choose another model."
        )
    material = named[-1]  # the head of an English noun phrase stands last
    finish = min(finishes, key=list(FINISHES).index, default=None) if "chipped" not in finishes else "chipped"
    colour = colours[0] if colours else None
    choices = (("material", materials, material), ("finish", finishes, finish), ("colour", colours, colour))
    for kind, found, kept in choices:
        ignored = [w for w in dict.fromkeys(found) if w != kept]
        if ignored:
            warnings.append(f"The built-in model uses one {kind}, “{kept}”; it leaves out {', '.join(ignored)}.")
    takes_colour = material in FAMILY_WORDS or MATERIALS[material].tintable or finish in ("painted", "chipped")
    if colour and not takes_colour:
        warnings.append(f"The built-in model knows {material} in its own colours only; “{colour}” is ignored.")
        colour = None
    return Reading(Prompt(material, colour, finish, tones[0] if tones else None), tuple(warnings))


def _fold(text: str) -> list[str]:
    text = " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))  # "zebra-striped" is two words
    for phrase, known in SYNONYMS.items():
        if " " in phrase:
            text = re.sub(rf"\b{re.escape(phrase)}\b", known, text)
    return [SYNONYMS.get(word, word) for word in text.split()]


def _hint(word: str) -> str:
    near = difflib.get_close_matches(word, [*WORDS, *SYNONYMS], n=1, cutoff=0.8)
    return f" (did you mean {SYNONYMS.get(near[0], near[0])}?)" if near else ""
