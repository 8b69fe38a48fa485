# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's section "How true is the renderer", written from the evaluations' files.

    python build.py evaluate parity|recovery|seams|speed --json docs/parity.json|recovery.json|seams.json|speed.json
    .venv/bin/python docs/renderer.py
"""

import json
from pathlib import Path

DOCS = Path(__file__).resolve().parent
START, END = "## How true is the renderer\n", "## Beside the others\n"
RECOVERY = (
    ("relit_db", "under ten lights and from ten cameras never used: mean PSNR, dB"),
    ("relit_worst_db", "the worst picture of all, dB"),
    ("ciede2000", "base colour, mean CIEDE2000, worst run"),
    ("metallic_error", "metallic where pictures tell it, mean error, worst run"),
    ("roughness_error", "roughness where pictures tell it, mean error, worst run"),
    ("normal_deg", "normal, mean degrees, worst run"),
    ("baked_light", "light left in a uniform base colour, share of its mean, worst run"),
)


def parity(told: dict) -> list[str]:
    earlier = told.get("earlier", {"groups": {}})
    lines = [
        f"**Beside Cycles** (`evaluate parity`, Blender {told['blender']}, {told['pictures']} of {told['of']}",
        "pictures; relative error over interior pixels; [ours, Cycles', difference x 20](docs/parity.png)):",
        "",
        "| light, mesh | pictures | mean | worst picture |",
        "|---|---|---|---|",
    ]
    for name, group in sorted({**told["groups"], **earlier["groups"]}.items()):
        star = " *" if name in earlier["groups"] else ""
        lines.append(f"| {name}{star} | {group['pictures']} | {group['mean']:.2%} | {group['worst']:.2%} |")
    if earlier["groups"]:
        lines += ["", f"\\* measured before the last changes of the shading (commit {earlier['commit']})."]
    return lines


def recovery(told: dict) -> list[str]:
    summary, size = told["summary"], told["rows"][0]["size"]
    steps = sorted({row["steps"] for row in told["rows"]})
    lines = [
        f"**Known maps come back** (`evaluate recovery`: {summary['runs']} runs with a model that knows the answer,",
        f"maps and pictures of {size} x {size}, {steps[0]} to {steps[-1]} steps; [true maps above what",
        "came back](docs/recovery.png)). Those of the sphere, and the fine checks on the torus, are of November 21st:",
        "",
        "| figure | measured | wanted |",
        "|---|---|---|",
    ]
    for key, name in RECOVERY:
        figure = summary[key]
        wanted = f">= {figure['at_least']}" if "at_least" in figure else f"<= {figure['at_most']}"
        number = f"{figure['value']:.3g}"
        value = number if figure["holds"] else f"**{number}** (missed)"
        lines.append(f"| {name} | {value} | {wanted} |")
    return lines


def seams(told: dict) -> list[str]:
    lines = [
        f"**Seams** (`evaluate seams`, “{told['prompt']}” at {told['size']}: how far stored values are apart on both",
        "sides of UV seams, in the files as written / without the stitch / one texel's step inside an island; and how",
        "much of the normals' slopes (rms) is no relief's, as written / as painted):",
        "",
        "| shape | base colour | metallic | roughness | normal | no relief's |",
        "|---|---|---|---|---|---|",
    ]
    for row in told["rows"]:
        columns = [row[name] for name in ("across_seams", "without_the_stitch", "one_texel_inside")]
        cells = [" / ".join(f"{column[name]['mean']:.4f}" for column in columns) for name in columns[0]]
        curl = f"{row['curl_share']:.1%} / {row['curl_share_as_painted']:.1%}"
        lines.append(f"| {row['shape']} | {' | '.join(cells)} | {curl} |")
    return lines


def speed(told: dict) -> list[str]:
    machine, lines = told["machine"], []
    lines.append(f"**Speed** (`evaluate speed`, {machine['processor']}, one thread, torch {machine['torch']}):")
    if "renderer" in told:
        part, other = told["renderer"], told["renderer"]["mitsuba"]
        lines += [
            f"- forward and backward of {part['pictures']} pictures of {part['size']} with {part['texture']} maps:",
            f"  {part['cpu_ms']:.0f} ms of CPU. Mitsuba {other['version']} (LLVM) takes {part['times_faster_cpu']:.0f}",
            f"  times as much at {other['samples_timed']} samples a pixel of the {other['samples_needed']} it needs",
            "  to be within 2 % of itself.",
        ]
    for name in ("torch", "embree"):
        if name in told.get("setup", {}):
            part = told["setup"][name]
            lines += [
                f"- {told['setup']['triangles']:,} triangles ({name}): from the file to the first picture",
                f"  {part['cpu_seconds']:.1f} s of CPU, {part['peak_mb']} MB.",
            ]
    if "step" in told:
        part = told["step"]
        lines += [
            f"- a step at *{part['quality']}*: {part['step_cpu_ms']:.0f} ms of CPU: {part['prior_cpu_ms']:.0f} ms",
            f"  the built-in prior ({part['network_cpu_ms']:.0f} ms its UNet, the rest renders that it is shown),",
            f"  {part['outside_prior_cpu_ms']:.0f} ms everything else.",
        ]
    return lines


if __name__ == "__main__":
    sections = []
    for section in (parity, recovery, seams, speed):
        told = json.loads((DOCS / f"{section.__name__}.json").read_text("utf-8"))
        sections.append("\n".join(section(told)))
    readme = DOCS.parent / "README.md"
    text = readme.read_text("utf-8")
    before, after = text.split(START)[0], text.split(END, 1)[1]
    readme.write_text(f"{before}{START}" + "\n\n".join(sections) + f"\n\n{END}{after}", "utf-8")
