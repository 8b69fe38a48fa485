# SPDX-License-Identifier: Apache-2.0
"""The procedural materials the built-in prior learns, as one table.

A material mixes two components by a pattern (patterns.py). Colours are display values (sRGB, 0..1),
as an artist picks them. Colour words replace the first component where `tintable`; finish words
change roughness and relief. This file is the prior's whole knowledge of the world, and the judge of
`evaluate prior`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from . import patterns
from .patterns import Pattern

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Component:
    """Display colours to pick between, roughness range and metallic value of one component."""

    colours: tuple[Colour, ...]
    roughness: tuple[float, float]
    metallic: float = 0.0


@dataclass(frozen=True)
class Material:
    family: str
    first: Component
    pattern: Pattern = patterns.plain
    second: Component | None = None  # None: the first, darker
    variation: float = 0.1  # lightness change between cells, grains or boards
    relief: float = 0.0  # height of the pattern
    tintable: bool = False
    finishes: tuple[str, ...] = ()  # finish words that make sense
    own_colours: tuple[str, ...] = ()  # colour words for what it is anyway: red brick is no painted brick


def _hex(code: str) -> Colour:
    value = int(code, 16)
    return ((value >> 16 & 255) / 255, (value >> 8 & 255) / 255, (value & 255) / 255)


def _part(codes: str, roughness: tuple[float, float], metallic: float = 0.0) -> Component:
    return Component(tuple(_hex(code) for code in codes.split()), roughness, metallic)


COLOURS: dict[str, Colour] = {
    "red": _hex("C4201C"),
    "orange": _hex("E67A17"),
    "yellow": _hex("EBC51D"),
    "lime": _hex("96C81E"),
    "green": _hex("2C8A34"),
    "olive": _hex("6B6B2A"),
    "teal": _hex("14807C"),
    "turquoise": _hex("35C0BC"),
    "blue": _hex("2450B8"),
    "navy": _hex("1B2650"),
    "purple": _hex("6A2E96"),
    "magenta": _hex("BE2A86"),
    "pink": _hex("EE95B2"),
    "brown": _hex("6B4226"),
    "beige": _hex("D6C29E"),
    "cream": _hex("F0E6CA"),
    "white": _hex("EBEBE8"),
    "grey": _hex("86868A"),
    "black": _hex("1C1C1E"),
}

# finish -> roughness range of the first component
FINISHES: dict[str, tuple[float, float]] = {
    "polished": (0.08, 0.18),
    "glossy": (0.1, 0.2),
    "satin": (0.32, 0.42),
    "matte": (0.65, 0.85),
    "rough": (0.8, 0.95),
    "brushed": (0.3, 0.42),
    "hammered": (0.18, 0.3),
    "scratched": (0.3, 0.45),
    "rusty": (0.3, 0.45),
    "oxidised": (0.3, 0.45),
    "chipped": (0.3, 0.5),
    "painted": (0.3, 0.5),
    "wet": (0.08, 0.2),
    "dirty": (0.6, 0.8),
    "mossy": (0.7, 0.9),
}
SMOOTH = ("polished", "glossy", "satin", "matte")
METAL = ("polished", "satin", "matte", "brushed", "hammered", "scratched", "dirty")
IRON = (*METAL, "rusty", "painted", "chipped")
COPPER = (*METAL, "oxidised")
STONE = ("polished", "rough", "wet", "mossy", "dirty")
WOOD = ("polished", "matte", "rough", "painted", "wet", "dirty")

_P = patterns
MATERIALS: dict[str, Material] = {
    # metals
    "gold": Material("metal", _part("FFD35C F7C548", (0.12, 0.3), 1.0), finishes=METAL),
    "silver": Material("metal", _part("F2F0EA EAE8E2", (0.12, 0.3), 1.0), finishes=METAL),
    "copper": Material("metal", _part("F2A084 E8956F", (0.15, 0.35), 1.0), finishes=COPPER),
    "bronze": Material("metal", _part("B8864F A8743C", (0.2, 0.4), 1.0), finishes=COPPER),
    "brass": Material("metal", _part("DCC06A D0B25A", (0.15, 0.35), 1.0), finishes=COPPER),
    "iron": Material("metal", _part("8C8884 7C7874", (0.3, 0.5), 1.0), finishes=IRON),
    "steel": Material("metal", _part("B8BABC A8AAAE", (0.18, 0.38), 1.0), finishes=IRON),
    "aluminium": Material("metal", _part("DADCDE CFD2D4", (0.22, 0.42), 1.0), finishes=METAL),
    "chrome": Material("metal", _part("D2D5D6 C8CCCE", (0.06, 0.12), 1.0), finishes=("scratched", "dirty")),
    "titanium": Material("metal", _part("A8A29A 98928A", (0.28, 0.45), 1.0), finishes=METAL),
    "lead": Material("metal", _part("6E7076 62646A", (0.45, 0.65), 1.0), finishes=("hammered", "scratched", "dirty")),
    # stone
    "marble": Material(
        "stone", _part("ECEAE4 E4E0D8", (0.12, 0.28)), _P.veins, _part("7E7C7A 9A8A70", (0.15, 0.3)), 0.08,
        tintable=True, finishes=STONE,
    ),
    "granite": Material(
        "stone", _part("9A9490 A88E86", (0.25, 0.5)), _P.speckles, _part("3A3836 5A5048", (0.2, 0.4)), 0.25,
        tintable=True, finishes=STONE,
    ),
    "slate": Material("stone", _part("4A5058 555A5E", (0.55, 0.75)), _P.clouds, None, 0.4, 0.3, finishes=STONE),
    "sandstone": Material("stone", _part("CFA878 C89868", (0.75, 0.92)), _P.ripples, None, 0.35, 0.2, finishes=STONE),
    "limestone": Material("stone", _part("D2C8B2 C6BCA6", (0.7, 0.9)), _P.clouds, None, 0.12, 0.2, finishes=STONE),
    "concrete": Material("stone", _part("9C9A96 8E8C88", (0.75, 0.92)), _P.grains, None, 0.12, 0.15, finishes=STONE),
    "cobblestone": Material(
        "stone", _part("86827C 787068", (0.6, 0.8)), _P.cracks, _part("3C3832 48423A", (0.85, 0.95)), 0.25, 0.8,
        finishes=("wet", "mossy", "dirty"),
    ),
    "terrazzo": Material(
        "stone", _part("E4DED4 D8D0C4", (0.15, 0.3)), _P.chips, _part("8A5A44 7E5240", (0.15, 0.3)), 0.1,
        tintable=True,
    ),
    "obsidian": Material("stone", _part("16161A 1C1A1E", (0.06, 0.14)), finishes=("scratched",)),
    "jade": Material("stone", _part("3E8E62 5AA878", (0.12, 0.25)), _P.clouds, None, 0.25, finishes=("polished",)),
    "lapis": Material("stone", _part("1E3C8C 24469A", (0.15, 0.3)), _P.speckles, _part("D8B45A", (0.2, 0.35), 1.0), 0.2),
    "malachite": Material("stone", _part("1E7A52 2A8E60", (0.15, 0.3)), _P.grain, _part("0C4A34", (0.15, 0.3)), 0.2),
    # masonry
    "brick": Material(
        "masonry", _part("8E4634 9A5040 803E2E", (0.75, 0.92)), _P.bricks, _part("B8B0A4 A49C90", (0.85, 0.95)),
        0.3, 0.5, tintable=True, finishes=("painted", "mossy", "wet", "dirty"), own_colours=("red",),
    ),
    "tiles": Material(
        "masonry", _part("DCDCD4 D2D4CE", (0.1, 0.25)), _P.tiles, _part("8A8682 9A968E", (0.75, 0.9)),
        0.12, 0.4, tintable=True, finishes=("glossy", "matte", "dirty"),
    ),
    "mosaic": Material(
        "masonry", _part("2E6E9A 3A82A0", (0.15, 0.3)), _P.tiles, _part("D0CCC2", (0.75, 0.9)), 0.9, 0.4,
        tintable=True,
    ),
    # wood
    "oak": Material("wood", _part("BE9460 B2864E", (0.45, 0.65)), _P.grain, _part("7E5428", (0.5, 0.7)), 0.15, 0.08, finishes=WOOD),
    "pine": Material("wood", _part("E0BC82 D6AE70", (0.45, 0.65)), _P.grain, _part("AC7434", (0.5, 0.7)), 0.12, 0.08, finishes=WOOD),
    "walnut": Material("wood", _part("78533A 6C482E", (0.4, 0.6)), _P.grain, _part("3C2414", (0.45, 0.65)), 0.15, 0.08, finishes=WOOD),
    "mahogany": Material("wood", _part("84402A 7A3820", (0.3, 0.5)), _P.grain, _part("4A1C0E", (0.35, 0.55)), 0.12, 0.05, finishes=WOOD),
    "ebony": Material("wood", _part("38302C 302824", (0.3, 0.5)), _P.grain, _part("181210", (0.3, 0.5)), 0.15, 0.05, finishes=WOOD),
    "bamboo": Material("wood", _part("D8BE7A C8AC64", (0.35, 0.55)), _P.planks, _part("8A6E30", (0.5, 0.7)), 0.2, 0.3),
    "planks": Material("wood", _part("9C7248 8A6440", (0.55, 0.75)), _P.planks, _part("3E2814", (0.7, 0.9)), 0.4, 0.3, tintable=True, finishes=WOOD),
    "bark": Material("wood", _part("6E5A46 5E4A38", (0.85, 0.95)), _P.bark, _part("2C2018", (0.9, 0.97)), 0.3, 0.9, finishes=("mossy", "wet")),
    "birch": Material("wood", _part("E6E2D8 DCD6CA", (0.65, 0.85)), _P.birch, _part("2E2A28", (0.7, 0.9)), 0.1, 0.2),
    "cork": Material("wood", _part("C09060 B48454", (0.8, 0.95)), _P.speckles, _part("6E4420", (0.85, 0.95)), 0.25, 0.1),
    # ceramic, glassless
    "porcelain": Material("ceramic", _part("F0EFEA E8E8E4", (0.06, 0.15)), tintable=True, finishes=("glossy", "matte", "painted")),
    "ceramic": Material("ceramic", _part("D8D2C6 CEC8BC", (0.1, 0.25)), tintable=True, finishes=SMOOTH),
    "terracotta": Material("ceramic", _part("B8623E C0704A", (0.75, 0.92)), _P.clouds, None, 0.1, finishes=("painted", "mossy", "dirty", "rough")),
    "clay": Material("ceramic", _part("A0826A 96785E", (0.75, 0.92)), _P.clouds, None, 0.1, 0.1, tintable=True, finishes=("wet", "rough")),
    # plastic, rubber
    "plastic": Material("plastic", _part("D8D8D4 CCCCC8", (0.2, 0.45)), tintable=True, finishes=(*SMOOTH, "scratched", "dirty")),
    "rubber": Material("plastic", _part("222224 2C2C2E", (0.7, 0.9)), tintable=True, finishes=("dirty", "wet")),
    "vinyl": Material("plastic", _part("1A1A1C 242426", (0.2, 0.35)), tintable=True, finishes=SMOOTH),
    "paint": Material("plastic", _part("E2E0DA D8D6D0", (0.15, 0.4)), tintable=True, finishes=(*SMOOTH, "chipped", "dirty")),
    "lacquer": Material("plastic", _part("8E1210 961A14", (0.06, 0.14)), tintable=True, finishes=("scratched",)),
    "carbon": Material("plastic", _part("2A2A2E 242428", (0.15, 0.3)), _P.weave, _part("101012", (0.15, 0.3)), 0.2, 0.05),
    # leather and skins
    "leather": Material("leather", _part("6E4022 5A3218 7A4A2A", (0.4, 0.6)), _P.pebbles, None, 0.15, 0.12, tintable=True, finishes=(*SMOOTH, "rough", "dirty")),
    "suede": Material("leather", _part("A88058 9A7048", (0.88, 0.97)), _P.clouds, None, 0.15, tintable=True),
    "crocodile": Material("leather", _part("3E4A2C 4A3C26", (0.3, 0.5)), _P.cracks, None, 0.3, 0.8, tintable=True),
    "snakeskin": Material("leather", _part("8E8A5A 7A6E48", (0.3, 0.5)), _P.scales, _part("2A2818", (0.4, 0.6)), 0.8, 0.4, tintable=True),
    "dragon": Material("leather", _part("2E6E3A 387442", (0.25, 0.4)), _P.scales, _part("18240E", (0.4, 0.6)), 0.3, 0.8, tintable=True),
    # fabric
    "cotton": Material("fabric", _part("E4DFD4 DAD4C6", (0.85, 0.95)), _P.weave, None, 0.1, 0.05, tintable=True),
    "denim": Material("fabric", _part("3A5078 324870", (0.85, 0.95)), _P.weave, _part("8294B0", (0.85, 0.95)), 0.2, 0.08, tintable=True, finishes=("dirty",)),
    "wool": Material("fabric", _part("D8CCB4 CCC0A8", (0.9, 0.97)), _P.knit, None, 0.2, 0.3, tintable=True),
    "silk": Material("fabric", _part("B02440 A82A48", (0.28, 0.42)), _P.clouds, None, 0.12, tintable=True),
    "velvet": Material("fabric", _part("5A1030 541436", (0.8, 0.92)), _P.clouds, None, 0.35, tintable=True),
    "canvas": Material("fabric", _part("C8B890 BCAA80", (0.88, 0.96)), _P.weave, None, 0.15, 0.1, tintable=True, finishes=("painted", "dirty")),
    "burlap": Material("fabric", _part("B09058 A4844C", (0.9, 0.97)), _P.weave, _part("6A4E24", (0.9, 0.97)), 0.3, 0.3),
    "felt": Material("fabric", _part("2C6A3A 326E42", (0.92, 0.98)), _P.grains, None, 0.1, tintable=True),
    "tartan": Material("fabric", _part("A01E22 9A2428", (0.85, 0.95)), _P.tartan, _part("161C30", (0.85, 0.95)), 0.05, tintable=True),
    "quilt": Material("fabric", _part("4A6A9A 52709C", (0.75, 0.9)), _P.quilt, None, 0.1, 0.7, tintable=True),
    # animal and drawn patterns
    "zebra": Material("skin", _part("EEEAE2", (0.7, 0.88)), _P.zebra, _part("161414", (0.7, 0.88)), 0.05),
    "tiger": Material("skin", _part("D88430 CE7A28", (0.7, 0.88)), _P.tiger, _part("1A1410", (0.7, 0.88)), 0.1),
    "leopard": Material("skin", _part("D2A45C C8964C", (0.7, 0.88)), _P.rosettes, _part("22160C", (0.7, 0.88)), 0.15),
    "giraffe": Material("skin", _part("A8662C 9A5A26", (0.7, 0.88)), _P.cracks, _part("EAD6A8", (0.7, 0.88)), 0.15),
    "cow": Material("skin", _part("EEECE6", (0.7, 0.88)), _P.hide, _part("1E1A18", (0.7, 0.88)), 0.05),
    "dalmatian": Material("skin", _part("F0EEEA", (0.7, 0.88)), _P.blotches, _part("181616", (0.7, 0.88)), 0.03),
    "fur": Material("skin", _part("7A5A3A 846444", (0.85, 0.95)), _P.strands, None, 0.3, 0.2, tintable=True),
    "stripes": Material("drawn", _part("EDEBE6", (0.35, 0.6)), _P.stripes, _part("24366E 2A3C74", (0.35, 0.6)), 0.03, tintable=True, finishes=SMOOTH),
    "checks": Material("drawn", _part("EBEAE6", (0.25, 0.5)), _P.checks, _part("1C1C1E", (0.25, 0.5)), 0.03, tintable=True, finishes=SMOOTH),
    "dots": Material("drawn", _part("EDEBE6", (0.35, 0.6)), _P.dots, _part("C4201C BC2820", (0.35, 0.6)), 0.03, tintable=True, finishes=SMOOTH),
    "camouflage": Material("drawn", _part("6E7048", (0.75, 0.92)), _P.camouflage, _part("2C2E20", (0.75, 0.92)), 0.05),
    "spots": Material("drawn", _part("EDE6D2", (0.4, 0.65)), _P.blotches, _part("B02A20 A83024", (0.4, 0.65)), 0.05, tintable=True),
    # ground
    "sand": Material("ground", _part("D8BC86 CCAE78", (0.88, 0.97)), _P.ripples, _part("A8864E", (0.9, 0.97)), 0.25, 0.3, finishes=("wet",)),
    "moss": Material("ground", _part("4E6A22 5E7A2C", (0.9, 0.98)), _P.clouds, _part("2A3C10", (0.9, 0.98)), 0.5, 0.6),
    "snow": Material("ground", _part("F0F3F6 E8EDF2", (0.6, 0.8)), _P.clouds, None, 0.04, 0.25, finishes=("dirty", "wet")),
    "grass": Material("ground", _part("4A7A26 5A8A30", (0.75, 0.9)), _P.strands, _part("22400E", (0.8, 0.95)), 0.4, 0.5),
    "mud": Material("ground", _part("5E4630 523C28", (0.6, 0.8)), _P.cracks, _part("2C1E12", (0.8, 0.95)), 0.15, 0.5, finishes=("wet",)),
    "gravel": Material("ground", _part("8A8680 7A746C", (0.8, 0.95)), _P.scales, _part("3A3630", (0.9, 0.97)), 0.7, 0.9, finishes=("wet", "dirty")),
    "lava": Material("ground", _part("221C1A 2A2220", (0.6, 0.85)), _P.cracks, _part("D8480E E8641A", (0.7, 0.9)), 0.2, 0.7),
    "ice": Material("ground", _part("C2DCE8 B4D2E2", (0.08, 0.2)), _P.veins, _part("EEF5F8", (0.15, 0.3)), 0.1, finishes=("scratched",)),
    # food and stylised
    "chocolate": Material("food", _part("4A2818 3E2012", (0.3, 0.48)), finishes=("glossy", "matte")),
    "cheese": Material("food", _part("EEBE48 E6B23C", (0.4, 0.58)), _P.blotches, _part("B87E1E", (0.45, 0.65)), 0.05, 0.6),
    "bread": Material("food", _part("C08444 B07436", (0.75, 0.9)), _P.clouds, _part("E6CC98", (0.8, 0.92)), 0.2, 0.2),
    "cookie": Material("food", _part("C8945A BC864C", (0.75, 0.9)), _P.chips, _part("3A1E10", (0.35, 0.55)), 0.1, 0.4),
    "watermelon": Material("food", _part("4E8E3A 5A9A44", (0.25, 0.42)), _P.zebra, _part("17401C", (0.25, 0.42)), 0.1),
    "strawberry": Material("food", _part("C8202A BE1820", (0.25, 0.42)), _P.dots, _part("E6C85A", (0.4, 0.6)), 0.05, -0.4),
    "candy": Material("food", _part("F4F0EE", (0.08, 0.2)), _P.stripes, _part("D01E30", (0.08, 0.2)), 0.02, tintable=True),
    "wax": Material("food", _part("E8D8B0 DCC898", (0.35, 0.55)), tintable=True),
    "bone": Material("food", _part("E2D8BE D6CAAC", (0.45, 0.68)), _P.clouds, None, 0.12),
    "pearl": Material("food", _part("F0E8E2 E6E0E4", (0.12, 0.24))),
    "cardboard": Material("paper", _part("B48A5A A87E4E", (0.85, 0.95)), _P.grains, None, 0.08, finishes=("wet", "dirty")),
    "paper": Material("paper", _part("ECE8DE E4DECE", (0.85, 0.95)), _P.grains, None, 0.03, tintable=True),
}  # fmt: skip

# Words for a whole family draw one of its members.
FAMILY_WORDS: dict[str, tuple[str, ...]] = {
    "metal": ("steel", "iron", "aluminium", "titanium"),
    "wood": ("oak", "pine", "walnut", "mahogany"),
    "stone": ("granite", "limestone", "slate", "concrete"),
    "fabric": ("cotton", "canvas", "felt"),
}

RUST = _part("7A4526 703A1E 804A28", (0.82, 0.95))
VERDIGRIS = _part("5A9A86 4E8A7C 6AAA94", (0.75, 0.92))
MOSS = _part("4E6A22 3E5A1C", (0.88, 0.97))
DIRT = _part("4A3C2C 3E3224", (0.85, 0.95))
BARE_STEEL = _part("A8AAAC 9C9E9F", (0.25, 0.4), 1.0)


@dataclass(frozen=True)
class Covering:
    """What a finish lays over parts of a material or, with a relief below 0, bares where it is chipped off."""

    part: Component
    mottling: float = 1.0  # change of lightness within it
    relief: float = 0.15


COVERINGS = {
    "rusty": Covering(RUST),
    "oxidised": Covering(VERDIGRIS),
    "mossy": Covering(MOSS),
    "dirty": Covering(DIRT),
    "chipped": Covering(BARE_STEEL, mottling=0.0, relief=-0.15),
}


@dataclass(frozen=True)
class Prompt:
    """What the prior understands of a prompt: one material, at most one colour, one finish, light or dark."""

    material: str
    colour: str | None = None
    finish: str | None = None
    tone: str | None = None  # "light" | "dark"

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(w for w in (self.tone, self.finish, self.colour, self.material) if w)


def prompts() -> list[Prompt]:
    """Every combination the table allows, without the tone words."""
    found = []
    for name, material in MATERIALS.items():
        colours = [None, *COLOURS] if material.tintable else [None]
        for finish in (None, *material.finishes):
            allowed = COLOURS if finish in ("painted", "chipped") else colours
            found += [Prompt(name, colour, finish) for colour in allowed]
    return found


def table_version() -> int:
    """A checksum of the table, written into the model card's training facts."""
    return zlib.crc32(repr(sorted(MATERIALS)).encode() + repr(sorted(COLOURS)).encode())
