# SPDX-License-Identifier: Apache-2.0
"""Train the built-in prior's denoiser on the pictures of pictures.py; resumable, bounded by minutes.

`python -m backend.prior.training.train DATA STATE --minutes 90` trains while other processes still add
shards to DATA; started again with the same STATE it goes on. `--export DIR --field FILE` writes the averaged
weights in diffusers format (half precision) with the field and the training facts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import conditions, materials, network
from ..vocabulary import WORDS

AVERAGE_DECAY = 0.999
WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0)  # of base colour, metallic and roughness in the loss


class PictureRing:
    """The newest `capacity` pictures of a folder of shards, in memory; takes new shards as they appear."""

    def __init__(self, folder: Path, capacity: int) -> None:
        self.folder, self.capacity = folder, capacity
        self.columns: dict[str, np.ndarray] = {}
        self.filled = self.next = 0
        self.taken: set[str] = set()

    def take(self, at_most: int) -> None:
        """Load up to `at_most` shards not seen before."""
        for path in sorted(p for p in self.folder.glob("*.npz") if p.name not in self.taken)[:at_most]:
            self.taken.add(path.name)
            with np.load(path, allow_pickle=False) as shard:
                self._put({name: shard[name] for name in shard.files})

    def _put(self, shard: dict[str, np.ndarray]) -> None:
        if not self.columns:
            self.columns = {k: np.empty((self.capacity, *v.shape[1:]), v.dtype) for k, v in shard.items()}
        count = len(shard["target"])
        rows = (self.next + np.arange(count)) % self.capacity
        for name, values in shard.items():
            self.columns[name][rows] = values
        self.next = (self.next + count) % self.capacity
        self.filled = min(self.filled + count, self.capacity)

    def batch(self, size: int, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = rng.integers(0, self.filled, size)
        return {name: torch.from_numpy(values[rows]) for name, values in self.columns.items()}


def batch_loss(
    unet: UNet2DModel,
    batch: dict[str, Tensor],
    alphas_cumprod: Tensor,
    generator: torch.Generator,
    highest: float = 1.0,
) -> Tensor:
    """Mean squared error of the predicted material values on the object, at timesteps up to the share `highest`."""
    device = alphas_cumprod.device
    count = len(batch["target"])
    x0 = batch["target"].to(device).float() / 127.5 - 1
    coverage = batch["coverage"].to(device).float() / 255
    told = batch["told"].to(device).float() / 255
    expected = told[:, conditions.RENDERS : conditions.RENDERS + conditions.VALUES]
    told = torch.cat((told[:, :-3], told[:, -3:] * 2 - 1), dim=1)
    timestep = torch.randint(0, round(highest * len(alphas_cumprod)), (count,), generator=generator).to(device)
    noise = torch.randn(x0.shape, generator=generator).to(device)
    alpha_bar = alphas_cumprod[timestep]
    a, s = (v.sqrt().view(-1, 1, 1, 1) for v in (alpha_bar, 1 - alpha_bar))
    condition = conditions.assemble(told, coverage)
    with torch.autocast(device.type, torch.bfloat16):
        add = network.correction(unet, a * x0 + s * noise, condition, timestep, alpha_bar)
    inside = (coverage > 0.5).float()
    wanted = batch["wanted"].to(device).float() / 255 - expected
    squared = ((add - wanted) ** 2 * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
    return (squared * torch.tensor(WEIGHTS, device=device)).sum(1).mean()


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    unet = network.new_unet(tuple(arguments.widths), size=arguments.size).to(device, memory_format=torch.channels_last)
    average = deepcopy(unet).requires_grad_(False)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    generator = torch.Generator()
    alphas_cumprod = network.new_scheduler().alphas_cumprod.to(device)
    facts = {"step": 0, "pictures_seen": 0, "minutes": 0.0, "seed": arguments.seed, "batch": arguments.batch}
    state_file = arguments.state / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        facts = json.loads((arguments.state / "facts.json").read_text())
    rng = np.random.default_rng(arguments.seed + facts["step"])
    generator.manual_seed(arguments.seed + facts["step"])
    ring = PictureRing(arguments.data, arguments.capacity)
    ring.take(arguments.capacity // 40)
    before, begin, losses, saved = facts["minutes"], time.monotonic(), [], time.monotonic()
    while facts["minutes"] < arguments.minutes:
        done = facts["minutes"] / arguments.minutes
        warm = min(1.0, facts["step"] / 300)
        for group in optimiser.param_groups:
            group["lr"] = arguments.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        loss = batch_loss(unet, ring.batch(arguments.batch, rng), alphas_cumprod, generator, arguments.highest)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        decay = min(AVERAGE_DECAY, (1 + facts["step"]) / (10 + facts["step"]))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
        losses.append(loss.item())
        facts["step"] += 1
        facts["pictures_seen"] += arguments.batch
        facts["minutes"] = before + (time.monotonic() - begin) / 60
        if facts["step"] % 10 == 0:
            ring.take(1)
        if facts["step"] % 100 == 0:
            line = {**facts, "distinct": ring.filled, "loss": sum(losses) / len(losses)}
            line = {k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}
            print(json.dumps(line), flush=True)
            with open(arguments.state / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            losses = []
        if time.monotonic() - saved > 240 or facts["minutes"] >= arguments.minutes:
            save(arguments, unet, average, optimiser, facts)
            saved = time.monotonic()


def save(arguments, unet: UNet2DModel, average: UNet2DModel, optimiser: torch.optim.Optimizer, facts: dict) -> None:
    state = {"unet": unet.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
    beside = arguments.state / "state.part"
    torch.save(state, beside)
    os.replace(beside, arguments.state / "state.pt")
    (arguments.state / "facts.json").write_text(json.dumps(facts))
    if arguments.export:
        export(average, load_file(arguments.field), arguments.export, facts)


def export(unet: UNet2DModel, field: dict[str, Tensor], folder: Path, facts: dict) -> None:
    """Half-precision weights in diffusers format, the field of the words and the training facts."""
    half = deepcopy(unet).half().to(memory_format=torch.contiguous_format)
    shutil.rmtree(folder / "unet", ignore_errors=True)  # an index of other pieces would win over the new file
    half.save_pretrained(folder / "unet", safe_serialization=True, max_shard_size="15MB")
    network.new_scheduler().save_pretrained(folder / "scheduler")
    save_file({k: v.half().contiguous() for k, v in field.items()}, folder / "field.safetensors")
    facts = {**facts, "materials": len(materials.MATERIALS), "table_version": materials.table_version()}
    (folder / "words.json").write_text(json.dumps({"words": WORDS, "training": facts}, indent=1))
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--size", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--widths", type=int, nargs=3, default=(96, 128, 128), help="channels of the UNet's levels")
    parser.add_argument("--highest", type=float, default=1.0, help="share of the timesteps that are trained")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--capacity", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--export", type=Path)
    parser.add_argument("--field", type=Path, help="field.safetensors of fit_field.py, for --export")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.state.mkdir(parents=True, exist_ok=True)
    if arguments.export and not arguments.field:
        parser.error("--export needs --field")
    train(arguments)


if __name__ == "__main__":
    main()
