"""Products of linear layers in bfloat16 whose gradients by the weights are float32: summed so by the product itself, and added to those
of earlier micro-batches by it, where autocast rounds each to bfloat16, widens it again and adds it in a pass of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from slime_core.tensors.fused.rounded import RoundedWeights

_log = logging.getLogger(__name__)


def products(x: Tensor, rounded: RoundedWeights, weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> Tensor:
    """x Wᵀ + b of one or several linear layers that read the same.

    Args:
        x: (N, in).
        rounded: gives the weights in the dtype of x, forwards and backwards. Copies that it does not keep are made twice, and none
            lives from one to the other.
        weights: (out, in) each, which have the gradients.
        biases: (out,) each, or none at all.

    Returns:
        (N, sum of out) the results beside one another.
    """
    found: Tensor = _Products.apply(x, rounded, len(weights), *weights, *biases)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return found


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: RoundedWeights, count: int, *parameters: Tensor) -> Tensor:
        ctx.rounded, ctx.weights, ctx.biases = rounded, parameters[:count], parameters[count:]
        ctx.save_for_backward(x)
        weights = rounded.of(ctx.weights).t()
        return torch.addmm(rounded.of(ctx.biases), x, weights) if ctx.biases else torch.mm(x, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        needs_x, _, _, *needed = ctx.needs_input_grad
        grads = [torch.mm(grad, ctx.rounded.of(ctx.weights)) if needs_x else None, None, None]
        parts = torch.split(grad, [len(weight) for weight in ctx.weights], 1)
        for weight, part, need in zip(ctx.weights, parts, needed, strict=False):
            grads.append(gradient_by_weight(weight, part, x) if need else None)
        for bias, part, need in zip(ctx.biases, parts, needed[len(parts) :], strict=False):
            grads.append(part.sum(0, dtype=bias.dtype) if need else None)
        return tuple(grads)


def gradient_by_weight(weight: Tensor, grad: Tensor, x: Tensor) -> Tensor | None:
    """gradᵀ x in the dtype of the weight: added to the gradient that the weight has, then None is returned; else a new one.

    Args:
        weight: (out, in), a leaf.
        grad: (N, out).
        x: (N, in).
    """
    earlier = earlier_gradient(weight)
    if earlier is None:
        return product_of_rounded(grad.t(), x, weight.dtype)
    add_product_of_rounded_(earlier, grad.t(), x)
    return None


def earlier_gradient(weight: Tensor) -> Tensor | None:
    """The gradient that a weight has and that more may be added to where it lies; None if there is none of that kind."""
    earlier = weight.grad if weight.is_leaf else None
    return earlier if type(earlier) is Tensor and earlier.dtype == weight.dtype else None


def product_of_rounded(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right of matrices in half precision, summed and returned in `dtype`."""
    if left.dtype == dtype:
        return torch.mm(left, right)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=dtype) if _ways() else torch.mm(left, right).to(dtype)
    return torch.mm(left.to(dtype), right.to(dtype))


def add_product_of_rounded_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a total in a wider dtype, in place."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda and (ways := _ways()):
        ways[0](total, left, right)
    else:
        total.add_(product_of_rounded(left, right, total.dtype))


_Way = Callable[[Tensor, Tensor, Tensor], Any]


def _addmm(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    return found


def _baddbmm(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    one = total[None]
    found: Tensor = torch.ops.aten.baddbmm.dtype_out(one, left[None], right[None], total.dtype, out=one)
    return found


def _mm(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return total.add_(torch.mm(left, right, out_dtype=total.dtype))


@cache
def _ways() -> tuple[_Way, ...]:
    """How this torch adds a product of bfloat16 numbers to float32 ones, the fastest way first, each found to be right. Empty: its
    products of bfloat16 numbers are bfloat16."""
    random = torch.Generator("cuda").manual_seed(0)
    left, right = (torch.randn(64, 64, generator=random, device="cuda").bfloat16() for _ in range(2))
    total = torch.randn(64, 64, generator=random, device="cuda")
    expected = total.double() + left.double().t() @ right.double()
    found: list[_Way] = []
    for way in (_addmm, _baddbmm, _mm):
        tried = total.clone()
        try:
            way(tried, left.t(), right)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            continue
        if torch.allclose(tried.double(), expected, rtol=1e-5, atol=1e-4):
            found.append(way)
    if _addmm not in found:
        _log.warning(
            "This torch cannot add a product of bfloat16 matrices to a float32 one in place; gradients are added by %s.",
            found[0].__name__ if found else "bfloat16 products",
        )
    return tuple(found)
