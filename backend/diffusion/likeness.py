# SPDX-License-Identifier: Apache-2.0
"""How alike pictures look to CLIP: what a reference picture does not show comes to look like it too (Make-It-3D).

The diffusion-CLIP loss of Tang et al. 2023: where little noise was added, the model's clean pictures are led towards
the reference's embedding. Here that is a step of the pictures that the maps are led to, so nothing is sent back
through the renderer twice.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .folder import ModelFolder, check_clip
from .parts import network, refusals

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # all CLIP models'
CLEAN_BELOW = 0.4  # published: in the lowest 400 of 1000 timesteps


class Clip:
    """The picture side of a CLIP model."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Load it from a folder of transformers. Raises FolderError."""
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        check_clip(path)
        with refusals(f"The CLIP model in {path}"):
            whole = network(
                ModelFolder(path, "CLIP", {}, {}), "", transformers.CLIPVisionModelWithProjection, torch.float32
            )
        self.network = whole.to(device)
        self.size = whole.config.image_size
        self.mean, self.deviation = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))

    def embed(self, picture: Tensor) -> Tensor:
        """(B, D) unit embeddings of pictures (B, 3, H, W) in -1..1; derivatives go through."""
        seen = torch.nn.functional.interpolate(
            picture.float() * 0.5 + 0.5, size=(self.size, self.size), mode="bilinear", antialias=True
        )
        found = self.network(pixel_values=(seen - self.mean) / self.deviation).image_embeds
        return torch.nn.functional.normalize(found, dim=1)

    def led(self, picture: Tensor, mask: Tensor, towards: Tensor, step: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1, one by one a step in display values nearer to the embedding `towards` (1, D):
        step (B,) is the root mean square of it over the mask (B, 1, H, W)."""
        moved = []
        for one, inside, far in zip(picture.split(1), mask.split(1), step.tolist(), strict=True):
            if far == 0:
                moved.append(one)
                continue
            with torch.enable_grad():
                asked = one.detach().requires_grad_(True)
                (slope,) = torch.autograd.grad((self.embed(asked) * towards).sum(), asked)
            slope = slope * inside
            size = (slope.square().sum() / (3 * inside.sum()).clamp(min=1)).sqrt().clamp(min=1e-12)
            moved.append((one + far * slope / size).clamp(-1, 1) * inside + one * (1 - inside))
        return torch.cat(moved)
