"""A residual is added to and normed in one pass, and the gradients of both come together in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slime_core.tensors.fused.launch import block, by_kernels, programs, warps


def rms_norm(hidden: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Compute x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
        hidden: (..., H).
        dtype: of the result, which is rounded once.
    """
    return and_rms_norm(hidden, weight, eps, dtype)[1]


def and_rms_norm(hidden: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(hidden itself, its norm in `dtype`). Whoever reads the first in place of `hidden` has both gradients added in one pass."""
    found: tuple[Tensor, Tensor] = _AddNorm.apply(hidden, None, weight, eps, dtype)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return found


def add_rms_norm(
    hidden: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(hidden + delta in the dtype of `hidden`, the norm of that in `dtype`).

    Args:
        hidden, delta: (..., H).
    """
    summed, normed = _AddNorm.apply(hidden, delta, weight, eps, dtype)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return summed, normed


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.delta_dtype = None if delta is None else delta.dtype
        if by_kernels(hidden):
            summed, normed, inverse = _forward_by_kernels(hidden, delta, weight, eps, dtype)
        else:
            summed = hidden if delta is None else hidden + delta
            wide = torch.promote_types(summed.dtype, torch.float32)
            inverse = (summed.to(wide).square().mean(-1) + eps).rsqrt()
            normed = (summed.to(wide) * inverse[..., None] * weight).to(dtype)
        ctx.save_for_backward(summed, weight, inverse)
        return summed, normed

    @staticmethod
    def backward(ctx: Any, grad_summed: Tensor | None, grad_normed: Tensor | None) -> tuple[Tensor | None, ...]:
        summed, weight, inverse = ctx.saved_tensors
        if grad_normed is None:
            grad_normed = torch.zeros_like(summed)
        if by_kernels(summed):
            grad, grad_delta, grad_weight = _backward_by_kernels(
                grad_summed, grad_normed, summed, weight, inverse, ctx.delta_dtype
            )
        else:
            x = summed.to(inverse.dtype) * inverse[..., None]
            scaled = grad_normed.to(inverse.dtype)
            grad_weight = (scaled * x).flatten(0, -2).sum(0).to(weight.dtype)
            scaled = scaled * weight
            grad = (scaled - x * (scaled * x).mean(-1, keepdim=True)) * inverse[..., None]
            grad = (grad if grad_summed is None else grad + grad_summed).to(summed.dtype)
            grad_delta = None if ctx.delta_dtype is None else grad.to(ctx.delta_dtype)
        return grad, grad_delta, grad_weight, None, None


def _forward_by_kernels(
    hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    from slime_core.tensors.fused import norm_kernels

    hidden = hidden.contiguous()
    delta = None if delta is None else delta.contiguous()
    size = hidden.shape[-1]
    rows, columns = hidden.numel() // size, block(size)
    summed = hidden if delta is None else torch.empty_like(hidden)
    normed = torch.empty_like(hidden, dtype=dtype)
    inverse = torch.empty(hidden.shape[:-1], dtype=torch.float32, device=hidden.device)
    norm_kernels.forward[(rows,)](
        hidden,
        hidden if delta is None else delta,
        weight,
        summed,
        normed,
        inverse,
        size,
        eps,
        ADDS=delta is not None,
        BLOCK=columns,
        num_warps=warps(columns),
    )
    return summed, normed, inverse


def _backward_by_kernels(
    grad_summed: Tensor | None,
    grad_normed: Tensor,
    summed: Tensor,
    weight: Tensor,
    inverse: Tensor,
    delta_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    from slime_core.tensors.fused import norm_kernels

    size = summed.shape[-1]
    rows, columns = summed.numel() // size, block(size)
    grad = torch.empty_like(summed)
    grad_normed = grad_normed.contiguous()
    grad_summed = None if grad_summed is None else grad_summed.contiguous()
    grad_delta = None if delta_dtype is None else torch.empty_like(summed, dtype=delta_dtype)
    parts = torch.empty(programs(rows, summed.device), size, dtype=torch.float32, device=summed.device)
    norm_kernels.backward[(len(parts),)](
        grad_normed,
        grad_normed if grad_summed is None else grad_summed,
        summed,
        weight,
        inverse,
        grad,
        grad if grad_delta is None else grad_delta,
        parts,
        rows,
        size,
        BY_SUM=grad_summed is not None,
        BY_DELTA=grad_delta is not None,
        BLOCK=columns,
        num_warps=warps(columns),
    )
    return grad, grad_delta, parts.sum(0).to(weight.dtype)
