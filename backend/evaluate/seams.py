# SPDX-License-Identifier: Apache-2.0
"""Both sides of a UV seam must show the same: how far they are apart in the maps as they are written.

    python -m backend evaluate seams --json FILE [--shapes sphere,box] [--steps 260] [--size 512]

Each shape is textured by the built-in prior, whose patterns know no seams; the 8-bit images, gutters and all, are read
bilinearly from both sides of every cut. Beside it the same without the stitch, and what two points of a texel's
distance inside an island differ by, which is what an eye cannot tell from the pattern. And how much of the normals'
slopes belongs to no relief, in the final maps and before that is taken out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from addon import protocol

from .. import ggx_tables, material, optimisation, planning, relief, seams
from ..mesh import Mesh
from ..models import ModelShelf
from ._shapes import SHAPES
from .recovery import as_written, new_pool

PROMPT = "rusty iron"
CUT = [name for name in SHAPES if name != "mirrored"]  # whose halves meet at the same texels
MAPS = {"base_color": slice(0, 3), "metallic": slice(3, 4), "roughness": slice(4, 5), "normal": slice(5, 7)}
INSIDE_POINTS = 20_000


def textured(mesh: Mesh, size: int, steps: int) -> tuple[material.LearnableMaps, material.Texels]:
    """The averaged maps of a draft run of `steps` steps, and the texels of a `size` image."""
    request = protocol.TextureRequest(PROMPT, quality="draft", texture_size=size, steps=steps)
    model = ModelShelf().get(request.model, torch.device("cpu"))
    model.set_prompt(PROMPT, "")
    plan = planning.make_plan(request, model)
    state = optimisation.new_state(plan, torch.device("cpu"))
    pool, tables = new_pool(mesh, plan.render_size, plan.seed), ggx_tables.load()
    for _ in optimisation.start(state, plan, model, pool, tables):
        pass
    while state.step < plan.steps:
        optimisation.step(state, plan, model, pool, tables)
    return state.average, material.texels(mesh, size)


def written(baked: dict[str, Tensor], where: material.Texels) -> Tensor:
    """(S, S, 7) stored values, row 0 at the top."""
    return as_written(baked, material.coverage(where)).permute(1, 2, 0).flip(0)


def inside(written: Tensor, where: material.Texels) -> Tensor:
    """(K, 7) differences of stored values between texels and their right neighbours, both inside of an island."""
    covered = torch.zeros(where.size**2, dtype=torch.bool)
    covered[where.index[~where.border].cpu()] = True
    both = (covered & covered.roll(-1)).view(where.size, -1)[:, :-1]
    return (written[:, 1:] - written[:, :-1])[both].abs()[:INSIDE_POINTS]


def figures(difference: Tensor) -> dict[str, dict[str, float]]:
    """Mean and 99th percentile of each map, the worst channel of a point counting."""
    worst = {name: difference[:, channels].amax(1) for name, channels in MAPS.items()}
    return {
        name: {"mean": round(float(x.mean()), 5), "p99": round(float(x.quantile(0.99)), 5)} for name, x in worst.items()
    }


def row(name: str, size: int, steps: int) -> dict[str, object]:
    """The figures of one shape."""
    mesh = SHAPES[name]()
    maps, where = textured(mesh, size, steps)

    def correct(values: Tensor) -> Tensor:
        return relief.without_curl(mesh, where, values, size)

    final = material.bake(maps, where, correct)
    unstitched = material.bake(maps, replace(where, cuts=seams.without_pairs(where.cuts)), correct)

    def across(images: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        return figures(seams.jumps(where.cuts, written(images, where)).abs())

    def curl(images: dict[str, Tensor]) -> float:
        return round(relief.curl_share(mesh, where, images["normal"]), 3)

    return {
        "shape": name, "points": len(where.cuts.uv_a),
        "smooth_share": round(float(where.cuts.smooth.float().mean()), 3),
        "across_seams": across(final), "without_the_stitch": across(unstitched),
        "one_texel_inside": figures(inside(written(final, where), where)),
        "curl_share": curl(final), "curl_share_as_painted": curl(material.bake(maps, where)),
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("evaluate seams", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shapes", default=",".join(CUT), help=f"of {', '.join(CUT)}")
    parser.add_argument("--steps", type=int, default=planning.STEPS["draft"])
    parser.add_argument("--size", type=int, default=512, help="texels of the maps")
    options = parser.parse_args(arguments)
    names = options.shapes.split(",")
    for name in names:
        if name not in CUT:
            parser.error(f"{name!r} is none of {', '.join(CUT)}.")
    rows = []
    for name in names:
        rows.append(row(name, options.size, options.steps))
        print(json.dumps(rows[-1]), flush=True)
        results = {"prompt": PROMPT, "size": options.size, "steps": options.steps, "rows": rows}
        protocol.write_beside(options.json, json.dumps(results, indent=1).encode())
    return 0
