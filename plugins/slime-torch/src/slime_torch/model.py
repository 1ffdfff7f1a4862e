"""Loads a causal language model and proves, before training, that the packed computation is the model's own.

`load_model` and `load_tokenizer` read a Hugging Face folder. `prepare` switches a model to packed attention, finds its
head, and compares log-probabilities of a packed row with what the untouched model gives for each sequence alone. A
model with attention, positions, state or logits that this backend does not know therefore cannot train wrongly in
silence: it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from slime_core.errors import ArgumentError, PluginError
from slime_torch.attention import PACKED
from slime_torch.linear_cross_entropy import Head, token_log_probs
from slime_torch.packing import Segments


def load_model(folder: str, device: torch.device) -> PreTrainedModel:
    """The causal language model in `folder`, its weights in float32.

    Raises:
        ArgumentError: there is no such folder, it holds no causal language model, or weights are missing.
    """
    _check_folder(folder)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArgumentError(
            f"--hf-checkpoint {folder} does not hold a causal language model that transformers can load: {error}"
        ) from error
    wrong = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
    if wrong:
        raise ArgumentError(
            f"--hf-checkpoint {folder} lacks {len(wrong)} of the weights of {type(model).__name__}, or has them in "
            f"another shape: {', '.join(wrong[:5])}. Get a complete checkpoint; training would start from random weights."
        )
    return model.to(device)


def load_tokenizer(folder: str) -> Any:
    """The tokenizer in `folder`; raises `ArgumentError` when there is none."""
    _check_folder(folder)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(f"--hf-checkpoint {folder} holds no tokenizer that loads: {error}") from error


def prepare(model: PreTrainedModel) -> Head:
    """Switch `model` to packed attention and return its head. Leaves random states alone.

    Raises:
        PluginError: the model computes something that this backend does not reproduce; says what.
    """
    was_training = model.training
    model.eval()
    sequences = _probe_sequences(model)
    with torch.no_grad():
        expected = [model(input_ids=s[None], use_cache=False).logits[0] for s in sequences]
        try:
            model.set_attn_implementation(PACKED)
        except ValueError as reason:
            raise PluginError(
                f"The torch backend cannot train {type(model).__name__}: its attention cannot be exchanged. {reason}"
            ) from reason
        head = _find_head(model)
        device, lengths = model.device, tuple(len(s) for s in sequences)
        hidden = packed_hidden(
            model,
            torch.cat(sequences)[None],
            torch.cat([torch.arange(n, device=device) for n in lengths])[None],
            Segments(lengths, torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)),
        )
        targets = torch.cat(sequences).roll(-1)
        found = token_log_probs(hidden, head, targets)
        wanted = torch.cat(expected).to(found.dtype).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    model.train(was_training)
    error, spread = (found - wanted).abs().max().item(), torch.cat(expected).std().item()
    if not error <= 1e-3 * spread:
        raise PluginError(
            f"The torch backend cannot train {type(model).__name__}: on packed rows its log-probabilities differ by "
            f"{error:.2e} from those of single sequences (its logits spread by {spread:.2e}). It mixes tokens other than "
            "by attention, ignores position_ids, or changes its logits in a way that is not supported."
        )
    return head


def packed_hidden(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, segments: Segments) -> Tensor:
    """(N, H) last hidden states of a packed row of N tokens: what the head sees."""
    output = model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, segments=segments)
    return output.last_hidden_state[0]


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many token ids the model can read."""
    return len(model.get_input_embeddings().weight)


def _find_head(model: PreTrainedModel) -> Head:
    linear, config = model.get_output_embeddings(), model.config
    if not isinstance(linear, nn.Linear):
        raise PluginError(
            f"The torch backend cannot train {type(model).__name__}: its output embedding is {type(linear).__name__}, "
            "not a linear layer."
        )
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear.weight, linear.bias, scale, getattr(config, "final_logit_softcapping", None))


def _probe_sequences(model: PreTrainedModel) -> list[Tensor]:
    """Two sequences of 7 and 9 fixed, varied token ids."""
    ids = torch.arange(1, 17, device=model.device) * 7919 % vocabulary_size(model)
    return [ids[:7], ids[7:]]


def _check_folder(folder: str) -> None:
    if not (Path(folder) / "config.json").is_file():
        raise ArgumentError(
            f"--hf-checkpoint {folder} is not a Hugging Face checkpoint: there is no {Path(folder) / 'config.json'}. "
            "Give the path of a downloaded model folder."
        )
