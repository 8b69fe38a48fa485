# SPDX-License-Identifier: Apache-2.0
"""Training pictures: random material on a random shape under random light, with its conditions.

`python -m backend.prior.training.pictures OUT --count N --seed S` writes shards of raw arrays; several
processes with different seeds may fill one folder. A shard that has its name is whole.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ... import cameras, ggx_tables, lighting
from ...rasterize import GBuffer, Triangles, gather, look
from ...shading import SurfaceMaps, linear_to_srgb, shade, srgb_to_linear
from .. import materials
from ..conditions import BACKGROUND, fixed_renders, scale_of
from ..vocabulary import WORDS, encode
from . import shapes

SIZE = 64
VIEWS_PER_SHAPE = 16
PICTURES_PER_VIEW = 3  # other material and light, same visibility: rasterising is half the cost

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


@dataclass(frozen=True)
class Shard:
    """N pictures: target (N, 3, H, W), light (N, 9, H, W), coverage (N, 1, H, W) uint8; normal (N, 3, H, W)
    int8; q (N, 3, H, W) float16; words (N, 4) int16, -1 where unused; scale (N,) float32."""

    target: np.ndarray
    light: np.ndarray
    coverage: np.ndarray
    normal: np.ndarray
    q: np.ndarray
    words: np.ndarray
    scale: np.ndarray


def random_prompt(generator: torch.Generator) -> materials.Prompt:
    """A prompt outside the held-out ones, materials equally often."""

    def chance(p: float) -> bool:
        return float(torch.rand((), generator=generator)) < p

    def pick(items: tuple | list) -> str:
        return items[int(torch.randint(len(items), (), generator=generator))]

    while True:
        name = pick([*materials.MATERIALS, *materials.FAMILY_WORDS])
        material = materials.MATERIALS.get(name)
        if material is None:
            return materials.Prompt(name)
        finish = pick(material.finishes) if material.finishes and chance(0.5) else None
        paintable = finish in ("painted", "chipped")
        colour = pick(list(materials.COLOURS)) if (paintable or (material.tintable and chance(0.6))) else None
        tone = pick(("light", "dark")) if chance(0.1) and (colour or not material.tintable) else None
        if materials.Prompt(name, colour, finish) not in HELD_OUT_PROMPTS:
            return materials.Prompt(name, colour, finish, tone)


def render_material(
    gbuffer: GBuffer,
    instance: materials.Instance,
    q: Tensor,
    lights: lighting.Lights,
    tables: ggx_tables.GgxTables,
    occlusion: Tensor | None,
) -> Tensor:
    """Display values (N, 3) of a procedural material on the points."""
    smooth = torch.nn.functional.normalize(gbuffer.normal, dim=1)
    made = materials.surface(instance, q, smooth)
    bent = GBuffer(**{**gbuffer.__dict__, "normal": made.normal})
    maps = SurfaceMaps(srgb_to_linear(made.base_color), made.metallic, made.roughness)
    return linear_to_srgb(shade(bent, maps, lights, tables, occlusion))


def _mixed_cameras(triangles: Triangles, count: int, generator: torch.Generator) -> cameras.Cameras:
    """Two thirds full views, one third close-ups."""
    close = count // 3
    corner = triangles.positions[:, 0]
    full = cameras.sample_full(count - close, generator)
    near = cameras.sample_close(close, corner, triangles.normals[:, 0], generator)
    pairs = zip(full.__dict__.values(), near.__dict__.values(), strict=True)
    return cameras.Cameras(*(torch.cat(pair) for pair in pairs))


def pictures_of_shape(
    kind: str, rng: np.random.Generator, generator: torch.Generator, tables: ggx_tables.GgxTables
) -> Shard:
    mesh = shapes.make(kind, rng)
    corner_occlusion = torch.from_numpy(shapes.ambient_occlusion(mesh))
    triangles = Triangles.of(mesh)
    views = _mixed_cameras(triangles, VIEWS_PER_SHAPE, generator)
    made = []
    for index in range(len(views)):
        visible = look(triangles, views, index, SIZE)
        if visible.pixel.numel() < 200:
            continue
        camera = views[slice(index, index + 1)]
        gbuffer = gather(triangles, camera, [visible])
        occlusion = (visible.barycentrics * corner_occlusion[visible.triangle]).sum(1)
        made += [_picture(gbuffer, camera, occlusion, generator, tables) for _ in range(PICTURES_PER_VIEW)]
    return Shard(*(np.stack(column) for column in zip(*made, strict=True)))


def _picture(
    gbuffer: GBuffer,
    camera: cameras.Cameras,
    occlusion: Tensor,
    generator: torch.Generator,
    tables: ggx_tables.GgxTables,
) -> tuple[np.ndarray, ...]:
    prompt = random_prompt(generator)
    lights = lighting.sample(1, generator)
    strength = torch.rand((), generator=generator)
    occlusion = 1 - strength * (1 - occlusion)
    density = 0.6 * (1.8 / 0.6) ** torch.rand((), generator=generator)
    q = gbuffer.position * density + 2 * torch.rand(3, generator=generator)
    instance = materials.draw(prompt, generator)
    target = render_material(gbuffer, instance, q, lights, tables, occlusion)
    light = fixed_renders(gbuffer, lights, tables, occlusion)

    def picture(values: Tensor, background: float) -> Tensor:
        empty = torch.full((1, SIZE, SIZE, values.shape[1]), background)
        return gbuffer.picture(values, empty)[0].permute(2, 0, 1)

    def spread(values: Tensor) -> Tensor:
        flat = torch.zeros(SIZE * SIZE, values.shape[1]).index_copy(0, gbuffer.pixel, values)
        return flat.T.view(-1, SIZE, SIZE)

    normal = torch.nn.functional.normalize(gbuffer.normal, dim=1)
    return (
        (picture(target, BACKGROUND) * 255).round().byte().numpy(),
        (spread(light) * 255).round().byte().numpy(),
        (gbuffer.coverage * 255).round().byte().numpy(),
        (spread(normal) * 127).round().to(torch.int8).numpy(),
        spread(q).half().numpy(),
        encode(prompt).numpy(),
        scale_of(camera.extent, density, SIZE)[0].float().numpy(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tables = ggx_tables.load()
    rng = np.random.default_rng(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    total, begin, number = 0, time.time(), 0
    while total < arguments.count:
        kind = shapes.TRAINING_KINDS[number % len(shapes.TRAINING_KINDS)]
        shard = pictures_of_shape(kind, rng, generator, tables)
        beside = arguments.out / f".{arguments.seed:03d}-{number:05d}.part"
        with open(beside, "wb") as file:
            np.savez(file, **shard.__dict__)
        os.replace(beside, arguments.out / f"{arguments.seed:03d}-{number:05d}.npz")
        total, number = total + len(shard.scale), number + 1
        if number % 10 == 0:
            print(f"{total} pictures, {total / (time.time() - begin):.0f} a second, {len(WORDS)} words", flush=True)


if __name__ == "__main__":
    main()
