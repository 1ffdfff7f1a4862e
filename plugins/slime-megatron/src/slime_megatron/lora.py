"""LoRA (Hu et al. 2021, arXiv:2106.09685): `--lora-rank`. The backend calls it when it has built a model.

A linear layer W of the Hugging Face model becomes W + alpha / rank · B A, of which only A (rank, in) and B (out, rank) are
trained; B starts as 0. The options, the layers that get an adapter and the numbers that it starts with are those of peft in the
torch backend; how adapters are computed on ranks is in `slime_megatron.adapter`. This file chooses the layers, gives weights back
under the names of the plain model, and writes the adapter where peft finds it. `BaseModel` is the model with its adapters off:
what a KL term refers to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn

from slime_core.errors import ArgumentError
from slime_core.remote_code import from_config
from slime_core.tensors.adapter_files import write_adapter
from slime_core.training.adapters import target_layers
from slime_megatron import weights
from slime_megatron.adapter import Adapter
from slime_megatron.adapter_names import BESIDE, FusedLayer, add_rules, is_adapter, with_adapter
from slime_megatron.arguments import MegatronRunArguments
from slime_megatron.model import BuiltModel, HiddenStates

if TYPE_CHECKING:
    from slime_core.contracts.train_backend import TrainBatch
    from slime_megatron.backend import MegatronBackend

Sizes = dict[str, tuple[int, int]]
"""(inputs, outputs) by the names of linear layers of a Hugging Face model."""


def add_adapters(model: BuiltModel, config: Any, args: MegatronRunArguments) -> None:
    """Give an adapter to the linear layers that `--target-modules` names, and freeze everything else. A critic's head, which is
    added later, is trained too.

    Args:
        config: of transformers.

    Raises:
        ArgumentError: a name is that of no linear layer; says which there are. Or no layer of this pipeline stage gets one.
    """
    sizes = linear_layers(config)
    targets = target_layers(set(map(_last, sizes)), args.target_modules, f"a {config.model_type} model")
    chosen = {name: size for name, size in sizes.items() if _last(name) in targets}
    add_rules(model.names, targets)
    model.module.requires_grad_(False)
    model.module.trains_adapters = True
    own: dict[str, Adapter] = {}
    for name, linear in own_linears(model):
        rule, files = model.names.of(weights.whole_model_name(model, f"{name}.weight"))
        layers = [file.removesuffix(".weight") for file in files]
        adapter = None
        if wanted := [layer for layer in layers if layer in chosen]:
            fused = FusedLayer({_last(layer): sizes[layer][1] for layer in layers}, rule.layout)
            scale = args.lora_alpha / args.lora_rank
            adapter = Adapter(linear, fused, [_last(layer) for layer in wanted], args.lora_rank, scale)
            parent, _, place = name.rpartition(".")
            model.module.get_submodule(parent).add_module(place + BESIDE, adapter)
            own |= dict.fromkeys(wanted, adapter)
        linear.forward = partial(forward_rows, linear.forward, adapter)
    if not own:
        raise ArgumentError(
            f"--target-modules {' '.join(args.target_modules)}: no layer of pipeline stage "
            f"{parallel_state.get_pipeline_model_parallel_rank()} gets an adapter, and the optimizer of a stage that trains nothing "
            "cannot be saved. Name layers that every stage has, such as o_proj, or choose fewer stages."
        )
    for layer, start in _starts(chosen, args.lora_rank, args.seed):
        if layer in own:
            own[layer].fill(_last(layer), start)
    if model.module.pre_process:
        model.module.embedding.register_forward_hook(ask_for_gradient)


def linear_layers(config: Any) -> Sizes:
    """The linear layers in the blocks of the Hugging Face model, in its order: those that peft can give an adapter. Experts are
    none."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        whole = from_config(AutoModelForCausalLM, copy.deepcopy(config))
    found = {}
    for name, module in whole.base_model.named_modules():
        if isinstance(module, nn.Linear) and ".experts." not in name:
            found[f"{whole.base_model_prefix}.{name}"] = (module.in_features, module.out_features)
    return found


def trained_alone(module: HiddenStates, state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of a model's state, by its own names: of a model with adapters only what is trained."""
    if not module.trains_adapters:
        return state
    return {name: state[name] for name, parameter in module.named_parameters() if parameter.requires_grad}


def gather_adapters(model: BuiltModel) -> Iterator[tuple[str, Tensor]]:
    """Every A and B under peft's names of them, whole, on every rank. All ranks iterate together."""
    own = {name: tensor for name, tensor in weights.own_tensors(model) if is_adapter(name)}
    return weights.gather(model, own)


def merged(model: BuiltModel, args: MegatronRunArguments) -> Iterator[tuple[str, Tensor]]:
    """All weights under the plain model's names, whole, on every rank: W + alpha / rank · B A for a layer with an adapter. All
    ranks iterate together. One such sum exists at a time, and the adapters that are still to come."""
    adapters = dict(gather_adapters(model))
    frozen = {name: tensor for name, tensor in weights.own_tensors(model) if not is_adapter(name)}
    for name, weight in weights.gather(model, frozen):
        yield name, with_adapter(name, weight, adapters, args)


def save_adapter(model: BuiltModel, args: MegatronRunArguments, folder: Path, write: bool = True) -> None:
    """Write the adapter alone into a folder, as `peft.PeftModel.from_pretrained(base, folder)` reads it.

    Args:
        write: False: only take part in putting the adapter together.
    """
    adapter = dict(gather_adapters(model))
    if write:
        experts = bool(model.module.config.num_moe_experts)
        write_adapter(folder, adapter, args, experts=experts)


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Let the model compute what its base model does, inside of this context."""
    adapters = [adapter for adapter in module.modules() if isinstance(adapter, Adapter)]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True


class BaseModel:
    """A reference model that takes no memory: the actor's model without its adapters."""

    def __init__(self, actor: MegatronBackend, module: nn.Module) -> None:
        self._actor, self._module = actor, module

    def log_probs(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """Log-probs of the response tokens under the weights before training, shaped like `TrainBackend.log_probs`."""
        with adapters_off(self._module):
            return self._actor.log_probs(batch)


def forward_rows(plain: Any, adapter: Adapter | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A linear layer with its adapter, if it has one, in place of its own `forward`.

    It multiplies matrices: with a further dimension torch chooses another way for weights that are frozen, which is slower and
    gives other last digits than the model whose weights are all trained.
    """
    rows = x.flatten(0, -2)
    output, bias = plain(rows)
    if adapter is not None and adapter.enabled:
        output = output + adapter(rows)
    return output.unflatten(0, (-1, *x.shape[1:-1])), bias


def ask_for_gradient(module: nn.Module, given: Any, output: Tensor) -> None:
    """A hook of a frozen embedding: layers that are computed again in the backward pass get no gradient unless their input asks for
    one."""
    if torch.is_grad_enabled():
        output.requires_grad_(True)


def own_linears(model: BuiltModel) -> Iterator[tuple[str, Any]]:
    """The linear layers in this rank's blocks, but for those of experts."""
    for name, module in list(model.module.named_modules()):
        if (
            name.startswith("decoder.")
            and isinstance(module, (ColumnParallelLinear, RowParallelLinear))
            and not module.is_expert
        ):
            yield name, module


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _starts(chosen: Sizes, rank: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The A (rank, in) that each layer starts with, on all ranks the same whole one, and for one seed the one that peft gives it:
    that makes A and B as torch's linear layers and then draws A once more."""
    generator = torch.Generator().manual_seed(seed)
    for name, (inputs, outputs) in chosen.items():
        a = torch.empty(rank, inputs)
        for drawn in (a, torch.empty(outputs, rank), a):
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        yield name, a
