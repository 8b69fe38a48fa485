# SPDX-License-Identifier: Apache-2.0
"""One concrete material from the table: draw its colours and roughness, evaluate it at points.

Knows the table (materials.py) and the textures; knows no words, pictures or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import patterns, procedural
from .materials import (
    COLOURS,
    COVERINGS,
    FAMILY_WORDS,
    FINISHES,
    MATERIALS,
    Component,
    Prompt,
)
from .patterns import Pattern
from .procedural import Procedural

DELTA = 0.02  # pattern units between the points a slope is taken from
RELIEF_DEPTH = 0.12  # pattern units that a height of 1 stands for


@dataclass(frozen=True)
class Surface:
    """Material at N points: base_color (N, 3) display values, metallic (N,), roughness (N,), normal (N, 3) unit."""

    base_color: Tensor
    metallic: Tensor
    roughness: Tensor
    normal: Tensor


@dataclass(frozen=True)
class Layer:
    """One draw of a Covering: colour (3,), roughness and metallic, and how it lies on the material."""

    colour: Tensor
    roughness: float
    metallic: float
    mottling: float  # change of lightness within it
    relief: float


@dataclass(frozen=True)
class Instance:
    """One draw of a prompt: two concrete components, their pattern and a relief."""

    pattern: Pattern
    colours: tuple[Tensor, Tensor]  # (3,) display values each
    roughness: tuple[float, float]
    metallic: tuple[float, float]
    variation: float
    relief: float
    overlay: Pattern | None = None  # a relief on top (hammer marks, brushing)
    layer: Layer | None = None


def draw(prompt: Prompt, generator: torch.Generator) -> Instance:
    """One instance of a prompt, with the table's jitter."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def pick(component: Component) -> tuple[Tensor, float]:
        choice = int(torch.randint(len(component.colours), (), generator=generator))
        jitter = 0.025 * torch.randn(3, generator=generator) + 0.02 * torch.randn((), generator=generator)
        return (torch.tensor(component.colours[choice]) + jitter).clamp(0.01, 0.99), uniform(*component.roughness)

    name = prompt.material
    if name in FAMILY_WORDS:
        members = FAMILY_WORDS[name]
        name = members[int(torch.randint(len(members), (), generator=generator))]
    material = MATERIALS[name]
    first_part = material.first
    colour = prompt.colour if prompt.colour not in material.own_colours or prompt.finish == "painted" else None
    if colour and (material.tintable or prompt.finish in ("painted", "chipped")):
        first_part = replace(first_part, colours=(COLOURS[colour],), metallic=0.0)
    first, first_roughness = pick(first_part)
    if material.second is None:
        second, second_roughness = first * 0.78, first_roughness
        second_metallic = first_part.metallic
    else:
        second, second_roughness = pick(material.second)
        second_metallic = material.second.metallic
    pattern, relief, overlay, variation = material.pattern, material.relief, None, material.variation
    layer = None
    first_metallic = first_part.metallic
    if prompt.finish:
        low, high = FINISHES[prompt.finish]
        first_roughness = uniform(low, high)
        if material.second is None or prompt.finish in ("polished", "glossy", "satin", "matte", "wet"):
            second_roughness = first_roughness if material.second is None else max(second_roughness, first_roughness)
    if prompt.finish in COVERINGS:
        covering = COVERINGS[prompt.finish]
        layer = Layer(*pick(covering.part), covering.part.metallic, covering.mottling, covering.relief)
    if prompt.finish == "painted":
        pattern, relief, variation = material.pattern, material.relief, 0.03
        first_metallic = second_metallic = 0.0
        second, second_roughness = first * 0.85, first_roughness
    if prompt.finish == "wet":
        first, second = first * 0.72, second * 0.72
    if prompt.finish == "hammered":
        overlay, relief = patterns.dents, 0.55
    if prompt.finish in ("brushed", "scratched"):
        overlay, relief = patterns.streaks, 0.12
    if prompt.tone == "dark":
        first, second = first * 0.62, second * 0.7
    if prompt.tone == "light":
        first, second = first + 0.4 * (1 - first), second + 0.2 * (1 - second)
    return Instance(
        pattern,
        (first.clamp(0.01, 0.99), second.clamp(0.01, 0.99)),
        (first_roughness, second_roughness),
        (first_metallic, second_metallic),
        variation,
        relief,
        overlay,
        layer,
    )


def surface(instance: Instance, q: Tensor, normal: Tensor) -> Surface:
    """Evaluate at pattern coordinates q (N, 3) with unit normals (N, 3)."""
    return surface_at(instance, normal, textures_round(q, normal))


def textures_round(q: Tensor, normal: Tensor) -> tuple[Procedural, ...]:
    """The textures at q and, for the slope of a relief, a little further along each axis."""
    shifts = torch.cat((torch.zeros(1, 3), DELTA * torch.eye(3))).to(q)
    return tuple(procedural.evaluate(q + shift, normal) for shift in shifts)


def surface_at(instance: Instance, normal: Tensor, textures: tuple[Procedural, ...]) -> Surface:
    """Evaluate with the textures of `textures_round`."""
    base_color, metallic, roughness = components(instance, textures[0])
    heights = [relief(instance, each) for each in textures]
    return Surface(base_color, metallic, roughness, bend(normal, heights))


def components(instance: Instance, textures: Procedural) -> tuple[Tensor, Tensor, Tensor]:
    """Base colour (N, 3) display values, metallic (N,) and roughness (N,)."""
    mix = instance.pattern(textures)
    weight = mix.weight[:, None]
    lightness = 1 + instance.variation * (mix.variation[:, None] - 0.5) * (1 - weight)
    color = (instance.colours[0] * lightness) * (1 - weight) + instance.colours[1] * weight
    roughness = instance.roughness[0] * (1 - mix.weight) + instance.roughness[1] * mix.weight
    metallic = instance.metallic[0] * (1 - mix.weight) + instance.metallic[1] * mix.weight
    if instance.overlay is patterns.streaks:
        fine = patterns.streaks(textures).variation
        color = color * (1 + 0.25 * (fine[:, None] - 0.5))
        roughness = roughness + 0.12 * (fine - 0.5)
    if instance.layer is not None:
        layer, cover = instance.layer, patterns.patches(textures).weight
        mottled = layer.colour * (1 + layer.mottling * (patterns.mottle(textures)[:, None] - 0.5))
        color = torch.lerp(color, mottled, cover[:, None])
        roughness = roughness + cover * (layer.roughness - roughness)
        metallic = metallic + cover * (layer.metallic - metallic)
    return color.clamp(0, 1), metallic.clamp(0, 1), roughness.clamp(0.05, 1)


def relief(instance: Instance, textures: Procedural) -> Tensor:
    """Height (N,) of the surface's relief, 1 for the deepest."""
    height = instance.relief * (instance.overlay or instance.pattern)(textures).height
    return height if instance.layer is None else height + instance.layer.relief * patterns.patches(textures).height


def bend(normal: Tensor, heights: Sequence[Tensor]) -> Tensor:
    """Unit normals (N, 3) of a relief: n - (grad h - (grad h . n) n), by forward differences of four heights (N,)."""
    gradient = (torch.stack(list(heights[1:]), dim=1) - heights[0][:, None]) * (RELIEF_DEPTH / DELTA)
    gradient = gradient - (gradient * normal).sum(1, keepdim=True) * normal
    # At a tilt of 45 degrees the gradient is 1; steeper ones look like noise.
    gradient = gradient / (1 + gradient.norm(dim=1, keepdim=True) / 1.2)
    return torch.nn.functional.normalize(normal - gradient, dim=1)
