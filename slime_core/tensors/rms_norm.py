"""RMS norms with half the memory traffic, for the CPU. Train backends and the embedded engine use it.

torch and transformers write a norm as half a dozen element-wise operations, each of which passes over memory once forward and
several times backward, and keep what lies between. This is the same arithmetic in fewer passes. Products that read what a norm gives
have it made again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slime_core.tensors.made_again import with_recipe


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute x / sqrt(mean(x², last dimension) + eps) · weight (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    if not torch.is_grad_enabled():
        return _compute(x, weight, eps)[0]
    normed, inverse = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return with_recipe(normed, _scaled, x, inverse, weight)


def _compute(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / sqrt(mean(x²) + eps)."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return _scaled(x, inverse, weight), inverse


def _scaled(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    return (x * inverse).mul_(weight)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        normed, inverse = _compute(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        ctx.mark_non_differentiable(inverse)
        return normed, inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        size = x.shape[-1]
        product = grad * x
        slope = (product @ weight)[..., None] * inverse.pow(3)
        grad_weight = product.reshape(-1, size).t() @ inverse.reshape(-1)
        grad_x = torch.mul(grad, weight, out=product).mul_(inverse)
        return grad_x.addcmul_(x, slope.div_(-size)), grad_weight, None
