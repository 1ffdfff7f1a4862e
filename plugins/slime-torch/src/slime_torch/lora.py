"""LoRA (Hu et al. 2021, arXiv:2106.09685) through peft: `--lora-rank`. The backend calls it when a model is loaded.

A linear layer W becomes W + alpha / rank · B A, of which only A (rank, in) and B (out, rank) are trained; B starts as
0. The layers are peft's; this file chooses them, gives the weights back under the names of the plain model, and writes
the adapter where peft finds it. `BaseModel` is the model with its adapters off: what a KL term refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slime_core.data.vision import is_vision_model
from slime_core.errors import ArgumentError
from slime_core.tensors.adapter_files import write_adapter
from slime_core.training.adapters import target_layers
from slime_torch.arguments import TorchRunArguments
from slime_torch.model import VALUE_HEAD
from slime_torch.vision import language_model, vision_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from slime_core.contracts.train_backend import TrainBatch
    from slime_torch.backend import TorchBackend

_NAME = "default"  # peft's name of an adapter that was given none


def add_adapters(model: PreTrainedModel, args: TorchRunArguments) -> None:
    """Give an adapter to the linear layers of `model` that `--target-modules` names, with `--freeze-vision` to those of its text
    model alone, and freeze everything else but a critic's head.

    Raises:
        ArgumentError: a name is that of no linear layer; says which there are. Or there is no vision to freeze.
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds, which only a run with LoRA should pay

    if args.freeze_vision and not vision_names(model):
        raise ArgumentError(f"--freeze-vision: {type(model).__name__} has no vision tower. Leave the option out.")
    body = language_model(model) if args.freeze_vision else model.base_model
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=args.lora_dropout,
        target_modules=_targets(body, args.target_modules, whole_names=is_vision_model(model.config)),
    )
    config.fan_in_fan_out = _transposed(body)
    # Through a module without a configuration: by that peft knows models with experts, and there it takes gate_proj and the like
    # for experts, not for layers.
    inject_adapter_in_model(config, nn.ModuleDict({"body": body}))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name) or name.startswith(VALUE_HEAD))


def merged_parameters(
    model: nn.Module, full: Callable[[Tensor], Tensor] = Tensor.detach
) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters under the plain model's names, W + alpha / rank · B A for a layer with an adapter.

    One such sum exists at a time, unless the caller keeps them. The parameters themselves are not changed.

    Args:
        full: makes a whole, detached tensor of a parameter. It is called on all of them, in the same order on every
            rank.
    """
    layers = {f"{name}.base_layer": layer for name, layer in _layers(model)}
    for name, parameter in model.named_parameters():
        if _is_adapter(name):
            continue
        owner, _, kind = name.rpartition(".")
        value = full(parameter)
        if owner not in layers:
            yield name, value
            continue
        if kind == "weight":
            layer = layers[owner]
            product = full(layer.lora_B[_NAME].weight) @ full(layer.lora_A[_NAME].weight)
            value = torch.add(value, product.T if layer.fan_in_fan_out else product, alpha=layer.scaling[_NAME])
        yield f"{owner.removesuffix('.base_layer')}.{kind}", value


def merge(model: nn.Module) -> dict[str, Tensor]:
    """Make the base weights what `merged_parameters` gives, one after the other, and return them under the plain model's names. The
    model is of no use then but for these."""
    base = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters() if not _is_adapter(name)}
    with torch.no_grad():
        for name, value in merged_parameters(model):
            base[name].copy_(value)
    return {name: parameter.detach() for name, parameter in base.items()}


def save_adapter(
    model: PreTrainedModel,
    args: TorchRunArguments,
    path: Path,
    full: Callable[[Tensor], Tensor] = Tensor.detach,
    write: bool = True,
) -> None:
    """Write the adapter alone into the folder `path`, as `peft.PeftModel.from_pretrained(base, path)` reads it.

    Args:
        full: makes a whole, detached tensor of a parameter, as in `merged_parameters`.
        write: False: only take part in putting the adapter together.
    """
    adapter = {
        name.replace(f".{_NAME}.", "."): full(parameter)
        for name, parameter in model.named_parameters()
        if _is_adapter(name)
    }
    if write:
        body = model.base_model
        experts = any(name.rpartition(".")[2] == "experts" for name, _ in body.named_modules())
        settings = {"experts": experts, "transposed": _transposed(body), "some": is_vision_model(model.config)}
        write_adapter(path, adapter, args, **settings)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let `model` compute what its base model does, inside of this context."""
    layers = [layer for _, layer in _layers(model)]
    # Not peft's enable_adapters: that also freezes the adapters, and FSDP remembers what was frozen when it first ran.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


class BaseModel:
    """A reference model that takes no memory: the actor's model without its adapters."""

    def __init__(self, actor: TorchBackend) -> None:
        self._actor = actor

    def log_probs(self, batch: TrainBatch) -> Sequence[Sequence[float]]:
        """Log-probs of the response tokens under the weights before training, shaped like `TrainBackend.log_probs`."""
        with adapters_off(self._actor.model):
            return self._actor.log_probs(batch)


def _targets(body: nn.Module, wanted: Sequence[str], whole_names: bool) -> list[str]:
    """The last parts of the names of the layers that get an adapter, sorted.

    Args:
        whole_names: not the last parts alone, since those of a vision tower may be the numbers of its blocks too.
    """
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in body.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    targets = target_layers({name.rpartition(".")[2] for name in linear}, wanted, type(body).__name__)
    return sorted(name for name in linear if name.rpartition(".")[2] in targets) if whole_names else sorted(targets)


def _transposed(body: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in body.modules())


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name
