# SPDX-License-Identifier: Apache-2.0
"""Which prompts are trained on, and which never: random draws from the table."""

from __future__ import annotations

import torch

from .. import materials

DROP_WORDS = 0.1  # share of examples shown without words: the unconditional branch

# Never drawn for training: what `evaluate prior` measures generalisation on.
HELD_OUT_PROMPTS = frozenset(
    {
        materials.Prompt("plastic", "teal"),
        materials.Prompt("plastic", "purple", "matte"),
        materials.Prompt("porcelain", "green"),
        materials.Prompt("leather", "navy"),
        materials.Prompt("brass", None, "hammered"),
        materials.Prompt("bronze", None, "oxidised"),
        materials.Prompt("titanium", None, "brushed"),
        materials.Prompt("iron", "orange", "painted"),
        materials.Prompt("brick", "yellow"),
        materials.Prompt("checks", "pink"),
    }
)


def random_prompt(generator: torch.Generator, often: tuple[str, ...] = ()) -> materials.Prompt:
    """A prompt outside the held-out ones, materials equally often; every second one of `often`, where given."""

    def chance(p: float) -> bool:
        return float(torch.rand((), generator=generator)) < p

    def pick(items: tuple | list) -> str:
        return items[int(torch.randint(len(items), (), generator=generator))]

    while True:
        name = pick(often) if often and chance(0.5) else pick([*materials.MATERIALS, *materials.FAMILY_WORDS])
        material = materials.MATERIALS.get(name)
        if material is None:
            return materials.Prompt(name)
        finish = pick(material.finishes) if material.finishes and chance(0.5) else None
        paintable = finish in ("painted", "chipped")
        colour = pick(list(materials.COLOURS)) if (paintable or (material.tintable and chance(0.6))) else None
        tone = pick(("light", "dark")) if chance(0.1) and (colour or not material.tintable) else None
        if materials.Prompt(name, colour, finish) not in HELD_OUT_PROMPTS:
            return materials.Prompt(name, colour, finish, tone)
