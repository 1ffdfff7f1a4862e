"""Weights of single experts, as checkpoints have them, and all experts of a layer in one tensor, as transformers' models have them in
memory: put together for an engine that computes with such a model, taken apart for one that reads names of checkpoints.

A checkpoint has three matrices of every expert; the model has the experts of a layer in two tensors:

    ….experts.{e}.gate_proj.weight [F, H], ….experts.{e}.up_proj.weight [F, H]   ↔   ….experts.gate_up_proj [E, 2F, H]
    ….experts.{e}.down_proj.weight [H, F]                                        ↔   ….experts.down_proj [E, H, F]
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

TOGETHER = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""What a tensor of all experts is made of."""


def put_together(
    weights: Iterable[tuple[str, Tensor]], known: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights as they come, (name, tensor) pairs, but those of single experts put together where the model has them so,
    as soon as the last of them is there. Of those that never are complete each is yielded at the end.

    Args:
        known: the model's names and shapes.
    """
    parts = {name: _single_names(name, shape) for name, shape in known.items()}
    whole_of = {single: name for name, names in parts.items() for own in names for single in own}
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        if (whole := whole_of.get(name)) is None:
            yield name, tensor
            continue
        own = held.setdefault(whole, {})
        own[name] = tensor
        if len(own) == sum(map(len, parts[whole])):
            del held[whole]
            yield whole, torch.stack([torch.cat([own.pop(single) for single in names]) for names in parts[whole]])
    for incomplete in held.values():
        yield from incomplete.items()


def taken_apart(weights: Iterable[tuple[str, Tensor]], known: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights as they come, but a tensor of all experts as views of the matrices of single ones, where a checkpoint has
    those.

    Args:
        known: the checkpoint's names.
    """
    for name, tensor in weights:
        names = [] if name in known else _single_names(name, tensor.shape)
        if not names or not all(single in known for own in names for single in own):
            yield name, tensor
            continue
        for expert, own in zip(tensor, names, strict=True):
            yield from zip(own, expert.chunk(len(own)), strict=True)


def _single_names(name: str, shape: Sequence[int]) -> list[list[str]]:
    """Per expert the names of the matrices that a tensor of all experts is made of; empty for any other tensor."""
    path, _, kind = name.rpartition(".experts.")
    if kind not in TOGETHER or len(shape) != 3:
        return []
    return [[f"{path}.experts.{e}.{part}.weight" for part in TOGETHER[kind]] for e in range(shape[0])]
