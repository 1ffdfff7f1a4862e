"""Loads a causal language model and proves, before training, that the packed computation is the model's own.

`load_model` and `load_tokenizer` read a Hugging Face folder. `prepare` switches a model to packed attention, finds its
head, and compares log-probabilities of a packed row with what the untouched model gives for each sequence alone. A
model with attention, positions, state or logits that this backend does not know therefore cannot train wrongly in
silence: it is refused. `add_value_head` makes a critic of a language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from slime_core.errors import ArgumentError, PluginError
from slime_core.sample import Sample
from slime_core.tensors.packed_rows import Segments, pack_samples
from slime_torch.attention import PACKED
from slime_torch.linear_cross_entropy import Head, token_log_probs

VALUE_HEAD = "value_head"


def load_model(folder: str, device: torch.device, option: str = "--hf-checkpoint") -> PreTrainedModel:
    """The causal language model in `folder`, its weights in float32.

    Raises:
        ArgumentError: there is no such folder, it holds no causal language model, or weights are missing.
    """
    _check_folder(folder, option)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArgumentError(
            f"{option} {folder} does not hold a causal language model that transformers can load: {error}"
        ) from error
    wrong = sorted(str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]])
    if wrong:
        raise ArgumentError(
            f"{option} {folder} lacks {len(wrong)} of the weights of {type(model).__name__}, or has them in "
            f"another shape: {', '.join(wrong[:5])}. Get a complete checkpoint; training would start from random weights."
        )
    return model.to(device)


def empty_model(folder: str, option: str = "--hf-checkpoint") -> PreTrainedModel:
    """What `load_model` gives, its parameters on the meta device: for a rank that gets them from another one."""
    _check_folder(folder, option)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    model.tie_weights()
    return model.eval()


def load_tokenizer(folder: str) -> Any:
    """The tokenizer in `folder`; raises `ArgumentError` when there is none."""
    _check_folder(folder)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(f"--hf-checkpoint {folder} holds no tokenizer that loads: {error}") from error


def prepare(model: PreTrainedModel) -> Head:
    """Switch `model` to packed attention and return its head. Leaves random states alone. A model on the meta device
    is not compared.

    Raises:
        PluginError: the model computes something that this backend does not reproduce; says what.
    """
    if model.device.type == "meta":
        model.set_attn_implementation(PACKED)
        return find_head(model)
    was_training = model.training
    model.eval()
    samples = _probe_samples(vocabulary_size(model))
    row = pack_samples(samples, vocab_size=vocabulary_size(model), share_prompts=True, device=model.device)
    with torch.no_grad():
        logits = torch.cat([_response_logits(model, sample) for sample in samples])
        try:
            model.set_attn_implementation(PACKED)
        except ValueError as reason:
            raise PluginError(
                f"The torch backend cannot train {type(model).__name__}: its attention cannot be exchanged. {reason}"
            ) from reason
        head = find_head(model)
        hidden = packed_hidden(model, row.input_ids, row.position_ids, row.segments)
        found, _ = token_log_probs(hidden[row.predictors], head, row.targets)
        wanted = logits.to(found.dtype).log_softmax(-1).gather(1, row.targets[:, None]).squeeze(1)
    model.train(was_training)
    error, spread = (found - wanted).abs().max().item(), logits.std().item()
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


def add_value_head(model: PreTrainedModel, folder: str | None = None) -> nn.Linear:
    """Give `model` a head that turns a hidden state into one number, in place of logits: a linear layer without bias.

    It is a part of the model, so it is trained, saved and exported with it. Its weight is that of the checkpoint in
    `folder`, if that is one of a critic, else 0. An output embedding of its own will not be trained any more.
    """
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    head = nn.Linear(output.weight.shape[1], 1, bias=False, device=embedding.device, dtype=embedding.dtype)
    nn.init.zeros_(head.weight)
    for file in sorted(Path(folder).glob("*.safetensors")) if folder else ():
        with safe_open(file, "pt") as stored:
            if f"{VALUE_HEAD}.weight" in stored.keys():  # noqa: SIM118 - it is no mapping
                head.weight.data.copy_(stored.get_tensor(f"{VALUE_HEAD}.weight"))
    model.add_module(VALUE_HEAD, head)
    for parameter in output.parameters():
        parameter.requires_grad_(parameter is embedding)
    return head


def find_head(model: PreTrainedModel) -> Head:
    """The model's output embedding and what its configuration says is done to the logits.

    Raises:
        PluginError: the output embedding is not a linear layer.
    """
    linear, config = model.get_output_embeddings(), model.config
    if not isinstance(linear, nn.Linear):
        raise PluginError(
            f"The torch backend cannot train {type(model).__name__}: its output embedding is {type(linear).__name__}, "
            "not a linear layer."
        )
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear.weight, linear.bias, scale, getattr(config, "final_logit_softcapping", None))


def _probe_samples(vocabulary: int) -> list[Sample]:
    """A sequence alone and two that share a prompt; all their tokens are fixed and varied."""
    ids = [n * 7919 % vocabulary for n in range(1, 24)]
    shared = ids[8:13]
    return [
        Sample(group_index=0, tokens=ids[:8], response_length=7),
        Sample(group_index=1, tokens=shared + ids[13:17], response_length=4),
        Sample(group_index=1, tokens=shared + ids[17:], response_length=6),
    ]


def _response_logits(model: PreTrainedModel, sample: Sample) -> Tensor:
    """(R, V) logits from which the model itself predicts the response."""
    logits = model(input_ids=torch.tensor([sample.tokens], device=model.device), use_cache=False).logits[0]
    return logits[-sample.response_length - 1 : -1]


def _check_folder(folder: str, option: str = "--hf-checkpoint") -> None:
    if not (Path(folder) / "config.json").is_file():
        raise ArgumentError(
            f"{option} {folder} is not a Hugging Face checkpoint: there is no {Path(folder) / 'config.json'}. "
            "Give the path of a downloaded model folder."
        )
