# SPDX-License-Identifier: Apache-2.0
"""Training pictures: random material on a random shape under random light, with its conditions.

`python -m backend.prior.training.pictures OUT --field FILE --count N --seed S` writes shards of raw arrays; several
processes with different seeds may fill one folder. A shard that has its name is whole. The words enter through the
material field (fit_field.py), which must be there first.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ... import cameras, ggx_tables, lighting
from ...rasterize import GBuffer, Triangles, gather, look
from .. import conditions, instances
from ..field import MaterialField, expect_at
from ..vocabulary import WORDS, encode
from . import shapes
from .prompts import DROP_WORDS, random_prompt

VIEWS_PER_SHAPE = 16
PICTURES_PER_VIEW = 3  # other material and light, same visibility and textures: they are most of the cost


@dataclass(frozen=True)
class Shard:
    """N pictures of uint8: target (N, 3, H, W), display values; wanted (N, 5, H, W), base colour, metallic and
    roughness; told (N, 20, H, W), see conditions.assemble, normals shifted to 0..255; coverage (N, 1, H, W)."""

    target: np.ndarray
    wanted: np.ndarray
    told: np.ndarray
    coverage: np.ndarray


@dataclass(frozen=True)
class Bench:
    """What all pictures share."""

    rng: np.random.Generator
    generator: torch.Generator
    tables: ggx_tables.GgxTables
    field: MaterialField
    size: int  # pixels to a side


def _mixed_cameras(triangles: Triangles, count: int, generator: torch.Generator) -> cameras.Cameras:
    """Two thirds full views, one third close-ups."""
    close = count // 3
    corner = triangles.positions[:, 0]
    full = cameras.sample_full(count - close, generator)
    near = cameras.sample_close(close, corner, triangles.normals[:, 0], generator)
    pairs = zip(full.__dict__.values(), near.__dict__.values(), strict=True)
    return cameras.Cameras(*(torch.cat(pair) for pair in pairs))


@torch.no_grad()
def pictures_of_shape(kind: str, bench: Bench) -> Shard:
    mesh = shapes.make(kind, bench.rng)
    corner_occlusion = torch.from_numpy(shapes.ambient_occlusion(mesh))
    triangles = Triangles.of(mesh)
    views = _mixed_cameras(triangles, VIEWS_PER_SHAPE, bench.generator)
    made = []
    for index in range(len(views)):
        visible = look(triangles, views, index, bench.size)
        if visible.pixel.numel() < bench.size**2 // 20:
            continue
        gbuffer = gather(triangles, views[slice(index, index + 1)], [visible])
        occlusion = (visible.barycentrics * corner_occlusion[visible.triangle]).sum(1)
        density = 0.6 * (1.8 / 0.6) ** torch.rand((), generator=bench.generator)
        q = gbuffer.position * density + 8 * torch.rand(3, generator=bench.generator)
        normal = torch.nn.functional.normalize(gbuffer.normal, dim=1)
        textures = instances.textures_round(q, normal)
        made += [_picture(gbuffer, normal, textures, occlusion, bench) for _ in range(PICTURES_PER_VIEW)]
    return Shard(*(np.stack(column) for column in zip(*made, strict=True)))


def _picture(
    gbuffer: GBuffer, normal: Tensor, textures: tuple, occlusion: Tensor, bench: Bench
) -> tuple[np.ndarray, ...]:
    generator = bench.generator
    prompt = random_prompt(generator)
    lights = lighting.sample(1, generator)
    occlusion = 1 - torch.rand((), generator=generator) * (1 - occlusion)
    surface = instances.surface_at(instances.draw(prompt, generator), normal, textures)
    target = conditions.render(gbuffer, surface, lights, bench.tables, occlusion)
    known = float(torch.rand((), generator=generator)) > DROP_WORDS
    numbers = encode(prompt if known else None).long()
    expected = expect_at(bench.field, numbers, normal, torch.stack([t.stacked() for t in textures]))
    # Without occlusion, as at run time: the noisy picture may be darker in hollows than it is told.
    fixed = conditions.fixed_renders(gbuffer, lights, bench.tables)
    believed = conditions.render(gbuffer, expected, lights, bench.tables)
    told = torch.cat((fixed, believed, conditions.values_of(expected), (expected.normal + 1) / 2), dim=1)

    def picture(values: Tensor) -> np.ndarray:
        return (conditions.spread(gbuffer, values)[0] * 255).round().byte().numpy()

    empty = torch.full((1, bench.size, bench.size, 3), conditions.BACKGROUND)
    return (
        (gbuffer.picture(target, empty)[0].permute(2, 0, 1) * 255).round().byte().numpy(),
        picture(conditions.values_of(surface)),
        picture(told),
        (gbuffer.coverage * 255).round().byte().numpy(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--field", type=Path, required=True, help="field.safetensors of fit_field.py")
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="pixels to a side; 128 for the second stage")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    field = MaterialField(len(WORDS)).requires_grad_(False)
    field.load_state_dict(load_file(arguments.field))
    bench = Bench(
        np.random.default_rng(arguments.seed),
        torch.Generator().manual_seed(arguments.seed),
        ggx_tables.load(),
        field,
        arguments.size,
    )
    total, begin, number = 0, time.time(), 0
    while total < arguments.count:
        kind = shapes.TRAINING_KINDS[number % len(shapes.TRAINING_KINDS)]
        shard = pictures_of_shape(kind, bench)
        beside = arguments.out / f".{arguments.seed:03d}-{number:05d}.part"
        with open(beside, "wb") as file:
            np.savez(file, **shard.__dict__)
        os.replace(beside, arguments.out / f"{arguments.seed:03d}-{number:05d}.npz")
        total, number = total + len(shard.target), number + 1
        if number % 10 == 0:
            print(f"{total} pictures, {total / (time.time() - begin):.0f} a second", flush=True)


if __name__ == "__main__":
    main()
