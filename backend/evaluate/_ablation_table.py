# SPDX-License-Identifier: Apache-2.0
"""The ablation's rows as a table for people: means, paired differences and their standard errors. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

DEFAULT = "default"
# Key of a row, heading, digits, and whether less is better; None: neither is.
FIGURES = (
    ("relit", "relit CIEDE2000", 2, True),
    ("ciede2000", "colour CIEDE2000", 2, True),
    ("metallic_error", "metallic", 3, True),
    ("roughness_error", "roughness", 3, True),
    ("saturation", "saturation", 2, None),
    ("seam_jump", "seam jump", 4, True),
    ("cpu_seconds", "CPU s", 1, True),
)
BEYOND = 2.0  # standard errors

HOW_TO_READ = """\
# What each guidance and option is worth

Made by `python build.py evaluate ablation --json docs/ablation.json --markdown docs/ablation.md` on the built-in prior:
{prompts} on {shapes}, seeds {seeds}; {steps} steps of {views} views, far fewer than a *draft* has, so that all of it
can be run: read the differences, not the values. {made} of {wanted} runs of what the model does not refuse are in it.

A cell holds the mean over a configuration's runs and, in brackets, the mean difference to the runs of what it is beside
with the same prompt, shape and seed, ± its standard error. **Bold** differences are beyond two standard errors. About
one of twenty cells would be bold by chance ({cells} differences to the default are told), and runs of one prompt are
not independent: a bold difference is a reason to look closer. A default of the product changes for no other.

- *relit CIEDE2000*: the maps beside one and the same draw of the generator of the training materials (the nearest of
  six, its pattern at the same place) in ten pictures from new cameras under new lights; mean over the pixels. Light in
  the base colour, a wrong metal and a wrong normal all show here: they fit one light and not the next.
- *colour CIEDE2000*, *metallic*, *roughness*: errors of `evaluate prior`: the mean colour outside of the range of 90 of
  100 draws (0: inside), and the mean values beside the generator's.
- *saturation*: CIELAB chroma above that draw's; below 0 is paler. Nearer to 0 is better.
- *seam jump*: mean difference of the base colour (0 to 1) between both sides of the UV cuts, as written.
- *CPU s*: processor time of a run on one thread, without what is made once for all: the model, the rasterised views,
  what the words mean in them. The machine was shared: compare within the table.

The built-in model wants w = 1, and every method but *csd, w = 7.5* has it here. It reads no free text, so that *nfsd*
lacks the negative prompt it was published with, and then differs from *csd* at small timesteps alone. Weights: {prior}.
"""


class Named(Protocol):
    """ablation.Configuration, as far as it is looked at here."""

    name: str
    group: str
    beside: str


@dataclass(frozen=True)
class Compared:
    """Means over runs and over paired differences; `error` is the standard error of the latter, nan below two pairs."""

    mean: float
    runs: int
    difference: float
    error: float
    pairs: int

    @property
    def beyond(self) -> bool:
        return abs(self.difference) > BEYOND * self.error if self.pairs > 1 else False


def compare(rows: Sequence[dict], name: str, beside: str, figure: str) -> Compared:
    """Configuration `name` and its runs paired with those of `beside`. Raises ValueError where it has no runs."""
    mine, others = ({_place(row): row[figure] for row in rows if row["configuration"] == n} for n in (name, beside))
    if not mine:
        raise ValueError(f"There are no runs of {name}.")
    differences = [value - others[place] for place, value in mine.items() if place in others]
    mean, error = _mean_and_error(differences)
    return Compared(sum(mine.values()) / len(mine), len(mine), mean, error, len(differences))


def _place(row: dict) -> tuple:
    return row["prompt"], row["shape"], row["seed"]


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    count = len(values)
    if not count:
        return math.nan, math.nan
    mean = sum(values) / count
    if count == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)


def document(told: dict, configurations: Iterable[Named], wanted_each: int) -> str:
    """docs/ablation.md from the JSON's content; `wanted_each`: how many runs a configuration is to have."""
    rows, configurations = told["rows"], list(configurations)
    run = [c for c in configurations if any(row["configuration"] == c.name for row in rows)]
    strong = [c for c in run if c.beside]
    parts = [
        HOW_TO_READ.format(
            prompts=_listed(rows, "prompt"), shapes=_listed(rows, "shape"), seeds=_listed(rows, "seed"),
            **told["settings"], made=len(rows),
            wanted=wanted_each * (len(configurations) - len(told["refused"])),
            cells=len(FIGURES) * max(0, len(run) - 1),
        )
    ]  # fmt: skip
    for group in dict.fromkeys(c.group for c in run):
        chosen = [c for c in run if c.group == group and c.name != DEFAULT]
        first = [c for c in run if c.name == DEFAULT]
        parts.append(f"## {group.capitalize()}, beside the default\n\n" + _table(rows, [*first, *chosen], DEFAULT))
    for beside in dict.fromkeys(c.beside for c in strong):
        chosen = [c for c in run if beside in (c.name, c.beside)]
        parts.append(f"## Beside *{beside}*\n\n" + _table(rows, chosen, beside))
    parts.append(_verdict(rows, run))
    if told["refused"]:
        said = [f"- *{name}*: {sentence}" for name, sentence in told["refused"].items()]
        parts.append("## What the built-in model refuses\n\n" + "\n".join(said))
    if told["view_words"] or told["baked_light"]:
        parts.append(_oracles(told))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _listed(rows: Sequence[dict], key: str) -> str:
    return ", ".join(dict.fromkeys(str(row[key]) for row in rows)) or "none yet"


def _table(rows: Sequence[dict], chosen: Sequence[Named], beside: str) -> str:
    lines = [f"| | runs | {' | '.join(heading for _, heading, _, _ in FIGURES)} |", "|---" * (len(FIGURES) + 2) + "|"]
    for configuration in chosen:
        cells = [compare(rows, configuration.name, beside, key) for key, *_ in FIGURES]
        told = [
            _cell(c, digits, configuration.name == beside) for c, (_, _, digits, _) in zip(cells, FIGURES, strict=True)
        ]
        lines.append(f"| {configuration.name} | {cells[0].runs} | {' | '.join(told)} |")
    return "\n".join(lines)


def _cell(compared: Compared, digits: int, alone: bool) -> str:
    mean = f"{compared.mean:.{digits}f}"
    if alone or not compared.pairs:
        return mean
    difference = f"{compared.difference:+.{digits}f} ± {compared.error:.{digits}f}"
    return f"{mean} (**{difference}**)" if compared.beyond else f"{mean} ({difference})"


def _verdict(rows: Sequence[dict], run: Sequence[Named]) -> str:
    """Who beats, and who loses to, what it is beside, figure by figure."""
    lines = ["## Beyond two standard errors", ""]
    for key, heading, _, less_is_better in FIGURES:
        if less_is_better is None:
            continue
        better, worse = [], []
        for configuration in run:
            if configuration.name == DEFAULT:
                continue
            found = compare(rows, configuration.name, DEFAULT, key)
            if found.beyond:
                (better if found.difference < 0 else worse).append(configuration.name)
        lines.append(f"- *{heading}*: better {_names(better)}; worse {_names(worse)}.")
    return "\n".join(lines)


def _names(names: list[str]) -> str:
    return "; ".join(names) if names else "none"


def _oracles(told: dict) -> str:
    families = list(dict.fromkeys(family for each in told["baked_light"].values() for family in each))
    lines = [
        "## Models that know the answer",
        "",
        "*view words*: a model that wants red from the front, green from the sides, blue from behind and yellow from "
        "above, under lights that change: how many of six places of a sphere are nearer to their own colour than any "
        "place of other words is, and by how much at least (distance of display values). *baked light*: a model that "
        "wants one brown surface with one fixed light painted in: the deviation of the base colour that irradiance "
        "explains, as a share of its mean; in brackets with a model that paints under the lights it is given. Words at "
        "w = 7.5 with the product's rescaling, light at w = 1; the copy that vsd trains is one Gaussian here. Families "
        "differ in their timesteps and in what the noise lives in; nothing of a real network is in these numbers.",
        "",
        f"| | view words | {' | '.join(f'baked light, {family}' for family in families)} |",
        "|---" * (len(families) + 2) + "|",
    ]
    for method in dict.fromkeys([*told["view_words"], *told["baked_light"]]):
        views, light = told["view_words"].get(method), told["baked_light"].get(method, {})
        words = f"{views['right']} of {views['places']}, {views['margin']:.2f}" if views else ""
        shares = [f"{light[f]['wanted']:.2f} ({light[f]['not']:.2f})" if f in light else "" for f in families]
        lines.append(f"| {method} | {words} | {' | '.join(shares)} |")
    return "\n".join(lines)
