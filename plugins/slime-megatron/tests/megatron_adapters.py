"""LoRA adapters for the cases of `megatron_cases`: peft's on transformers' model, and the same numbers on megatron-core's.

Nothing here imports megatron-core before a function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

RANK, ALPHA = 4, 6.0
SEED = 1234  # the default of --seed


def lora_options(targets: Sequence[str]) -> dict[str, Any]:
    """Options of a backend that trains adapters."""
    return {"lora_rank": RANK, "lora_alpha": ALPHA, "target_modules": list(targets), "seed": SEED}


def with_peft(model: Any, targets: Sequence[str]) -> dict[str, Tensor]:
    """Give transformers' model peft's adapters as the torch backend does, in place, and freeze everything else. Their B is not
    0 afterwards, so that every gradient counts.

    Returns:
        the adapters by peft's names, with the B that they were made with.
    """
    from peft import LoraConfig, inject_adapter_in_model

    body = model.base_model
    linear = {name.rpartition(".")[2] for name, m in body.named_modules() if isinstance(m, nn.Linear)}
    names = sorted(linear if "all-linear" in targets else targets)
    torch.manual_seed(SEED)
    # In a module without a configuration: by that peft would know models with experts, and name experts in place of layers.
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names), nn.ModuleDict({"body": body}))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    made = {plain(name): p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2, generator=generator)
    return made


def plain(name: str) -> str:
    """The name in a file of a parameter of a model that has peft's adapters."""
    return name.replace(".default.", ".").replace(".base_layer.", ".")


def merged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors by their names in files, each with the product of its adapter added if it has one."""
    found = dict(tensors)
    for name in tensors:
        layer, is_a, _ = name.rpartition(".lora_A.weight")
        if is_a:
            product = tensors[f"{layer}.lora_B.weight"] @ tensors[name]
            found[f"{layer}.weight"] = torch.add(tensors[f"{layer}.weight"], product, alpha=ALPHA / RANK)
    return found


def start(backend: Any, made: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """Give a Megatron backend's adapters other numbers than they were made with.

    Args:
        made: what they should have been made with, by peft's names.
        given: the others.

    Returns:
        names of those of this rank that were made with other numbers, bit for bit, or are not there.
    """
    from slime_megatron import lora, weights

    model, wrong = backend._model, []
    for name, own in weights.own_tensors(model):
        if lora.is_adapter(name):
            rule, (file,) = model.names.of(name)
            first, then = (rule.layout.shard(rule.layout.join([of[file]]), *weights._cut(name)) for of in (made, given))
            if not torch.equal(own, first):
                wrong.append(file)
            with torch.no_grad():
                own.copy_(then)
    backend._optimizer.reload_model_params()
    there = {name for name, _ in lora.gather_adapters(model)}
    return sorted({*wrong, *(there ^ made.keys())})


def as_exported(name: str, truth: Any) -> Any:
    """Transformers' model of one of `megatron_models.MODELS` with peft's adapters, as they are before the steps."""
    from megatron_models import make_model

    model = make_model(name)
    with_peft(model, sorted({layer.split(".")[-3] for layer in truth.given}))
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(truth.given[plain(own)])
    return model
