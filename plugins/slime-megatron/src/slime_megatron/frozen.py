"""Parameters that are not trained (`--only-train-params-name-list`, `--freeze-params-name-list`). The backend calls it when it has
built a model, before that is wrapped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import torch.distributed as dist
from megatron.core import parallel_state

from slime_core.errors import ArgumentError
from slime_core.training.frozen import freezes, trained_names
from slime_megatron import lora, weights
from slime_megatron.arguments import MegatronRunArguments
from slime_megatron.model import VALUE_HEAD, BuiltModel

_EXPERT = re.compile(r"\.experts\.\d+\.")


def freeze(model: BuiltModel, args: MegatronRunArguments) -> None:
    """Let only those of this rank's parameters ask for gradients that the options say are trained, and a critic's head. All ranks
    call this together.

    Raises:
        ArgumentError: see `slime_core.training.frozen.trained_names`; or tensors of a file that are one weight here, or experts of a
            layer, are not all trained or all frozen; or this pipeline stage would train nothing.
    """
    if not freezes(args):
        return
    files = {}
    for name, _ in model.module.named_parameters():
        if not name.startswith(f"{VALUE_HEAD}."):
            files[name] = model.names.of(weights.file_side(model, weights.whole_model_name(model, name)))[1]
    everybody = [{file for own in files.values() for file in own}]
    if dist.is_initialized() and dist.get_world_size() > 1:
        everybody = everybody * dist.get_world_size()
        dist.all_gather_object(everybody, everybody[0])
    trained = trained_names(args, sorted(set().union(*everybody)), "the model")
    _require_whole_layers_of_experts(everybody, trained)
    model.module.freezes_weights = True
    parameters = dict(model.module.named_parameters())
    for name, own in files.items():
        kept = trained.intersection(own)
        if kept and len(kept) < len(own):
            raise ArgumentError(
                f"{', '.join(sorted(kept))} would be trained and {', '.join(sorted(set(own) - kept))} frozen, but with --train-backend "
                "megatron they are one weight. Name all of them or none in --only-train-params-name-list or "
                "--freeze-params-name-list, or choose --train-backend torch."
            )
        if not kept:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ArgumentError(
            "--only-train-params-name-list or --freeze-params-name-list: pipeline stage "
            f"{parallel_state.get_pipeline_model_parallel_rank()} would train nothing, and the optimizer of such a stage cannot be "
            "saved. Train parameters that every stage has, or choose fewer stages."
        )
    for _, linear in lora.own_linears(model):  # as with adapters, so that frozen weights compute what trained ones do
        linear.forward = partial(lora.forward_rows, linear.forward, None)
    if model.module.pre_process:
        model.module.embedding.register_forward_hook(lora.ask_for_gradient)


def _require_whole_layers_of_experts(names: Sequence[set[str]], trained: set[str]) -> None:
    """Refuse to train some experts of a layer alone: the optimizer's state of all of them is stored as one tensor."""
    kinds: dict[str, set[bool]] = {}
    for name in set().union(*names):
        if (every := _EXPERT.sub(".experts.N.", name)) != name:
            kinds.setdefault(every, set()).add(name in trained)
    if mixed := sorted(every for every, are in kinds.items() if len(are) > 1):
        raise ArgumentError(
            f"{mixed[0]} would be trained in some experts N and frozen in others; with --train-backend megatron the optimizer's state "
            "of such experts cannot be saved. Name all experts of a layer or none in --only-train-params-name-list or "
            "--freeze-params-name-list."
        )
