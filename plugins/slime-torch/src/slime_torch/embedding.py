"""What must hold of a checkpoint's embedding before training: it has a row for every token, and is tied only where the
weights are. Called by the backend where it loads a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    behind = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    behind.pop(getattr(tokenizer, "pad_token", None) or "", None)
    if beyond := sorted((token for token in behind if not _NO_TEXT.search(token)), key=behind.__getitem__):
        named = ", ".join(f"{token!r} ({behind[token]})" for token in beyond[:5])
        raise ArgumentError(
            f"The tokenizer of --hf-checkpoint knows {len(beyond)} tokens that the model of {option} has no embedding for, "
            f"which has {rows} rows: {named}. Enlarge the embedding (model.resize_token_embeddings) and save the model again, "
            "or use the tokenizer that belongs to it."
        )


def require_tied(model: PreTrainedModel, folder: str, option: str) -> None:
    """Check that a checkpoint whose config.json ties the embeddings does not hold two different ones.

    Raises:
        ArgumentError: it does, so that one of them would be lost when the model is saved.
    """
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    ends = _output_names(model)
    found: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            names = set(stored.keys())
            for name in names & (ends | _input_names(model)):
                found[name] = stored.get_tensor(name)
    outputs, inputs = [found[n] for n in found if n in ends], [found[n] for n in found if n not in ends]
    if outputs and inputs and not (outputs[0].shape == inputs[0].shape and torch.equal(outputs[0], inputs[0])):
        raise ArgumentError(
            f"{option} {folder}: config.json says tie_word_embeddings, but the weights hold two different matrices, "
            f"{' and '.join(sorted(found))}. Set tie_word_embeddings to false in config.json if both are meant; otherwise remove "
            "one of them from the weights."
        )


def _output_names(model: PreTrainedModel) -> set[str]:
    names = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return {name for name in names if name.endswith(("lm_head.weight", "embed_out.weight"))}


def _input_names(model: PreTrainedModel) -> set[str]:
    weight = model.get_input_embeddings().weight
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter is weight or name.endswith(("embed_tokens.weight", "embed_in.weight", "wte.weight"))
    }
