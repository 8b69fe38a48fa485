# SPDX-License-Identifier: Apache-2.0
"""The prior that ships with Patina: predicts materials from a noisy picture, and renders the clean one from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from torch import Tensor

from .. import ggx_tables
from ..prior import conditions, network, vocabulary
from ..prior.field import MaterialField, expect
from ..rasterize import GBuffer
from .interface import Companion, ModelError, Prediction, Scene, new_companion

WEIGHTS = Path(__file__).resolve().parents[1] / "prior"
FIRST, SECOND = "unet", "second_unet"  # 64 px and 128 px

# A picture that is hardly noisy is believed, also where the maps went astray: then nothing would lead them back, and
# small errors would add up over the steps. So words hold: half of what the picture says counts, up to what the material
# varies by (base colour, metallic, roughness).
PULL, REACH = 0.5, (0.05, 0.05, 0.05, 0.1, 0.1)


def checksum(folder: Path = WEIGHTS) -> str:
    """Of the weights, short: figures that were made with others are another model's."""
    told = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        told.update(path.read_bytes())
    return told.hexdigest()[:12]


class BuiltInPrior:
    background = conditions.BACKGROUND

    def __init__(self, device: torch.device, folder: Path = WEIGHTS, stage: str = FIRST) -> None:
        """Load the UNet of `stage`, scheduler/ and the words' field from `folder`. Raises OSError where one lacks."""
        self.name = "built-in" if stage == FIRST else "built-in, second stage"
        self.device = device
        diffusers_logging.disable_progress_bar()
        self.unet = UNet2DModel.from_pretrained(
            folder / stage, use_safetensors=True, torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
        self.unet = self.unet.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        words = json.loads((folder / "words.json").read_text("utf-8"))["words"]
        if tuple(words) != vocabulary.WORDS:
            raise OSError(f"The word table in {folder} does not fit this version of Patina. Install Patina again.")
        self.field = MaterialField(len(words))
        self.field.load_state_dict(load_file(folder / "field.safetensors"))
        self.field = self.field.float().eval().requires_grad_(False).to(device)
        self.render_size = self.unet.config.sample_size * conditions.BLOCK
        self.tables = ggx_tables.load().to(device)
        self._words, self._negative = vocabulary.encode(None).long(), None

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.scheduler.alphas_cumprod

    @property
    def guidance_scale(self) -> float:
        """What the words expect needs no exaggeration; a negative prompt works by it alone."""
        return 1.0 if self._negative is None else 2.0

    def set_prompt(self, prompt: str, negative_prompt: str) -> tuple[str, ...]:
        reading = vocabulary.read(prompt)
        negative, warnings = None, reading.warnings
        if negative_prompt.strip():
            try:
                negative = vocabulary.encode(vocabulary.read(negative_prompt).prompt).long()
            except vocabulary.PromptError:
                warnings += ("The built-in model finds no material in the negative prompt and ignores it.",)
        self._words, self._negative = vocabulary.encode(reading.prompt).long(), negative
        return warnings

    @torch.no_grad()
    def believed_material(self, scene: Scene) -> Tensor:
        expected = scene.remembered(
            tuple(self._words.tolist()), lambda points: self._expect(points, scene, self._words)
        )
        return expected[:, : conditions.VALUES]

    @torch.no_grad()
    def predict(self, noisy: Tensor, timestep: Tensor, scene: Scene, guided: bool = True) -> Prediction:
        fixed = conditions.fixed_renders(scene.gbuffer, scene.lights, self.tables)
        conditional = self._predict(noisy, timestep, scene, fixed, self._words)
        if not guided:
            return Prediction(conditional, conditional)
        return Prediction(conditional, self._predict(noisy, timestep, scene, fixed, self._other_words("negative")))

    @torch.no_grad()
    def predict_words(self, noisy: Tensor, timestep: Tensor, scene: Scene, words: tuple[str, ...]) -> Tensor:
        """Raises ModelError for view words."""
        asked = set(words)
        if len(asked) != 1 or not asked <= {"nothing", "negative"}:
            raise ModelError(
                f"A material looks the same from every side: the model “{self.name}” knows no view words. Switch "
                "Perp-Neg off, or choose another model."
            )
        fixed = conditions.fixed_renders(scene.gbuffer, scene.lights, self.tables)
        return self._predict(noisy, timestep, scene, fixed, self._other_words(words[0]))

    def _other_words(self, kind: str) -> Tensor:
        """The negative prompt's words; none where there is none, or where "nothing" is asked for."""
        return vocabulary.encode(None).long() if kind == "nothing" or self._negative is None else self._negative

    def conditional(self, noisy: Tensor, timestep: Tensor, scene: Scene) -> Tensor:
        """x0_hat with the prompt; derivatives go through."""
        with torch.no_grad():
            fixed = conditions.fixed_renders(scene.gbuffer, scene.lights, self.tables)
        return self._predict(noisy, timestep, scene, fixed, self._words)

    def companion(self, seed: int) -> Companion:
        """A fresh one. Raises ModelError without the library peft."""
        return new_companion(self, seed)

    def _predict(self, noisy: Tensor, timestep: Tensor, scene: Scene, fixed: Tensor, words: Tensor) -> Tensor:
        gbuffer = scene.gbuffer
        expected = scene.remembered(tuple(words.tolist()), lambda points: self._expect(points, scene, words))
        values, normal = expected.split((conditions.VALUES, 3), dim=1)
        believed = conditions.render(gbuffer, conditions.surface_of(values, normal), scene.lights, self.tables)
        told = conditions.spread(gbuffer, torch.cat((fixed, believed, expected), dim=1))
        condition = conditions.assemble(told, gbuffer.coverage[:, None])
        timestep = timestep.to(self.device)
        alpha_bar = self.alphas_cumprod.to(self.device)[timestep]
        with torch.autocast(self.device.type, torch.bfloat16):
            add = network.correction(self.unet, noisy, condition, timestep, alpha_bar)
        add = add.permute(0, 2, 3, 1).reshape(-1, conditions.VALUES)[gbuffer.pixel]
        if (words >= 0).any():
            reach = torch.tensor(REACH, device=self.device)
            add = (PULL * add).clamp(-reach, reach)
        painted = conditions.render(gbuffer, conditions.surface_of(values + add, normal), scene.lights, self.tables)
        empty = torch.full((*gbuffer.coverage.shape, 3), self.background, device=self.device)
        return gbuffer.picture(painted, empty).permute(0, 3, 1, 2) * 2 - 1

    def _expect(self, gbuffer: GBuffer, scene: Scene, words: Tensor) -> Tensor:
        """(N, 8) expected values and normal."""
        normal = torch.nn.functional.normalize(gbuffer.normal, dim=1)
        q = gbuffer.position / scene.pattern_scale + scene.pattern_offset.to(gbuffer.position)
        surface = expect(self.field, words.to(self.device), q, normal)
        return torch.cat((conditions.values_of(surface), surface.normal), dim=1)
