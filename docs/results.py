# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's section "How good are the maps", written from the evaluation's files.

    python build.py evaluate prior --json docs/prior.json --keep jobs
    python build.py evaluate prior --second-stage --json docs/prior_second_stage.json
    .venv/bin/python -m tests.blender.cycles_judge jobs docs/prior_cycles.json
    .venv/bin/python docs/results.py
"""

import json
from pathlib import Path

DOCS = Path(__file__).resolve().parent
START, END = "## How good are the maps\n", "## How true is the renderer\n"

INTRODUCTION = """\
Measured by `python build.py evaluate prior --json docs/prior.json` on all {pairs} pairs of its list, textured at
*draft*; the shapes (knot, vase, stairs, bowl) were never trained on. The judge is the generator of the training
materials itself (`backend/evaluate/prior.py`, `_patterned.py`): it says whether the maps are what the prior was taught,
not whether they look like the real thing; for that, look at the pictures. Not blind: the method was tuned on this
table, and the judge of patterns, which learns each pattern on the very shape it judges, was chosen with it.
"""


def _bold_if(missed: bool, text: str) -> str:
    return f"**{text}** (missed)" if missed else text


SECOND_STAGE = """\
With the second stage (`evaluate prior --second-stage`), on {pairs} pairs{older}: median CIEDE2000 {median_ciede2000},
metallic {metallic_error_metals} (metals) and {metallic_error_dielectrics} (dielectrics), roughness {roughness_error},
first rank {retrieval_first_rank:.0%} of {retrieval_pairs}.
"""


def section() -> str:
    results, cycles = (json.loads((DOCS / f"{n}.json").read_text("utf-8")) for n in ("prior", "prior_cycles"))
    total = results["summary"]
    lines = [
        INTRODUCTION.format(pairs=total["pairs"]),
        "| figure | measured | wanted |",
        "|---|---|---|",
        *(
            f"| {name} | {_bold_if(total[key] > most, str(total[key]))} | <= {most} |"
            for name, key, most in (
                ("base colour, median CIEDE2000 outside the generator's 5-95 % range", "median_ciede2000", 10),
                ("metallic, mean error on metals", "metallic_error_metals", 0.15),
                ("metallic, mean error on dielectrics", "metallic_error_dielectrics", 0.1),
                ("roughness, mean error", "roughness_error", 0.12),
            )
        ),
        f"| patterned materials found in the first rank, of {total['retrieval_pairs']} | "
        f"{_bold_if(total['retrieval_first_rank'] < 0.7, format(total['retrieval_first_rank'], '.0%'))} | >= 70 % |",
        f"| mean colour of result and generator under Cycles, median CIEDE2000 of {len(cycles['rows'])} results, "
        f"closest of two draws | {cycles['median']:.1f} | |",
        "",
        "| prompt on shape | CIEDE2000 | metallic | roughness (error) | pattern rank |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        grey = " (grey, rough: not counted)" if row["unidentifiable"] else ""
        colour, rank = f"{row['ciede2000']:.1f}", row.get("pattern_rank", "")
        metallic = f"{row['metallic']:.2f} ({row['kind']})"
        roughness = f"{row['roughness']:.2f} ({row['roughness_error']:.2f})"
        lines.append(f"| {row['prompt']} on {row['shape']}{grey} | {colour} | {metallic} | {roughness} | {rank} |")
    second = json.loads((DOCS / "prior_second_stage.json").read_text("utf-8"))
    older = sum(row.get("weights") != results["rows"][0]["weights"] for row in second["rows"])
    said = f" ({older} of them with the prior from before its finer textures)" if older else ""
    return "\n".join([*lines, "", SECOND_STAGE.format(**second["summary"], older=said)])


if __name__ == "__main__":
    readme = DOCS.parent / "README.md"
    text = readme.read_text("utf-8")
    before, after = text.split(START)[0], text.split(END, 1)[1]
    readme.write_text(f"{before}{START}{section()}\n{END}{after}", "utf-8")
