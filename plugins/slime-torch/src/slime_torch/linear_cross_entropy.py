"""Log-probabilities of given tokens from hidden states, with at most one chunk of logits alive at a time.

The backend calls `token_log_probs` on the trained positions of a micro-batch in place of the model's own head. The
full (T, V) logits never exist: the forward pass goes chunk by chunk, and the backward pass computes a chunk's logits
again, except for the last chunk, which is kept. The gradient of any later function of the
log-probabilities flows through, so every loss can use it.

With logits z = h Wᵀ + b, scaled by s and then soft-capped by c as c·tanh(z/c), log p(y) = z_y - log Σ exp z and
∂ log p(y) / ∂z = onehot(y) - softmax(z).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """The last step of a causal language model, hidden states → logits.

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        scale: the logits are multiplied by this.
        softcap: then bounded to ±softcap by tanh; None: not.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def token_log_probs(hidden: Tensor, head: Head, targets: Tensor, chunk_size: int = -1) -> Tensor:
    """log p(target) for every row.

    Args:
        hidden: (T, H), float32, float64 or, for products in half precision, bfloat16 or float16.
        targets: (T,) int64.
        chunk_size: rows whose logits exist at one time; -1: all.

    Returns:
        (T,) in the dtype of `head.weight`; the softmax is never taken in half precision.
    """
    return _TokenLogProbs.apply(hidden, head.weight, head.bias, targets, head.scale, head.softcap, chunk_size)


def _chunks(rows: int, chunk_size: int) -> list[slice]:
    """Cut so that the last chunk, which is kept, is a full one."""
    size = rows if chunk_size == -1 else min(chunk_size, rows)
    starts = [0, *range(rows % size or size, rows, size)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], rows], strict=True)]


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        chunk_size: int,
    ) -> Tensor:
        ctx.scale, ctx.softcap = scale, softcap
        ctx.chunks = _chunks(len(hidden), chunk_size)
        log_probs = torch.empty(len(hidden), dtype=weight.dtype, device=weight.device)
        needs_grad = any(ctx.needs_input_grad)
        for rows in ctx.chunks:
            kept = _exponentials(ctx, hidden[rows], weight, bias, targets[rows], log_probs[rows])
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.kept = kept if needs_grad else None
        return log_probs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        for rows in reversed(ctx.chunks):
            kept, ctx.kept = ctx.kept, None
            grad_logits, total, slope = kept or _exponentials(ctx, hidden[rows], weight, bias, targets[rows], None)
            g = grad[rows, None]
            grad_logits.mul_(-g / total).scatter_add_(1, targets[rows, None], g)
            if slope is not None:
                grad_logits.mul_(slope)
            if ctx.scale != 1.0:
                grad_logits.mul_(ctx.scale)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight.to(hidden.dtype), out=grad_hidden[rows])
            if need_weight:
                grad_weight = _add_product(grad_weight, grad_logits.t(), hidden[rows], weight.dtype)
            del kept, slope, grad_logits
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _exponentials(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, log_probs: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of a chunk of C rows: exp(z - max z) (C, V), its sum over V (C, 1), and the slope of the soft cap (C, V).

    Fills `log_probs` if it is given. The division by the sum is left to the backward pass, which multiplies anyway.
    """
    logits = torch.mm(hidden, weight.to(hidden.dtype).t()).to(weight.dtype)
    if bias is not None:
        logits += bias
    if ctx.scale != 1.0:
        logits *= ctx.scale
    slope = None
    if ctx.softcap is not None:
        logits.div_(ctx.softcap).tanh_()
        slope = 1 - logits.square()
        logits *= ctx.softcap
    logits -= logits.amax(1, keepdim=True)
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    total = logits.exp_().sum(1, keepdim=True)
    if log_probs is not None:
        torch.sub(chosen, total.squeeze(1).log(), out=log_probs)
    return logits, total, slope


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """total + left @ right, in place where there is a total, summed in `dtype`."""
    if total is None:
        return torch.mm(left, right).to(dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(torch.mm(left, right))
