"""Gives the gated feed-forward layers of a model of transformers the activation of the core that keeps less, on the CPU. The backend
calls `keep_less` once.

A module's forward is exchanged only if its output is reproduced on random input, small and large, in training and out of it; every other
module stays as it is.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from slime_core.tensors.swiglu import swiglu

LINEAR = ("gate_proj", "up_proj", "down_proj")
CHILDREN = {*LINEAR, "act_fn"}
SCALES = (1.0, 1e2, 1e4)
"""Of the inputs on which a module is compared: some clamp what is large."""


def keep_less(model: nn.Module) -> int:
    """Exchange the forward of the gated layers in `model` and return how many were exchanged."""
    found = 0
    for module in model.modules():
        if {name for name, _ in module.named_children()} == CHILDREN and _is_swiglu(module):
            vars(module)["forward"] = MethodType(_forward, module)  # so that a copied model uses its own weights
            found += 1
    return found


def _is_swiglu(module: Any) -> bool:
    """Whether the module computes down(silu(gate(x)) · up(x)), as seen on its own small random weights."""
    layers = [getattr(module, name) for name in LINEAR]
    if not all(type(layer) is nn.Linear for layer in layers):
        return False
    random = torch.Generator().manual_seed(0)
    shapes = [(5, 4), (5, 4), (4, 5)]
    weights = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    x = torch.randn(1, 3, 4, generator=random, dtype=torch.float64)
    inputs = [x * scale for scale in SCALES]
    swapped = {}
    for name, layer, weight in zip(LINEAR, layers, weights, strict=True):
        swapped[f"{name}.weight"] = weight
        if layer.bias is not None:
            swapped[f"{name}.bias"] = torch.zeros(len(weight), dtype=torch.float64)
    gate, up, down = weights
    expected = [linear(swiglu(linear(x, gate), linear(x, up)), down) for x in inputs]
    return all(
        torch.allclose(output, wanted)
        for training in (False, True)
        for output, wanted in zip(_outputs(module, swapped, inputs, training), expected, strict=True)
    )


def _outputs(module: nn.Module, weights: dict[str, Tensor], inputs: list[Tensor], training: bool) -> list[Tensor]:
    """What the module computes with these weights, or NaN where it cannot. Leaves it and the random states as they are."""
    was_training = module.training
    module.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return [torch.func.functional_call(module, weights, (x,)) for x in inputs]
    except (RuntimeError, TypeError, ValueError):
        return [torch.full_like(x, math.nan) for x in inputs]
    finally:
        module.train(was_training)


def _forward(self: Any, x: Tensor) -> Tensor:
    output: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
    return output
