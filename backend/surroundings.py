# SPDX-License-Identifier: Apache-2.0
"""The panoramas that light a run's pictures: read from a folder, exposed alike, drawn and turned at random.

Turned about all axes at every step, because light that always comes from one side would end up in the base colour.
Knows panoramas as lights; knows no surfaces and no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from addon.protocol import ProtocolError

from . import panorama_files, panoramas
from .lighting import Lights
from .occlusion import even_directions
from .panoramas import Environment

# What a white wall shows at most, as under lighting.sample's lights: a panorama may be of any brightness.
WHITE_WALL = 0.75
_DARK = 1e-6


def read(folder: Path, staging: str = "own") -> tuple[Environment, ...]:
    """All panoramas of `folder`, exposed alike. Raises ProtocolError with a sentence."""
    if staging != "own":
        raise ProtocolError(f"panoramas light no pictures that are staged as in {staging}. Leave one of the two out.")
    try:
        found = panorama_files.environments(folder)
    except (panoramas.PanoramaError, OSError) as error:
        raise ProtocolError(f"The light cannot be used: {error}") from error
    for name, environment in found.items():
        if brightness(environment) < _DARK:
            raise ProtocolError(f"The light cannot be used: {name} is black.")
    return tuple(exposed(environment) for environment in found.values())


def brightness(environment: Environment) -> float:
    """What a white wall shows (radiance, mean of the three colours) that is turned to where most light comes from."""
    w = even_directions(256)
    trace = torch.einsum("iic->c", environment.quadratic)
    world = (
        environment.constant + 2 / 3 * w @ environment.linear + trace / 4
        + torch.einsum("ni,nj,ijc->nc", w, w, environment.quadratic) / 4
    )  # fmt: skip
    suns = (w @ environment.sun_direction.T).clamp(min=0) @ environment.sun_irradiance / torch.pi
    return float((world + suns).mean(1).max())


def exposed(environment: Environment) -> Environment:
    """The same panorama, as bright as all others."""
    gain = WHITE_WALL / brightness(environment)
    scaled = ("constant", "linear", "quadratic", "sun_irradiance", "blurred")
    return replace(environment, **{name: getattr(environment, name) * gain for name in scaled})


def draw(environments: Sequence[Environment], count: int, generator: torch.Generator) -> Lights:
    """Lights of `count` pictures: panoramas drawn at random, each turned and exposed at random."""
    drawn = torch.randint(len(environments), (count,), generator=generator)
    return panoramas.lights([environments[i] for i in drawn], torch.arange(count), generator)
