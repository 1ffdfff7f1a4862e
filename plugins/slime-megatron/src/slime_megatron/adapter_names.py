"""What the adapters of one of megatron-core's linear layers are called and how they are cut, and what a weight with its adapter is.
Pure, without megatron-core; `slime_megatron.adapter` computes with them, exports of a state on disk read them."""

from __future__ import annotations

from collections.abc import Container, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slime_core.arguments.groups.lora import LoraArguments
from slime_megatron.names import Attention, GateUp, Heads, Layout, Names, Replicated, Rule, Split

BESIDE = "_lora"
"""The adapter of `linear_qkv` is `linear_qkv_lora`, beside it."""


@dataclass(frozen=True)
class FusedLayer:
    """What one of megatron-core's linear layers consists of.

    Attributes:
        widths: outputs of each Hugging Face layer on all ranks, by the last part of its name, in the order in which they are
            fused.
        layout: how they are fused and cut; see `slime_megatron.names`.
    """

    widths: Mapping[str, int]
    layout: Layout

    @property
    def row(self) -> bool:
        """Its inputs are cut over tensor-parallel ranks, not its outputs."""
        return isinstance(self.layout, Split) and self.layout.dim == 1

    @property
    def groups(self) -> int:
        """How often its Hugging Face layers follow each other in the outputs: once for each group of attention heads."""
        return self.layout.filled or self.layout.groups if isinstance(self.layout, Attention) else 1

    @property
    def cuts(self) -> dict[str, Layout]:
        """How A and B of each of its Hugging Face layers are filled up, and cut over tensor-parallel ranks."""
        if self.row:
            return {"lora_A": self.layout, "lora_B": Replicated()}
        of_b: Layout = self.layout
        if isinstance(self.layout, Attention):
            of_b = Heads(0, self.layout.groups, self.layout.filled)
        elif isinstance(self.layout, GateUp) and not self.layout.fused:
            of_b = Split(0)
        return {"lora_A": Replicated(), "lora_B": of_b}

    def outputs(self, ranks: int) -> dict[str, int]:
        """The outputs of each of its Hugging Face layers on one of so many tensor-parallel ranks, heads of zeros among them."""
        if self.row:
            return dict(self.widths)
        heads = self.cuts["lora_B"]
        filled, groups = (heads.filled or heads.groups, heads.groups) if isinstance(heads, Heads) else (1, 1)
        return {name: width // groups * filled // ranks for name, width in self.widths.items()}


def is_adapter(name: str) -> bool:
    """Whether a tensor of megatron-core's belongs to an adapter."""
    return f"{BESIDE}." in name


def add_rules(names: Names, targets: Container[str] | None = None) -> None:
    """Let the tensors of adapters be known under peft's names, those of other pipeline stages too.

    Args:
        targets: the last parts of the names of the Hugging Face layers that have one; None: whichever may have one.
    """
    for rule in names.rules:
        layers = [file.removesuffix(".weight") for file in rule.file if file.endswith(".weight")]
        if not isinstance(rule.layout, Split) or "{expert}" in rule.megatron:
            continue
        cuts = FusedLayer({}, rule.layout).cuts
        for layer in (layer for layer in layers if targets is None or _last(layer) in targets):
            place = f"{rule.megatron.removesuffix('.weight')}{BESIDE}.{_last(layer)}"
            for x, layout in cuts.items():
                names.add(Rule(f"{place}.{x}", (f"{layer}.{x}.weight",), layout, optional=True))


def with_adapter(name: str, weight: Tensor, adapters: MutableMapping[str, Tensor], args: LoraArguments) -> Tensor:
    """A weight of the plain model, W + alpha / rank · B A where it has an adapter, computed in float32.

    Args:
        adapters: A and B by peft's names; those of this weight are taken out.
    """
    layer = name.removesuffix(".weight")
    a, b = (adapters.pop(f"{layer}.lora_{x}.weight", None) for x in "AB")
    if a is None or b is None:
        return weight
    return torch.add(weight.float(), b.float() @ a.float(), alpha=args.lora_alpha / args.lora_rank).to(weight.dtype)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
