"""Weights of single experts, as checkpoints and trainers have them, put together as transformers' models have them in memory.

A checkpoint has three matrices of every expert; the model has the experts of a layer in two tensors:

    ….experts.{e}.gate_proj.weight [F, H], ….experts.{e}.up_proj.weight [F, H]   →   ….experts.gate_up_proj [E, 2F, H]
    ….experts.{e}.down_proj.weight [H, F]                                        →   ….experts.down_proj [E, H, F]
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TOGETHER = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""What a tensor of all experts is made of."""


def put_together(given: Mapping[str, Tensor], known: Mapping[str, torch.Size]) -> Mapping[str, Tensor]:
    """Return the weights with those of single experts put together where the model has them so; all others as they are.

    Args:
        given: weights by name.
        known: the model's names and shapes.
    """
    found = dict(given)
    for name, shape in known.items():
        path, _, kind = name.rpartition(".experts.")
        if kind not in TOGETHER or name in given or len(shape) != 3:
            continue
        names = [[f"{path}.experts.{e}.{part}.weight" for part in TOGETHER[kind]] for e in range(shape[0])]
        if all(single in given for parts in names for single in parts):
            found[name] = torch.stack([torch.cat([found.pop(single) for single in parts]) for parts in names])
    return found
