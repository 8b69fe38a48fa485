# SPDX-License-Identifier: GPL-3.0-or-later
"""One row of the prior's evaluation that our own renderer has no part in: Cycles renders of the results.

    python build.py evaluate prior --json results.json --keep jobs
    .venv/bin/python -m tests.blender.cycles_judge jobs cycles.json

Each kept job's mesh is rendered with its maps and with one draw of the generator baked to maps, from four sides under
two lights. The figure is the CIEDE2000 between the mean colours of the object's pixels, smallest of several draws,
because a prompt leaves colour and roughness open.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bpy
import numpy as np
import torch
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from addon import images, material, protocol, register, turntable, unregister
from backend.maps import write_maps
from backend.material import coverage, texels
from backend.mesh import Mesh, load_job_mesh
from backend.prior import instances
from backend.prior.vocabulary import read

DRAWS = 2
SIZE = 128


def main(jobs: Path, target: Path) -> None:
    register()
    rows = []
    for folder in sorted(p for p in jobs.iterdir() if (p / "maps" / "normal.png").exists()):
        job = protocol.JobFolder(folder)
        request = job.read_request()
        mesh = load_job_mesh(job.mesh)
        found = _mean_lab(_sheet(mesh, job.maps, request))
        differences = []
        for draw in range(DRAWS):
            _bake_generator(mesh, request.prompt, folder / "generator", draw)
            wanted = _mean_lab(_sheet(mesh, folder / "generator", request))
            differences.append(float(deltaE_ciede2000(found, wanted)))
        rows.append({"job": folder.name, "prompt": request.prompt, "ciede2000_cycles": round(min(differences), 2)})
        print(json.dumps(rows[-1]), flush=True)
        median = float(np.median([row["ciede2000_cycles"] for row in rows]))
        protocol.write_beside(target, json.dumps({"rows": rows, "median": median}, indent=1).encode())
    unregister()


def _bake_generator(mesh: Mesh, prompt: str, folder: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    where = texels(mesh, 512)
    smooth = torch.nn.functional.normalize(torch.from_numpy(mesh.normals.mean(1)), dim=1)[where.triangle]
    made = instances.surface(instances.draw(read(prompt).prompt, generator), where.position, smooth)
    flat = torch.tensor([0.5, 0.5, 1.0]).expand(len(where.index), 3)
    parts = {
        "base_color": made.base_color, "metallic": made.metallic[:, None],
        "roughness": made.roughness[:, None], "normal": flat,
    }  # fmt: skip
    maps = {
        name: torch.zeros(512 * 512, part.shape[1]).index_copy(0, where.index, part).view(512, 512, -1)
        for name, part in parts.items()
    }
    write_maps(folder, maps, coverage(where))


def _sheet(mesh: Mesh, maps: Path, request: protocol.TextureRequest) -> np.ndarray:
    """The turntable (H, W, 3) of the mesh with the four files in `maps`, in a file of its own."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    data = bpy.data.meshes.new("judged")
    corners = mesh.positions.reshape(-1, 3)
    data.from_pydata(corners.tolist(), [], np.arange(len(corners)).reshape(-1, 3).tolist())
    layer = data.uv_layers.new(name="UVMap")
    layer.data.foreach_set("uv", mesh.uvs.reshape(-1).astype(np.float32))
    data.normals_split_custom_set(mesh.normals.reshape(-1, 3).tolist())
    obj = bpy.data.objects.new("judged", data)
    bpy.context.scene.collection.objects.link(obj)
    data.materials.append(material.build("judged", "UVMap", images.load(maps, "judged", "judged"), "judged", request))
    file = maps.parent / "maps_turntable.png" if maps.name == "maps" else maps / "sheet.png"
    turntable.render(obj, file, size=SIZE, samples=16)
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255


def _mean_lab(sheet: np.ndarray) -> np.ndarray:
    """Mean colour of what is not backdrop: each view's corner pixel tells the backdrop's."""
    side = sheet.shape[0] // 2
    chosen = []
    for row in range(2):
        for column in range(sheet.shape[1] // side):
            view = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
            chosen.append(view[np.abs(view - view[0, 0]).max(2) > 0.03])
    return rgb2lab(np.concatenate(chosen).mean(0)[None])[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
