# SPDX-License-Identifier: Apache-2.0
"""How far our shading is from Cycles, picture by picture.

    python -m backend evaluate parity --json FILE [--renders DIR] [--table full|small|test|fingerprint]
                                      [--minutes 60] [--pictures FILE [--shown suzanne-hdr_city]]

tests/blender/parity_renders.py makes Cycles' pictures and says in facts.json what is in them; here the same meshes,
lights and materials go through rasterize, lighting and shading. A picture's figure is the mean over its interior
pixels and colours of |ours - Cycles| / (Cycles + 2 % of Cycles' mean). A pixel is interior when it and the two
pixels to every side are covered. Each of our pixels is the mean of a square of points, as Cycles' is one of
many; lookups are bilinear in the stored values, as Blender's are. A run that is broken off, or has --minutes, goes
on when it is called again: pictures that are there are not rendered again, and rows of FILE whose picture and our
code are still the same are not computed again. Knows files and figures; no bpy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from addon import protocol

from .. import ggx_tables, lighting, occlusion, panorama_files, panoramas
from ..cameras import Cameras
from ..mesh import load_job_mesh
from ..rasterize import GBuffer, Triangles, gather, look
from ..shading import SurfaceMaps, linear_to_srgb, shade, srgb_to_linear

SUPERSAMPLES, SUN_SUPERSAMPLES = 8, 16  # across a pixel; under suns nothing but edges is uncertain in either picture
FLOOR = 0.02  # of the picture's mean, so that black pixels do not decide
RENDERER = Path(__file__).resolve().parents[2] / "tests" / "blender" / "parity_renders.py"
RENDER_LIMIT_S = 6 * 3600
CODE = (
    "shading", "lighting", "panoramas", "panorama_files", "ggx_tables", "occlusion", "bump", "rasterize", "mesh",
    "evaluate/parity",
)  # fmt: skip
SUN_MAP = 1024  # texels across a sun's depth map
CAP = 200_000  # points shaded at a time


@dataclass(frozen=True)
class View:
    """One mesh as the camera sees it: `fine` squared points a pixel, and the interior (size, size)."""

    fine: int
    gbuffer: GBuffer
    interior: np.ndarray
    triangles: Triangles
    kept: dict[str, Tensor]  # the sky's openness, once it was asked for


def main(arguments: list[str]) -> int:
    """Compare a folder of renders (made first where it has none) and write the table as JSON."""
    parser = argparse.ArgumentParser("python -m backend evaluate parity", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--renders", type=Path, help="what parity_renders.py made; default: made in FILE without .json")
    parser.add_argument("--table", choices=("full", "small", "test", "fingerprint"), default="small")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--minutes", type=float, help="Cycles starts no picture after that long; call again to go on")
    parser.add_argument("--pictures", type=Path, help="also draw ours beside Cycles' beside the difference")
    parser.add_argument("--shown", default="", help="of the renders whose names begin like this; default: all")
    options = parser.parse_args(arguments)
    renders = options.renders or options.json.with_suffix("")
    if options.renders is None:
        print(f"Cycles renders the {options.table} table into {renders}; what is there already is kept.", flush=True)
        _render(renders, options)
    elif not (renders / "facts.json").is_file():
        raise FileNotFoundError(f"{renders} holds no facts.json: run {RENDERER.name} there first, or again.")
    facts = json.loads((renders / "facts.json").read_text("utf-8"))
    known = json.loads(options.json.read_text("utf-8"))["rows"] if options.json.is_file() else []

    def keep(rows: list[dict]) -> None:
        protocol.write_beside(options.json, json.dumps(summary(facts, rows), indent=1).encode())

    rows = compare(renders, facts, known, keep)
    keep(rows)
    if options.pictures is not None:
        draw(renders, [job for job in facts["renders"] if job["file"].startswith(options.shown)], options.pictures)
    for name, group in summary(facts, rows)["groups"].items():
        print(f"{name}: mean {group['mean']:.2%}, worst {group['worst']:.2%} ({group['worst_case']})")
    if len(rows) < len(facts["renders"]):
        print(f"{len(rows)} of {len(facts['renders'])} pictures are there: call this again to go on.")
    return 0


def _render(renders: Path, options: argparse.Namespace) -> None:
    if not RENDERER.is_file():
        raise FileNotFoundError(f"{RENDERER} is missing: parity is measured from the repository.")
    command = [sys.executable, str(RENDERER), str(renders), "--table", options.table]
    command += ["--size", str(options.size), "--samples", str(options.samples)]
    command += [] if options.minutes is None else ["--minutes", str(options.minutes)]
    done = subprocess.run(command, timeout=RENDER_LIMIT_S, check=False)
    if done.returncode:
        raise OSError(f"Cycles' side of parity failed (exit code {done.returncode}): {' '.join(command)}")


class Side:
    """Our side of a folder of renders: meshes, lights and tables, each made when first asked for."""

    def __init__(self, renders: Path, facts: dict):
        self.renders, self.facts, self.tables = renders, facts, ggx_tables.load()
        self._views: dict[tuple[str, int, int], View] = {}
        self._lights: dict[str, lighting.Lights] = {}

    def view(self, job: dict) -> View:
        fine = SUPERSAMPLES if "world" in self.facts["lights"][job["light"]] else SUN_SUPERSAMPLES
        key = job["mesh"], job["size"], fine
        if key not in self._views:
            mesh = self.renders / self.facts["meshes"][job["mesh"]]
            self._views[key] = look_at_mesh(mesh, self.facts["camera"], job["size"], fine)
        return self._views[key]

    def picture(self, job: dict) -> np.ndarray:
        if job["light"] not in self._lights:
            self._lights[job["light"]] = lights_of(self.facts["lights"][job["light"]], self.renders)
        return picture_of(self.view(job), job, self._lights[job["light"]], self.tables, self.renders)


def compare(renders: Path, facts: dict, known: Sequence[dict] = (), keep: Callable = lambda rows: None) -> list[dict]:
    """One row a render whose picture is there. Of `known` rows those are taken whose digest is still right;
    `keep(rows)` is called after every new one."""
    side, rows = Side(renders, facts), []
    before = {(row["file"], row.get("digest")): row for row in known}
    code = hashlib.sha256(ggx_tables.TABLE_FILE.read_bytes())
    for name in CODE:
        code.update((Path(__file__).parents[1] / f"{name}.py").read_bytes())
    for job in facts["renders"]:
        if not (renders / job["file"]).is_file():
            continue
        digest = code.copy()
        digest.update((renders / job["file"]).read_bytes() + json.dumps(job, sort_keys=True).encode())
        digest = digest.hexdigest()[:12]
        if (job["file"], digest) in before:
            rows.append(before[job["file"], digest])
            continue
        error = figures(side.picture(job), read_exr(renders / job["file"]), side.view(job).interior)
        rows.append({k: job[k] for k in ("file", "mesh", "light", "occluded", "samples", "size")})
        rows[-1] |= {"group": group_of(job), "digest": digest} | error
        rows[-1] |= {k: job["material"][k] for k in ("metallic", "roughness")}
        keep(rows)
    return rows


def summary(facts: dict, rows: list[dict]) -> dict:
    """The rows in groups, each with its mean and worst."""
    groups = {}
    for name in sorted({row["group"] for row in rows}):
        chosen = [row for row in rows if row["group"] == name]
        worst = max(chosen, key=lambda row: row["error"])
        groups[name] = {
            "pictures": len(chosen),
            "mean": round(float(np.mean([row["error"] for row in chosen])), 5),
            "worst": worst["error"],
            "worst_case": worst["file"],
        }
    blender, whole = facts["blender"], len(facts["renders"])
    return {"blender": blender, "pictures": len(rows), "of": whole, "groups": groups, "rows": rows}


def group_of(render: dict) -> str:
    light, material = render["light"], render["material"]
    if render["occluded"]:
        smooth_metal = material["metallic"] >= 0.5 and material["roughness"] < 0.3
        return "occluded, metals below roughness 0.3" if smooth_metal else "occluded"
    if isinstance(material["metallic"], str):
        return "end to end, HDR worlds" if light.startswith("hdr") else "end to end"
    kind = {"sun": "suns", "low_sun": "suns", "white": "constant world", "second_order": "second-order world"}
    return ("HDR worlds" if light.startswith("hdr") else kind.get(light, light)) + f", {render['mesh']}"


def figures(ours: np.ndarray, reference: np.ndarray, interior: np.ndarray) -> dict:
    """Relative error (mean), its 99th percentile and the bias, all over interior pixels."""
    ours, reference = ours[interior].astype(np.float64), reference[interior].astype(np.float64)
    error = np.abs(ours - reference) / (reference + FLOOR * reference.mean())
    return {
        "error": round(float(error.mean()), 5),
        "p99": round(float(np.quantile(error, 0.99)), 4),
        "bias": round(float(ours.mean() / reference.mean() - 1), 5),
    }


# --- our side -------------------------------------------------------------------------------------


def look_at_mesh(file: Path, camera: dict, size: int, fine: int) -> View:
    mesh = load_job_mesh(file)
    triangles = Triangles.of(mesh)
    place = (torch.tensor(camera["position"]) - torch.from_numpy(mesh.center)) / mesh.radius
    angle = torch.zeros(1)
    rotation, half = torch.tensor(camera["rotation"]), torch.tensor([camera["tan_half_fov"]])
    cameras = Cameras(place[None].float(), rotation[None], half, angle, angle)
    seen = look(triangles, cameras, 0, size * fine)
    covered = (seen.coverage.numpy() >= 1).reshape(size, fine, size, fine)
    covered = covered.all((1, 3))
    interior = covered.copy()
    for down in range(-2, 3):
        for right in range(-2, 3):
            interior &= np.roll(covered, (down, right), (0, 1))
    return View(fine, gather(triangles, cameras, [seen]), interior, triangles, {})


def lights_of(light: dict, renders: Path) -> lighting.Lights:
    """The lights of one picture from their facts."""
    lights = lighting.uniform(1, 0.0)
    world = light.get("world")
    if isinstance(world, dict):
        parts = {name: torch.tensor(world[name])[None].float() for name in ("constant", "linear", "quadratic")}
        lights = replace(lights, **parts)
    elif world is not None:
        lights = panoramas.lights([panoramas.from_panorama(read_exr(renders / world))], torch.zeros(1).long())
    suns = light.get("suns", [])
    if suns:
        towards = torch.tensor([[sun["direction"] for sun in suns]])
        lights = lighting.with_suns(lights, towards, torch.tensor([[sun["irradiance"] for sun in suns]]))
    return lights


def picture_of(
    view: View, render: dict, lights: lighting.Lights, tables: ggx_tables.GgxTables, folder: Path
) -> np.ndarray:
    """Our picture of the render (size, size, 3), linear, black around the object."""
    points = view.gbuffer
    maps = material_of(render["material"], points.uv, folder)
    openness = openness_of(view, lights) if render["occluded"] else None
    names = [name for name in points.__dataclass_fields__ if name != "coverage"]
    shaded = []
    for first in range(0, len(points.view), CAP):
        keep = slice(first, first + CAP)
        some = replace(points, **{name: getattr(points, name)[keep] for name in names})
        pick = SurfaceMaps(*(None if m is None else m[keep] for m in maps.__dict__.values()))
        seen = openness and replace(openness, sky=openness.sky[keep], suns=openness.suns[keep])
        shaded.append(shade(some, pick, lights, tables, openness=seen))
    size, fine = render["size"], view.fine
    flat = torch.zeros((size * fine) ** 2, 3).index_copy(0, points.pixel, torch.cat(shaded))
    return flat.view(size, fine, size, fine, 3).mean((1, 3)).numpy()


def openness_of(view: View, lights: lighting.Lights) -> occlusion.Openness:
    """As the optimiser has it, save that suns have maps of their own and do not move to the sky's directions."""
    points = view.gbuffer
    if not view.kept:
        sky = occlusion.look_from(view.triangles, occlusion.even_directions())
        view.kept["sky"] = occlusion.open_share(sky, points.position, points.geometric_normal).half()
        view.kept["direction"] = sky.direction
    suns = occlusion.look_from(view.triangles, lights.sun_direction[0], SUN_MAP)
    suns_open = occlusion.open_share(suns, points.position, points.geometric_normal)
    return occlusion.Openness(view.kept["direction"], view.kept["sky"], suns_open)


def material_of(material: dict, uv: Tensor, folder: Path) -> SurfaceMaps:
    def value(name: str, channels: int) -> Tensor:
        wanted = material[name]
        if isinstance(wanted, str):
            return bilinear(folder / wanted, uv)[:, :channels]
        return torch.tensor(wanted, dtype=torch.float32).reshape(1, -1).expand(len(uv), channels)

    base_color = value("base_color", 3)
    if isinstance(material["base_color"], str):
        base_color = srgb_to_linear(base_color)
    normal = value("normal", 3) * 2 - 1 if "normal" in material else None
    return SurfaceMaps(base_color, value("metallic", 1)[:, 0], value("roughness", 1)[:, 0], normal)


def bilinear(file: Path, uv: Tensor) -> Tensor:
    """Stored values (N, 3) of an 8 bit picture that repeats, interpolated before any decoding."""
    with Image.open(file) as picture:
        stored = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    wrapped = np.pad(stored[::-1], ((1, 1), (1, 1), (0, 0)), mode="wrap")
    size = torch.tensor([wrapped.shape[1], wrapped.shape[0]], dtype=torch.float32)
    grid = ((uv % 1) * (size - 2) + 1) / size * 2 - 1
    image = torch.from_numpy(np.ascontiguousarray(wrapped.transpose(2, 0, 1)))[None]
    return torch.nn.functional.grid_sample(image, grid.view(1, -1, 1, 2), align_corners=False)[0, :, :, 0].T


def read_exr(file: Path) -> np.ndarray:
    """(H, W, 3) float32, row 0 at the top."""
    return panorama_files.read_panorama(file)


# --- pictures -------------------------------------------------------------------------------------


def draw(renders: Path, jobs: list[dict], target: Path, amplified: float = 20.0) -> None:
    """A sheet: for each render our picture, Cycles', and the difference times `amplified`, side by side."""
    side = Side(renders, json.loads((renders / "facts.json").read_text("utf-8")))
    tiles = []
    for job in jobs:
        if not (renders / job["file"]).is_file():
            continue
        ours, reference = side.picture(job), read_exr(renders / job["file"])
        exposure = 0.7 / max(float(np.quantile(reference, 0.98)), 1e-6)
        difference = np.abs(ours - reference) * exposure * amplified
        row = [_display(ours * exposure), _display(reference * exposure), np.clip(difference, 0, 1)]
        tiles.append(np.concatenate(row, axis=1))
    if not tiles:
        raise ValueError("None of the wanted renders is there, so no sheet of pictures can be drawn.")
    height = max(len(tile) for tile in tiles)
    tiles = [tile.repeat(height // len(tile), 0).repeat(height // len(tile), 1) for tile in tiles]
    tiles = [np.pad(tile, ((2, 2), (2, 2), (0, 0)), constant_values=1.0) for tile in tiles]
    columns = max(1, round(len(tiles) ** 0.5))
    while len(tiles) % columns:
        tiles.append(np.ones_like(tiles[0]))
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    sheet = np.concatenate(rows, axis=0)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255 + 0.5).astype(np.uint8)).save(target)


def _display(linear: np.ndarray) -> np.ndarray:
    return linear_to_srgb(torch.from_numpy(np.ascontiguousarray(linear))).numpy()
