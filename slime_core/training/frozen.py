"""Which parameters are trained (`--only-train-params-name-list`, `--freeze-params-name-list`). Called by the backends that can
freeze some. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection

from slime_core.arguments.groups.training import TrainArguments
from slime_core.errors import ArgumentError

NAME_LISTS = frozenset({"only_train_params_name_list", "freeze_params_name_list", "freeze_vision"})
"""The options."""

_MEGATRON = {
    "word_embeddings|embedding": "embed_tokens",
    "output_layer": "lm_head",
    "linear_qkv": "q_proj, k_proj and v_proj",
    "linear_proj": "o_proj",
    "linear_fc1": "gate_proj and up_proj",
    "linear_fc2": "down_proj",
    "self_attention": "self_attn",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "final_layernorm": "model.norm",
    "q_layernorm": "q_norm",
    "k_layernorm": "k_norm",
    "router": "mlp.gate",
    "local_experts": "experts",
    "decoder": "model",
}
"""Megatron's parts of names, and what most models of Hugging Face have in their place."""


def freezes(args: TrainArguments) -> bool:
    """Whether the options say that some parameters are not trained."""
    return bool(args.only_train_params_name_list or args.freeze_params_name_list or args.freeze_vision)


def trained_names(args: TrainArguments, names: Collection[str], model: str, vision: Collection[str] = ()) -> set[str]:
    """The names of the parameters that are trained: all of them without any option.

    Args:
        names: of all parameters of the whole model, tied ones once, Hugging Face's.
        model: what the model is called in messages.
        vision: those through which images alone go.

    Raises:
        ArgumentError: an expression is found in no name, `--freeze-vision` finds no vision, or nothing is left to train.
    """
    if args.freeze_vision:
        if not vision:
            raise ArgumentError(f"--freeze-vision: {model} has no vision tower. Leave the option out.")
        return _chosen(args, names, model) - set(vision)
    return _chosen(args, names, model)


def _chosen(args: TrainArguments, names: Collection[str], model: str) -> set[str]:
    if not (args.only_train_params_name_list or args.freeze_params_name_list):
        return set(names)
    only = args.only_train_params_name_list
    option = "--only-train-params-name-list" if only else "--freeze-params-name-list"
    found: set[str] = set()
    for pattern in only or args.freeze_params_name_list or ():
        matching = {name for name in names if re.search(pattern, name)}
        if not matching:
            raise ArgumentError(
                f"{option}: {pattern!r} is found in the name of no parameter of {model}. {_advice(pattern, names)}"
            )
        found |= matching
    trained = found if only else set(names) - found
    if not trained:
        raise ArgumentError(
            f"{option} leaves no parameter of {model} to train. Give fewer expressions, or narrower ones."
        )
    return trained


def _advice(pattern: str, names: Collection[str]) -> str:
    told = [(own, theirs) for own, theirs in _MEGATRON.items() if re.search(own, pattern)]
    if told:
        words = "; ".join(f"{own.replace('|', ' and ')} is {theirs}" for own, theirs in told)
        advice = f"That is a name of Megatron's; here they are Hugging Face's on every train backend: {words}."
    else:
        kinds = dict.fromkeys(re.sub(r"\d+", "N", name) for name in names)
        advice = f"Its parameters are {', '.join(kinds)}."
    tied = "lm_head" in pattern or "output_layer" in pattern
    return advice + (" An output layer that is tied to the embedding has the embedding's name alone." if tied else "")
