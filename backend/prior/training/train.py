# SPDX-License-Identifier: Apache-2.0
"""Train the built-in prior on the pictures of pictures.py; resumable, bounded by minutes.

`python -m backend.prior.training.train DATA STATE --minutes 90` trains while other processes still add
shards to DATA; started again with the same STATE it goes on. `--export DIR` writes the averaged weights
in diffusers format (half precision) with the training facts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
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
from . import word_gains

DROP_WORDS = 0.1  # share of pictures shown without words: the unconditional branch
AVERAGE_DECAY = 0.999


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
        count = len(shard["scale"])
        rows = (self.next + np.arange(count)) % self.capacity
        for name, values in shard.items():
            self.columns[name][rows] = values
        self.next = (self.next + count) % self.capacity
        self.filled = min(self.filled + count, self.capacity)

    def batch(self, size: int, rng: np.random.Generator) -> dict[str, Tensor]:
        rows = rng.integers(0, self.filled, size)
        return {name: torch.from_numpy(values[rows]) for name, values in self.columns.items()}


class Prior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = network.new_unet()
        self.conditioner = network.Conditioner(len(WORDS), 4 * self.unet.config.block_out_channels[0])


def batch_loss(prior: Prior, batch: dict[str, Tensor], alphas_cumprod: Tensor, generator: torch.Generator) -> Tensor:
    """Mean over the pictures of the root mean squared error of x0 on the object.

    The root keeps pictures whose pattern nobody can guess from drowning those of plain materials,
    where small differences tell metal from paint.
    """
    device = alphas_cumprod.device
    count = len(batch["scale"])
    x0 = batch["target"].to(device).float() / 127.5 - 1
    coverage = batch["coverage"].to(device).float() / 255
    condition = conditions.assemble(
        batch["light"].to(device).float() / 255,
        batch["normal"].to(device).float() / 127,
        coverage,
        batch["q"].to(device).float(),
    )
    timestep = torch.randint(0, len(alphas_cumprod), (count,), generator=generator).to(device)
    noise = torch.randn(x0.shape, generator=generator).to(device)
    drop = torch.rand(count, generator=generator) < DROP_WORDS
    numbers = torch.where(drop[:, None], -1, batch["words"].long()).to(device)
    alpha_bar = alphas_cumprod[timestep].view(-1, 1, 1, 1)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    with torch.autocast(device.type, torch.bfloat16):
        embedding = prior.conditioner(numbers, batch["scale"].to(device))
        x0_hat = network.predict_x0(
            prior.unet,
            a * x0 + s * noise,
            condition,
            timestep,
            embedding,
            prior.conditioner.paint(numbers, condition, embedding),
            alpha_bar.flatten(),
        )
    error = ((x0_hat - x0) ** 2 * coverage).sum((1, 2, 3)) / (coverage.sum((1, 2, 3)) * 3)
    return (error + 1e-5).sqrt().mean()


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    prior = Prior().to(device, memory_format=torch.channels_last)
    average = deepcopy(prior).requires_grad_(False)
    optimiser = torch.optim.AdamW(prior.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    alphas_cumprod = network.new_scheduler().alphas_cumprod.to(device)
    facts = {"step": 0, "pictures_seen": 0, "minutes": 0.0, "seed": arguments.seed, "batch": arguments.batch}
    state_file = arguments.state / "state.pt"
    if not state_file.exists():
        taken = warm_start(prior, arguments.warm_start) if arguments.warm_start else set()
        if "conditioner.gains.weight" not in taken:
            prior.conditioner.gains.weight.data.copy_(word_gains.fit(arguments.data, arguments.fit_shards))
        average.load_state_dict(prior.state_dict())
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        prior.load_state_dict(state["prior"])
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
        loss = batch_loss(prior, ring.batch(arguments.batch, rng), alphas_cumprod, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimiser.step()
        decay = min(AVERAGE_DECAY, (1 + facts["step"]) / (10 + facts["step"]))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(prior.parameters()), 1 - decay)
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
            save(arguments, prior, average, optimiser, facts)
            saved = time.monotonic()


def warm_start(prior: Prior, source: Path) -> set[str]:
    """Take over the weights of an earlier training that still have their place and shape; their names.

    `source` is a state.pt or an exported folder.
    """
    if source.is_dir():
        unet = UNet2DModel.from_pretrained(source / "unet", use_safetensors=True).state_dict()
        old = {f"unet.{k}": v for k, v in unet.items()}
        old |= {f"conditioner.{k}": v for k, v in load_file(source / "words.safetensors").items()}
    else:
        old = torch.load(source, map_location="cpu", weights_only=True)["average"]
    own = prior.state_dict()
    fitting = {k: old[k].to(v.dtype) for k, v in own.items() if k in old and old[k].shape == v.shape}
    prior.load_state_dict(own | fitting)
    return set(fitting)


def save(arguments, prior: Prior, average: Prior, optimiser: torch.optim.Optimizer, facts: dict) -> None:
    state = {"prior": prior.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
    beside = arguments.state / "state.part"
    torch.save(state, beside)
    os.replace(beside, arguments.state / "state.pt")
    (arguments.state / "facts.json").write_text(json.dumps(facts))
    if arguments.export:
        export(average, arguments.export, facts)


def export(prior: Prior, folder: Path, facts: dict) -> None:
    """Half-precision weights in diffusers format, the word table and the training facts."""
    half = deepcopy(prior).half().to(memory_format=torch.contiguous_format)
    half.unet.save_pretrained(folder / "unet", safe_serialization=True, max_shard_size="15MB")
    network.new_scheduler().save_pretrained(folder / "scheduler")
    words = {k: v.contiguous() for k, v in half.conditioner.state_dict().items()}
    save_file(words, folder / "words.safetensors")
    facts = {**facts, "materials": len(materials.MATERIALS), "table_version": materials.table_version()}
    (folder / "words.json").write_text(json.dumps({"words": WORDS, "training": facts}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--capacity", type=int, default=90_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--export", type=Path)
    parser.add_argument("--fit-shards", type=int, default=300, help="shards the words' gains are fitted on")
    parser.add_argument("--warm-start", type=Path, help="state.pt of an earlier training, or an exported folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.state.mkdir(parents=True, exist_ok=True)
    train(arguments)


if __name__ == "__main__":
    main()
