"""Products of linear layers in bfloat16 whose gradients by the weights are float32: summed so by the product itself, and added to those
of earlier micro-batches by it, where autocast rounds each to bfloat16, widens it again and adds it in a pass of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def products(
    x: Tensor,
    rounded: Tensor,
    weights: Sequence[Tensor],
    rounded_bias: Tensor | None = None,
    biases: Sequence[Tensor] = (),
) -> Tensor:
    """x Wᵀ + b of one or several linear layers that read the same.

    Args:
        x: (N, in).
        rounded: (sum of out, in) their weights below one another, in the dtype of x.
        weights: (out, in) each, which have the gradients.
        rounded_bias: (sum of out,) or None.
        biases: (out,) each; none at all without `rounded_bias`.

    Returns:
        (N, sum of out) the results beside one another.
    """
    found: Tensor = _Products.apply(x, rounded, rounded_bias, len(weights), *weights, *biases)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return found


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rounded: Tensor, rounded_bias: Tensor | None, count: int, *parameters: Tensor
    ) -> Tensor:
        ctx.parameters, ctx.count = parameters, count
        ctx.save_for_backward(x, rounded)
        if rounded_bias is None:
            return torch.mm(x, rounded.t())
        return torch.addmm(rounded_bias, x, rounded.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rounded = ctx.saved_tensors
        grads: list[Tensor | None] = [torch.mm(grad, rounded) if ctx.needs_input_grad[0] else None, None, None, None]
        sizes = [len(weight) for weight in ctx.parameters[: ctx.count]]
        parts = [*torch.split(grad, sizes, 1)] * 2
        for number, parameter in enumerate(ctx.parameters):
            needed = ctx.needs_input_grad[4 + number]
            if number < ctx.count:
                grads.append(gradient_by_weight(parameter, parts[number], x) if needed else None)
            else:
                own = parts[number - ctx.count + len(sizes)]
                grads.append(own.sum(0, dtype=parameter.dtype) if needed else None)
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
