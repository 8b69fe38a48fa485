# SPDX-License-Identifier: Apache-2.0
"""How a model shares its device: what leaves it while others work, and how finely the work is cut.

Moving and cutting are diffusers' own; here stands when, and what goes together. The pictures that come of it are the
same but for rounding; those of a tiled autoencoder are nearly so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

OFFLOADS = ("auto", "never", "parts", "blocks")
WORK_BYTES = 4_000_000_000  # what pictures take beside the weights: four rows of SDXL, one decoded picture of 1024
TILE = 512  # pixels
_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")  # diffusers' names


@dataclass(frozen=True)
class Memory:
    """Raises ValueError with a sentence.

    rows: pictures, each with and without the prompt counted, that a network sees at once.
    offload: "never": the whole model stays on its device. "parts": only the network that works is there. "blocks": of
    that network, only the blocks that work. "auto": parts where there is no room for all, else never.
    attention_slicing: attention head by head, where the network offers it.
    vae_tiling: the autoencoder works in tiles. (It never sees more than one picture at once.)
    """

    rows: int = 4
    offload: str = "auto"
    attention_slicing: bool = False
    vae_tiling: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= 64:
            raise ValueError(f"A network cannot see {self.rows} pictures at once; rows must lie between 1 and 64.")
        if self.offload not in OFFLOADS:
            raise ValueError(f"The option “offload” is one of {', '.join(OFFLOADS)}, not “{self.offload}”.")


def is_short(modules: tuple[torch.nn.Module, ...], device: torch.device) -> bool:
    """Whether the device has no room for all of them and their work. Only CUDA tells."""
    if device.type != "cuda":
        return False
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    missing = sum(tensor.nbytes for tensor in tensors if tensor.device.type != "cuda")
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return missing + WORK_BYTES > free


def stream_blocks(module: torch.nn.Module, device: torch.device) -> None:
    """Keep the module on the CPU but for the block that works."""
    from diffusers.hooks import apply_group_offloading  # not with the dataclass, which every run reads

    apply_group_offloading(
        module, device, offload_type="block_level", num_blocks_per_group=1, use_stream=device.type == "cuda"
    )


def stop_streaming(module: torch.nn.Module) -> None:
    """Undo `stream_blocks`."""
    from diffusers.hooks import HookRegistry

    registry = HookRegistry.check_if_exists_or_initialize(module)
    for name in _HOOKS:
        registry.remove_hook(name, recurse=True)


def can_slice_attention(module: torch.nn.Module) -> bool:
    return hasattr(module, "set_attention_slice")


def slice_attention(module: torch.nn.Module, wanted: bool) -> bool:
    """Attention of the network head by head, or as usual; False where it offers no choice."""
    if not can_slice_attention(module):
        return False
    module.set_attention_slice("max" if wanted else None)
    return True


def tile(vae: torch.nn.Module, wanted: bool) -> None:
    """Let the autoencoder work in tiles of at most TILE pixels, or no more."""
    if not wanted:
        vae.disable_tiling()
        return
    shrink = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_sample_min_size = min(TILE, vae.config.sample_size)
    vae.tile_latent_min_size = vae.tile_sample_min_size // shrink
    vae.enable_tiling()
