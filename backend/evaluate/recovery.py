# SPDX-License-Identifier: Apache-2.0
"""Known maps must come back: inverse rendering with a model that knows the answer.

    python -m backend evaluate recovery --json FILE [--shapes sphere,box] [--materials inlay,...] [--size 256]

A run that is broken off goes on where it was: what FILE holds already is not measured again.

Each (shape x material) is optimised from a model whose clean picture is the render of the known maps, and the
images as they are written (8 bit, gutters filled) are judged: rendered under ten lights and from ten cameras that
the run never had, and texel by texel where a camera of the run saw the surface. Metallic and roughness count where
pictures tell them at all (`identifiable`); the figures over all texels stand beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor

from addon import protocol

from .. import ggx_tables, lighting, map_files, maps, material, optimisation, relief, seams, views
from ..distillation import Options
from ..ggx_tables import GgxTables
from ..mesh import Mesh
from ..optimisation import Plan
from ..rasterize import GBuffer, Triangles
from . import _known as known
from ._shapes import SHAPES, pattern_uv

STEPS, VIEWS = 300, 2
LIGHTS = 10
STITCHES = 8  # until known maps are what the last stage of a run leaves alone
UNSEEN_SEED = 987
# Standard deviation (research.md 7.7: 32 views and lights, 0.02 noise, prior 0.5) up to which a value can be told.
METALLIC_SD, ROUGHNESS_SD = 0.1, 0.06
NOISE, PRIOR_SD, OBSERVATIONS = 0.02, 0.5, 32


def plan_for(size: int, render_size: int, steps: int = STEPS, seed: int = 0, **changes: object) -> Plan:
    """A plan that trusts the model: no guidance beyond it, hardly a prior of ours on the maps."""
    settings = {
        "views": VIEWS, "guidance": "clamped", "guidance_scale": 1.0, "pattern_scale": 1.0, "rescale": 0.0,
        "detail_decay": 0.005, "binary_metallic": 0.0, "rate": 0.4, "rate_end": 1.0, "damping": 1e-3,
        "all_detail_at": 0.15, "normal_from": 0.05, "average_from": 0.6, "average_decay": 0.95,
        "options": Options(weighting="uniform"), **changes,
    }  # fmt: skip
    return Plan(steps=steps, render_size=render_size, finest=size, seed=seed, **settings)


@dataclass(frozen=True)
class Recovered:
    """Stored values (7, S, S) that were known and that came back, row 0 at v = 0; `judged` (S, S): seen texels."""

    known: Tensor
    found: Tensor
    judged: Tensor
    texels: material.Texels
    seconds: float


def recover(mesh: Mesh, stored: Tensor, plan: Plan, tables: GgxTables) -> Recovered:
    """Optimise from the oracle of `stored` (7, S, S) and read back what would be written."""
    began = time.process_time()
    pool = new_pool(mesh, plan.render_size, plan.seed)
    model = known.Oracle(stored, plan.render_size, tables)
    state = optimisation.new_state(plan, torch.device("cpu"))
    while state.step < plan.steps:
        optimisation.step(state, plan, model, pool, tables)
    seconds = time.process_time() - began
    where = material.texels(mesh, stored.shape[-1])
    found = material.bake(state.average, where, lambda values: relief.without_curl(mesh, where, values, where.size))
    found = as_written(found, material.coverage(where))
    for index in range(len(pool.cameras)):
        pool.look(index)
    judged = torch.zeros(where.size**2, dtype=torch.bool)
    judged[where.index[pool.seen[where.triangle]]] = True
    return Recovered(stored, found, judged.view(where.size, -1).flip(0), where, seconds)


def new_pool(mesh: Mesh, size: int, seed: int) -> views.ViewPool:
    mask = torch.from_numpy(mesh.face_mask)
    return views.new_pool(Triangles.of(mesh), mask, size, torch.Generator().manual_seed(seed))


def as_written(images: dict[str, Tensor], covered: Tensor) -> Tensor:
    """The four images as 8-bit files hold them, gutters filled, as stored values (7, S, S) with row 0 at v = 0."""
    parts = []
    for name in ("base_color", "metallic", "roughness", "normal"):
        filled = maps.fill_uncovered(images[name], covered)
        filled = maps.unit_normals(filled) if name == "normal" else filled
        texels = torch.from_numpy(map_files.quantise(filled)).float() / 255
        parts.append(texels[..., :2] if name == "normal" else texels.view(*covered.shape, -1))
    return torch.cat(parts, dim=2).flip(0).permute(2, 0, 1).contiguous()


def authored(paint: known.Paint, shape: str, mesh: Mesh, size: int) -> Tensor:
    """Stored values (7, S, S) as an artist's file for this mesh would hold them: the pattern goes on across the cuts of
    the UV map and is alike on both sides of them, its normals are those of a relief, and the gutters are filled. What
    comes back is made so as well, and maps that this still moves could not come back unmoved; one time goes a part of
    the way."""
    where = material.texels(mesh, size)
    u, v = pattern_uv(shape, where).unbind(1)
    values = paint(u, v)
    for _ in range(STITCHES):
        values = relief.without_curl(mesh, where, values, size)
        values = seams.stitch(where.cuts, where.index, values, where.border, size)
    return as_written(material.split_maps(values, where), material.coverage(where))


def unseen_scene(mesh: Mesh, size: int) -> tuple[GBuffer, lighting.Lights]:
    """Ten cameras, three of them close-ups, each under a light of its own; of a seed that no run uses."""
    pool = new_pool(mesh, size, UNSEEN_SEED)
    full = [i for i in range(pool.full) if pool.look(i).pixel.numel() > 0.05 * size**2][: LIGHTS - 3]
    close = [i for i in range(pool.full, len(pool.cameras)) if pool.look(i).pixel.numel() > 0.05 * size**2][:3]
    return pool.gbuffer(full + close), lighting.sample(LIGHTS, torch.Generator().manual_seed(UNSEEN_SEED + 1))


def relit_db(result: Recovered, mesh: Mesh, size: int, tables: GgxTables) -> list[float]:
    """PSNR of each unseen picture over its object pixels, in display values."""
    gbuffer, lights = unseen_scene(mesh, size)
    wanted = known.render(known.look_up(result.known, gbuffer), gbuffer, lights, tables)
    found = known.render(known.look_up(result.found, gbuffer), gbuffer, lights, tables)
    squares = ((wanted - found) ** 2).mean(1)
    return [-10 * math.log10(float(squares[gbuffer.view == i].mean()) + 1e-12) for i in range(LIGHTS)]


def identifiable(stored: Tensor, tables: GgxTables, every: int = 4) -> tuple[Tensor, Tensor]:
    """Whether pictures tell metallic, and roughness, of stored values (7, S, S): two (S, S) bool.

    The Cramer-Rao bound of each value, by the derivatives of the display colour with respect to all seven,
    over random views and lights; for every `every`th texel, its neighbours taking its answer.
    """
    points = stored[:, ::every, ::every].flatten(1).T
    generator = torch.Generator().manual_seed(3)
    gbuffer = known.flat_points(OBSERVATIONS * len(points), OBSERVATIONS, 70.0, generator)
    lights = lighting.sample(OBSERVATIONS, generator)
    values = points.repeat_interleave(OBSERVATIONS, 0).requires_grad_(True)
    rendered = known.render(values, gbuffer, lights, tables)
    jacobian = torch.stack(
        [torch.autograd.grad(rendered[:, c].sum(), values, retain_graph=c < 2)[0] for c in range(3)], dim=1
    ).view(len(points), 3 * OBSERVATIONS, -1)
    information = jacobian.transpose(1, 2) @ jacobian / NOISE**2 + torch.eye(7) / PRIOR_SD**2
    deviation = torch.linalg.inv(information).diagonal(dim1=1, dim2=2).sqrt()
    side = math.isqrt(len(points))
    return tuple(
        (deviation[:, channel] <= limit).view(side, side).repeat_interleave(every, 0).repeat_interleave(every, 1)
        for channel, limit in ((material.METALLIC, METALLIC_SD), (material.ROUGHNESS, ROUGHNESS_SD))
    )


def baked_light(result: Recovered, mesh: Mesh) -> float:
    """Deviation of a uniform material's recovered base colour that irradiance explains, as a share of its mean.

    Irradiance is, whatever the lights were, a combination of the nine second-order harmonics of the normal:
    the colour is regressed on those (worst channel).
    """
    rows = result.judged.flip(0).flatten()[result.texels.index]
    normal = torch.from_numpy(mesh.normals).mean(1)[result.texels.triangle][rows]
    n = torch.nn.functional.normalize(normal, dim=1).double()
    products = [n[:, i] * n[:, j] for i in range(3) for j in range(i, 3)]
    basis = torch.stack((*n.T, *products), dim=1)  # the constant is in it: x^2 + y^2 + z^2 = 1
    colour = result.found[:3].flip(1).flatten(1).T[result.texels.index][rows].double()
    solution = torch.linalg.lstsq(basis, colour, driver="gelsd").solution
    return float(((basis @ solution).std(0) / colour.mean(0)).max())


def judge(result: Recovered, mesh: Mesh, size: int, tables: GgxTables, uniform: bool) -> dict[str, float]:
    """The figures of one shape and material."""
    db = relit_db(result, mesh, size, tables)
    wanted, found = (x[:, result.judged].numpy() for x in (result.known, result.found))
    difference = deltaE_ciede2000(rgb2lab(wanted[:3].T), rgb2lab(found[:3].T))
    tells_metallic, tells_roughness = (x[result.judged].numpy() for x in identifiable(result.known, tables))
    metallic, roughness = np.abs(found[3] - wanted[3]), np.abs(found[4] - wanted[4])
    row = {
        "relit_db": float(np.mean(db)),
        "relit_worst_db": min(db),
        "ciede2000": float(difference.mean()),
        "ciede2000_p95": float(np.percentile(difference, 95)),
        "metallic_error": _mean(metallic[tells_metallic]),
        "metallic_error_everywhere": float(metallic.mean()),
        "metallic_told_share": float(tells_metallic.mean()),
        "roughness_error": _mean(roughness[tells_roughness]),
        "roughness_error_everywhere": float(roughness.mean()),
        "roughness_told_share": float(tells_roughness.mean()),
        "normal_deg": float(_angle_deg(wanted[5:], found[5:]).mean()),
        "cpu_seconds": result.seconds,
    }
    if uniform:
        row["baked_light"] = baked_light(result, mesh)
    return row


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _angle_deg(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Angles (K,) between the unit normals whose stored x and y are (2, K)."""
    vectors = []
    for stored in (one, other):
        xy = 2 * stored - 1
        vectors.append(np.vstack((xy, np.sqrt(np.clip(1 - (xy**2).sum(0), 0, None)))))
    return np.degrees(np.arccos(np.clip((vectors[0] * vectors[1]).sum(0), -1, 1)))


# What "Shown by" asks for: (figure, how the rows are put together, bar, whether it must be at least or at most that).
BARS = (
    ("relit_db", np.mean, 38.0, "least"),
    ("relit_worst_db", min, 33.0, "least"),
    ("ciede2000", max, 2.0, "most"),
    ("metallic_error", max, 0.05, "most"),
    ("roughness_error", max, 0.03, "most"),
    ("normal_deg", max, 4.0, "most"),
    ("baked_light", max, 0.01, "most"),
)


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """Over all rows: the mean PSNR, and the worst of everything else, beside what is asked for."""
    told: dict[str, object] = {"runs": len(rows)}
    for figure, together, bar, kind in BARS:
        values = [row[figure] for row in rows if row.get(figure) is not None]
        if values:
            value = float(together(values))
            holds = value >= bar if kind == "least" else value <= bar
            told[figure] = {"value": round(value, 4), f"at_{kind}": bar, "holds": holds}
    return told


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("evaluate recovery", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--materials", default=",".join(known.MATERIALS))
    parser.add_argument("--size", type=int, default=256, help="texels and pixels to a side")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--views", type=int, default=VIEWS)
    parser.add_argument("--merge", type=Path, nargs="+", default=[], help="take over the rows of these files first")
    parser.add_argument("--picture", type=Path, help="write true beside recovered maps of each run here (PNG files)")
    options = parser.parse_args(arguments)
    shapes, materials = options.shapes.split(","), options.materials.split(",")
    for name in [n for n in shapes if n not in SHAPES] + [n for n in materials if n not in known.MATERIALS]:
        parser.error(f"{name!r} is neither of {', '.join(SHAPES)} nor of {', '.join(known.MATERIALS)}.")
    tables, rows = ggx_tables.load(), []
    for path in [options.json, *options.merge]:
        if path.exists():
            rows += json.loads(path.read_text("utf-8"))["rows"]
    settings = {"size": options.size, "steps": options.steps, "views": options.views}
    done = {(row["shape"], row["material"]) for row in rows}
    plan = plan_for(options.size, options.size, options.steps, views=options.views)
    for shape, name in [(s, m) for s in shapes for m in materials if (s, m) not in done]:
        mesh = SHAPES[shape]()
        stored = authored(known.MATERIALS[name], shape, mesh, options.size)
        result = recover(mesh, stored, plan, tables)
        row = judge(result, mesh, options.size, tables, uniform=name == "plastic")
        row = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        rows.append({"shape": shape, "material": name, **settings, **row})
        print(json.dumps(rows[-1]), flush=True)
        if options.picture:
            _write_picture(options.picture / f"{shape}_{name}.png", result)
        _write(options.json, rows)
    _write(options.json, rows)
    print(json.dumps(summary(rows), indent=1))
    return 0


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    protocol.write_beside(path, json.dumps({"summary": summary(rows), "rows": rows}, indent=1).encode())


def _write_picture(path: Path, result: Recovered) -> None:
    """True maps above recovered ones: base colour, metallic, roughness, normal."""
    from PIL import Image

    rows = []
    for stored in (result.known, result.found):
        normal = material.tangent_normal(stored.permute(1, 2, 0)) * 0.5 + 0.5
        grey = [stored[c, ..., None].expand(-1, -1, 3) for c in (material.METALLIC, material.ROUGHNESS)]
        rows.append(torch.cat((stored[:3].permute(1, 2, 0), *grey, normal), dim=1).flip(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(map_files.quantise(torch.cat(rows))).save(path)
