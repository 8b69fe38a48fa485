# SPDX-License-Identifier: Apache-2.0
"""How well textured meshes match the materials the built-in prior was taught: shapes it never saw.

    python -m backend evaluate prior --json FILE [--pairs N] [--part I/N] [--merge FILE ...] [--second-stage]

Each (held-out shape x prompt) is textured along the backend's own route, then judged against the
procedural generator: colour, metallic and roughness against what many draws of the prompt have, patterned
materials by retrieval (_patterned.py). Results are kept after each pair, so that a run can go on later.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from addon import protocol
from addon.protocol import JobFolder, TextureRequest

from .. import material, optimisation, texturing
from ..box_unwrap import box_unwrap
from ..diffusion import built_in
from ..diffusion.built_in import BuiltInPrior
from ..frames import mikktspace_tangents
from ..maps import read_map
from ..mesh import Mesh, load_job_mesh, save_job_mesh
from ..models import ModelShelf
from ..prior import instances, materials, procedural
from ..prior.field import expect
from ..prior.training import shapes
from ..prior.vocabulary import encode, read
from . import _patterned as patterned

PROMPTS = (
    "polished gold", "brushed copper", "chrome", "hammered brass", "brushed titanium", "matte steel",
    "red plastic", "teal plastic", "matte purple plastic", "green porcelain", "black rubber", "navy leather",
    "terracotta", "snow", "chocolate", "jade", "blue velvet", "orange painted iron", "rusty iron", "oxidised bronze",
    "red brick", "oak", "blue stripes", "dots", "checks", "zebra", "leopard", "giraffe", "marble", "tiles",
    "camouflage", "dalmatian",
)  # fmt: skip
SIZE = 512  # texels of the maps
DRAWS = 48  # instances of the generator a prompt is compared with
GREY_CHROMA, ROUGH = 8.0, 0.6  # grey rough dielectrics: metallic cannot be told from pictures (research.md 7.7)


def held_out_mesh(kind: str, seed: int) -> dict[str, np.ndarray]:
    """Job arrays of a shape the prior has not seen, unwrapped."""
    mesh = shapes.make(kind, np.random.default_rng(seed))
    uvs = box_unwrap(mesh.positions)
    return {
        "positions": mesh.positions,
        "normals": mesh.normals,
        "tangents": mikktspace_tangents(mesh.positions, mesh.normals, uvs),
        "uvs": uvs,
        "material_slot": mesh.material_slot,
        "face_mask": mesh.face_mask,
    }


def texture(
    folder: Path, kind: str, prompt: str, quality: str, seed: int, shelf: ModelShelf, second_stage: bool = False
) -> JobFolder:
    """Run one job; raises RuntimeError when it does not end in Done."""
    job = JobFolder(folder)
    save_job_mesh(job.mesh, held_out_mesh(kind, seed))
    request = TextureRequest(
        prompt, quality=quality, texture_size=2 * SIZE if second_stage else SIZE, seed=seed,
        second_stage=protocol.BUILT_IN_MODEL if second_stage else "",
    )  # fmt: skip
    job.write_request(request)
    last = None
    for event in texturing.run(request, job, shelf, lambda: None):
        last = event
    if not isinstance(last, protocol.Done):
        raise RuntimeError(f"“{prompt}” on {kind} ended with {last}")
    return job


def generator_facts(prompt: materials.Prompt, mesh: Mesh) -> dict[str, np.ndarray]:
    """What DRAWS instances have on this mesh: mean Lab colour (D, 3), mean metallic and roughness (D,)."""
    generator = torch.Generator().manual_seed(11)
    points = torch.from_numpy(mesh.positions.mean(1))
    normals = torch.nn.functional.normalize(torch.from_numpy(mesh.normals.mean(1)), dim=1)
    area = np.linalg.norm(
        np.cross(mesh.positions[:, 1] - mesh.positions[:, 0], mesh.positions[:, 2] - mesh.positions[:, 0]), axis=1
    )
    pick = np.random.default_rng(0).choice(len(points), 3000, p=area / area.sum())
    # Points inside the triangles, so that large faces show their pattern.
    spread = torch.from_numpy(np.random.default_rng(1).dirichlet((1, 1, 1), 3000)).float()
    points = torch.einsum("nk,nkc->nc", spread, torch.from_numpy(mesh.positions[pick]))
    colour, metallic, roughness = [], [], []
    for _ in range(DRAWS):
        instance = instances.draw(prompt, generator)
        textures = procedural.evaluate(points + 8 * torch.rand(3, generator=generator), normals[pick])
        base_color, metal, rough = instances.components(instance, textures)
        colour.append(rgb2lab(base_color.mean(0).numpy()[None])[0])
        metallic.append(float(metal.mean()))
        roughness.append(float(rough.mean()))
    return {"lab": np.array(colour), "metallic": np.array(metallic), "roughness": np.array(roughness)}


def judge(job: JobFolder, prompt: str) -> dict[str, object]:
    """One row of the table."""
    mesh = load_job_mesh(job.mesh)
    images = {name: read_map(job.maps / f"{name}.png") for name in ("base_color", "metallic", "roughness")}
    covered = material.coverage(material.texels(mesh, len(images["metallic"]))).numpy()
    maps = {name: image[covered] for name, image in images.items()}
    return compare(maps, generator_facts(read(prompt).prompt, mesh))


def compare(maps: dict[str, np.ndarray], facts: dict[str, np.ndarray]) -> dict[str, object]:
    """The errors of base colours (K, 3), metallic and roughness (K,) beside the generator's facts."""
    lab = rgb2lab(maps["base_color"].mean(0)[None])[0]
    low, high = np.percentile(facts["lab"], (5, 95), axis=0)
    inside = np.clip(lab, low, high)
    wanted = float(facts["metallic"].mean())
    metallic, roughness = float(maps["metallic"].mean()), float(maps["roughness"].mean())
    row = {
        "ciede2000": float(deltaE_ciede2000(lab, inside)),
        "metallic": metallic,
        "metallic_error": abs(metallic - wanted),
        "roughness": roughness,
        "roughness_error": abs(roughness - float(facts["roughness"].mean())),
        "kind": "metal" if wanted > 0.8 else "dielectric" if wanted < 0.05 else "mixture",
        "metal_share": float((maps["metallic"] > 0.7).mean()),
        "dielectric_share": float((maps["metallic"] < 0.3).mean()),
    }
    middle = facts["lab"].mean(0)
    grey = np.hypot(middle[1], middle[2]) < GREY_CHROMA and facts["roughness"].mean() > ROUGH
    row["unidentifiable"] = bool(row["kind"] == "dielectric" and grey)
    return row


def detail_db(job: JobFolder, prior: BuiltInPrior) -> float:
    """How near the base colour comes, texel by texel, to what the prior expects there: PSNR beside the expectation's
    own deviation, so that a flat map has 0 dB and a blurred one little."""
    request, mesh = job.read_request(), load_job_mesh(job.mesh)
    image = read_map(job.maps / "base_color.png")
    where = material.texels(mesh, len(image))
    inside = ~where.border
    q = where.position[inside] / request.pattern_scale + optimisation.pattern_offset(request.seed)
    normal = torch.nn.functional.normalize(torch.from_numpy(mesh.normals).mean(1), dim=1)[where.triangle[inside]]
    words = encode(read(request.prompt).prompt).long()
    parts = zip(q.split(50_000), normal.split(50_000), strict=True)
    with torch.no_grad():
        expected = torch.cat([expect(prior.field, words, *part).base_color for part in parts])
    found = torch.from_numpy(image).float().reshape(-1, 3)[where.index[inside]]
    return float(10 * torch.log10(expected.var(0).sum() / ((found - expected) ** 2).mean(0).sum()))


def summary(rows: list[dict[str, object]]) -> dict[str, float]:
    """The figures the README quotes."""

    def mean(key: str, kind: str | None = None) -> float:
        chosen = [r[key] for r in rows if (kind is None or r["kind"] == kind) and not r["unidentifiable"]]
        return round(float(np.mean(chosen)), 3) if chosen else float("nan")

    def mean_of(key: str) -> float:
        found = [row[key] for row in rows if row.get(key) is not None]
        return round(float(np.mean(found)), 2) if found else float("nan")

    ranked = [r["pattern_rank"] for r in rows if r.get("pattern_rank")]
    return {
        "pairs": len(rows),
        "median_ciede2000": round(float(np.median([r["ciede2000"] for r in rows])), 2),
        "metallic_error_metals": mean("metallic_error", "metal"),
        "metallic_error_dielectrics": mean("metallic_error", "dielectric"),
        "roughness_error": mean("roughness_error"),
        "retrieval_first_rank": round(float(np.mean([rank == 1 for rank in ranked])), 3) if ranked else float("nan"),
        "retrieval_pairs": len(ranked),
        "detail_db": mean_of("detail_db"),
    }


def with_row(rows: list[dict], row: dict) -> list[dict]:
    """The rows with this one, in the place of that of the same pair where there is one."""
    mine = [(each["shape"], each["prompt"]) == (row["shape"], row["prompt"]) for each in rows]
    return [row if same else each for each, same in zip(rows, mine, strict=True)] if any(mine) else [*rows, row]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("evaluate prior", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=len(PROMPTS), help="how many (shape, prompt) pairs")
    parser.add_argument("--part", default="1/1", help="2/3: the second third of the pairs, for several processes")
    parser.add_argument("--prompts", default="", help="only these of the list, parted by commas")
    parser.add_argument("--quality", default="draft", choices=protocol.QUALITIES)
    parser.add_argument("--second-stage", action="store_true", help="go on with the 128 px stage, in maps of 1024")
    parser.add_argument("--keep", type=Path, help="keep the job folders here")
    parser.add_argument("--merge", type=Path, nargs="+", default=[], help="take over the rows of these files first")
    options = parser.parse_args(arguments)
    results = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {"rows": []}
    for path in options.merge:
        for row in json.loads(path.read_text("utf-8"))["rows"]:
            results["rows"] = with_row(results["rows"], row)
    weights = built_in.checksum()  # rows of others are made again
    done = {(row["shape"], row["prompt"]) for row in results["rows"] if row.get("weights") == weights}
    shelf = ModelShelf()
    kinds = shapes.HELD_OUT_KINDS
    # Neighbouring prompts get different shapes; a second round pairs them otherwise.
    pairs = [(kinds[(i + i // len(PROMPTS)) % len(kinds)], PROMPTS[i % len(PROMPTS)]) for i in range(options.pairs)]
    part, parts = (int(number) for number in options.part.split("/"))
    pairs = pairs[part - 1 :: parts]
    pairs = [pair for pair in pairs if not options.prompts or pair[1] in options.prompts.split(",")]
    prompts = [p for p in PROMPTS if patterned.is_patterned(read(p).prompt)]
    retrievers: dict[str, patterned.Retriever] = {}  # of each shape
    for kind, prompt in pairs:
        if (kind, prompt) in done:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.keep or Path(temporary)) / f"{prompt} on {kind}".replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            job = texture(folder, kind, prompt, options.quality, 0, shelf, options.second_stage)
            seconds = round(time.monotonic() - began, 1)
            row = {"shape": kind, "prompt": prompt, "weights": weights, "seconds": seconds, **judge(job, prompt)}
            if prompt in prompts:
                if kind not in retrievers:
                    retrievers[kind] = patterned.Retriever.of(prompts, load_job_mesh(job.mesh))
                row["detail_db"] = detail_db(job, shelf.get(protocol.BUILT_IN_MODEL, torch.device("cpu")))
                row["pattern_rank"] = retrievers[kind].rank(patterned.patches_of_job(job), prompt)
        row = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
        results["rows"] = with_row(results["rows"], row)
        results["summary"] = summary(results["rows"])
        protocol.write_beside(options.json, json.dumps(results, indent=1).encode())
        print(json.dumps(row), flush=True)
    results["summary"] = summary(results["rows"])
    protocol.write_beside(options.json, json.dumps(results, indent=1).encode())
    print(json.dumps(results["summary"], indent=1))
    return 0
