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
    _, normed = _AddNorm.apply(hidden, None, weight, eps, dtype)  # type: ignore[no-untyped-call]  # torch does not annotate it
    assert isinstance(normed, Tensor)
    return normed


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
    ) -> tuple[Tensor | None, Tensor]:
        ctx.delta_dtype = None if delta is None else delta.dtype
        if by_kernels(hidden):
            summed, normed, inverse = _forward_by_kernels(hidden, delta, weight, eps, dtype)
        else:
            summed = hidden if delta is None else hidden + delta
            wide = torch.promote_types(summed.dtype, torch.float32)
            inverse = (summed.to(wide).square().mean(-1) + eps).rsqrt()
            normed = (summed.to(wide) * inverse[..., None] * weight).to(dtype)
        ctx.save_for_backward(summed, weight, inverse)
        return (None if delta is None else summed), normed

    @staticmethod
    def backward(ctx: Any, grad_summed: Tensor | None, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
        summed, weight, inverse = ctx.saved_tensors
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
    adds = delta_dtype is not None
    grad_normed = grad_normed.contiguous()
    if adds:
        grad_summed = torch.zeros_like(summed) if grad_summed is None else grad_summed.contiguous()
    grad_delta = torch.empty_like(summed, dtype=delta_dtype) if adds else None
    parts = torch.empty(programs(rows, summed.device), size, dtype=torch.float32, device=summed.device)
    norm_kernels.backward[(len(parts),)](
        grad_normed,
        grad_summed if adds else grad_normed,
        summed,
        weight,
        inverse,
        grad,
        grad_delta if adds else grad,
        parts,
        rows,
        size,
        ADDS=adds,
        BLOCK=columns,
        num_warps=warps(columns),
    )
    return grad, grad_delta, parts.sum(0).to(weight.dtype)
