# SPDX-License-Identifier: Apache-2.0
"""The parts of a model folder, opened by their libraries' own classes; nothing of them is left to chance.

The libraries fill what a file lacks with random numbers and only warn, and make a tokenizer of an empty folder: here
both are refused. On the device “meta” a part has shapes and no values, which tells cheaply whether it is whole.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from .folder import FolderError, ModelFolder
from .interface import ModelError

_STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}  # safetensors' names
_WORDS = "red oak, 7 bricks"  # which every vocabulary knows, be it by letters


@contextmanager
def refusals(subject: str) -> Iterator[None]:
    """Inside, what the libraries raise for a bad folder becomes a FolderError about the `subject`. Want of memory is
    no fault of the folder and stays what it is, as does a ModelError."""
    try:
        yield
    except (ModelError, MemoryError):
        raise
    except ImportError as error:
        raise FolderError(f"{subject} needs a library that is missing: {error.name}.") from error
    # Values that no network can be made of, weights of other shapes, words without a row: errors of every class.
    except Exception as error:
        if _wants_memory(error):
            raise
        raise FolderError(f"{subject} cannot be loaded. {_short(error)}") from error


def network(
    folder: ModelFolder, part: str, kind: type, dtype: torch.dtype, outlined: bool = False
) -> torch.nn.Module:
    """The part, a network of the class `kind` of diffusers or transformers, frozen and on the CPU; `outlined`: its
    shapes alone, on “meta”, and in the file's own precision. Raises FolderError for one that is not whole, and what
    `refusals` turns into one."""
    from diffusers.utils import logging

    logging.set_verbosity_error()  # the weights that it would warn of are told below
    path = folder.path / part
    # To turn values into another precision would mean to read them.
    named = {**_named(kind, _stored_dtype(path)), "device_map": {"": "meta"}} if outlined else _named(kind, dtype)
    made, told = kind.from_pretrained(
        path, use_safetensors=True, local_files_only=True, variant=folder.variant(part), output_loading_info=True,
        **named,
    )  # fmt: skip
    # Weights that another one stands for, and what is computed anew, the libraries do not count among them.
    if lacking := sorted(told["missing_keys"]):
        raise FolderError(
            f"The model is not complete: of its weights {path} lacks {len(lacking)}, {lacking[0]} among them. Download "
            "it again."
        )
    if unfit := sorted(told["mismatched_keys"]):
        name, stored, meant = unfit[0]
        raise FolderError(
            f"The model is damaged: {path} does not fit its own config.json ({name} is {tuple(stored)} in the one and "
            f"{tuple(meant)} by the other). Download it again."
        )
    return made.eval().requires_grad_(False)


def text_parts(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """The folder's tokenizers on hand and text encoders on `device`, by part; whoever holds them last frees them.
    Raises FolderError."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    parts: dict[str, object] = {}
    for part, kind in folder.parts.items():
        if part.startswith("tokenizer"):
            parts[part] = _tokenizer(folder.path / part, getattr(transformers, kind))
        elif part.startswith("text_encoder"):
            with refusals(f"The {part} of the model in {folder.path}"):
                encoder = network(folder, part, getattr(transformers, kind), dtype, outlined=device.type == "meta")
            parts[part] = encoder.to(device)
    for part, tokenizer in parts.items():
        if part.startswith("tokenizer"):
            known = parts[part.replace("tokenizer", "text_encoder")].get_input_embeddings().num_embeddings
            if len(tokenizer) > known:
                raise FolderError(
                    f"The {part} of the model in {folder.path} has {len(tokenizer)} words where its text encoder knows "
                    f"{known}: they are of different models. Download it again."
                )
    return parts


def too_long(tokenizer, texts: tuple[str, ...], limit: int) -> bool:
    """Whether the tokenizer would cut any of the texts at `limit` tokens."""
    return any(len(tokenizer(text).input_ids) > limit for text in texts)


def _tokenizer(path: Path, kind: type):
    try:
        made = kind.from_pretrained(path, local_files_only=True)
        understood = set(made(_WORDS).input_ids) - set(made.all_special_ids)  # what is unknown is special too
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # the library tokenizers has no class of its own for what it cannot read
        raise FolderError(
            f"The model is damaged: the tokenizer in {path} cannot be read ({_short(error)}) Download it again."
        ) from error
    if not understood:
        raise FolderError(
            f"The model is not complete: the tokenizer in {path} knows no words, and every prompt would mean the same. "
            "Download it again."
        )
    return made


def _named(kind: type, dtype: torch.dtype) -> dict[str, object]:
    """What each library's classes are told in words of their own. Weights of other shapes are an error in diffusers,
    which says where; transformers would say its own setting's name."""
    from diffusers import ModelMixin

    if issubclass(kind, ModelMixin):
        return {"torch_dtype": dtype, "low_cpu_mem_usage": True}
    return {"dtype": dtype, "ignore_mismatched_sizes": True}


def _stored_dtype(path: Path) -> torch.dtype:
    with safe_open(next(path.glob("*.safetensors")), "pt") as file:
        names = list(file.keys())
        return _STORED.get(file.get_slice(names[0]).get_dtype() if names else "", torch.float32)


def _wants_memory(error: Exception) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        # torch's allocator on the CPU has no class of its own
        or (isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text))
    )


def _short(error: Exception) -> str:
    """The first sentence of what a library says."""
    told = " ".join(str(error).split()).partition(". ")[0][:300]
    return told if told.endswith(".") else f"{told}."
