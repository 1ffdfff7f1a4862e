"""What must hold of a checkpoint's embedding before training: it has a row for every token, and is tied only where the
weights are. Called by train backends where they load a model, and by `slime check`."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor

from slime_core.data.quantised_checkpoints import weight_files_if_any
from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INPUTS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight")
_OUTPUTS = ("lm_head.weight", "embed_out.weight")
_NO_TEXT = re.compile("image|video|audio|vision|speech", re.IGNORECASE)


def require_rows(tokenizer: PreTrainedTokenizerBase, rows: int, option: str) -> None:
    """Check that the model can read every token that text may become.

    What text does not become may lie behind the last row: a placeholder of images or sounds, as in Gemma 3's models of text
    alone, and the padding token.

    Args:
        rows: of the model's input embedding.
        option: that names the model's folder, for messages.

    Raises:
        ArgumentError: the tokenizer knows tokens that the embedding has no row for.
    """
    if _last(tokenizer, len(tokenizer)) < rows:
        return
    behind = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    behind.pop(getattr(tokenizer, "pad_token", None) or "", None)
    if beyond := sorted((token for token in behind if not _NO_TEXT.search(token)), key=behind.__getitem__):
        named = ", ".join(f"{token!r} ({behind[token]})" for token in beyond[:5])
        raise ArgumentError(
            f"The tokenizer of --hf-checkpoint knows {len(beyond)} tokens that the model of {option} has no embedding for, "
            f"which has {rows} rows: {named}. Enlarge the embedding (model.resize_token_embeddings) and save the model again, "
            "or use the tokenizer that belongs to it."
        )


@lru_cache(maxsize=4)
def _last(tokenizer: PreTrainedTokenizerBase, size: int) -> int:
    """The largest number of a token. A look through all of them takes a tenth of a second, and a run looks several times.

    Args:
        size: how many tokens there are, which changes where somebody adds one.
    """
    return max(tokenizer.get_vocab().values(), default=-1)


def require_tied(folder: str, tied: bool, option: str) -> None:
    """Check that a checkpoint whose config.json ties the embeddings does not hold two different ones.

    Args:
        folder: a Hugging Face checkpoint; only its safetensors files are looked into.
        tied: what its configuration says.
        option: that names the folder, for messages.

    Raises:
        ArgumentError: it does, so that one of them would be lost when the model is saved.
        CheckpointError: a file that its index lists is missing.
    """
    if not tied:
        return
    found: dict[str, Path] = {}
    for file in weight_files_if_any(Path(folder)):
        with safe_open(file, "pt") as stored:
            found |= {name: file for name in stored.keys() if name.endswith((*_INPUTS, *_OUTPUTS))}  # noqa: SIM118 - it is no mapping
    outputs, inputs = (sorted(name for name in found if name.endswith(ends)) for ends in (_OUTPUTS, _INPUTS))
    if not outputs or not inputs:
        return
    first, second = _read(found[outputs[0]], outputs[0]), _read(found[inputs[0]], inputs[0])
    if not (first.shape == second.shape and torch.equal(first, second)):
        raise ArgumentError(
            f"{option} {folder}: config.json says tie_word_embeddings, but the weights hold two different matrices, "
            f"{outputs[0]} and {inputs[0]}. Set tie_word_embeddings to false in config.json if both are meant; otherwise remove "
            "one of them from the weights."
        )


def stored_rows(folder: str) -> int | None:
    """Return how many rows the input embedding of a Hugging Face checkpoint has, as its `*.safetensors` files say; None where
    they do not."""
    for file in weight_files_if_any(Path(folder)):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - it is no mapping
                if name.endswith(_INPUTS):
                    return int(stored.get_slice(name).get_shape()[0])
    return None


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as stored:
        tensor: Tensor = stored.get_tensor(name)
    return tensor
