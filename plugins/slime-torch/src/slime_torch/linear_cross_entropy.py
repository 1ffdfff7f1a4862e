"""Log-probabilities of given tokens from hidden states, with at most one chunk of logits alive at a time.

The backend calls `token_log_probs` on the trained positions of a micro-batch in place of the model's own head. The
full (T, V) logits never exist: the forward pass goes chunk by chunk, and the backward pass computes a chunk's logits
again, except for the last chunk, whose probabilities are kept. The gradient of any later function of the
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
            kept = _softmax(ctx, hidden[rows], weight, bias, targets[rows], log_probs[rows])
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.kept = kept if needs_grad else None
        return log_probs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        for rows in reversed(ctx.chunks):
            kept, ctx.kept = ctx.kept, None
            probs, slope = kept or _softmax(ctx, hidden[rows], weight, bias, targets[rows], None)
            # In place: probabilities become the gradient of the logits.
            probs.mul_(-grad[rows, None])
            probs.scatter_add_(1, targets[rows, None], grad[rows, None])
            if slope is not None:
                probs.mul_(slope)
            if ctx.scale != 1.0:
                probs.mul_(ctx.scale)
            grad_logits = probs.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight.to(hidden.dtype), out=grad_hidden[rows])
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.t(), hidden[rows])
            if grad_bias is not None:
                grad_bias += probs.sum(0)
            del kept, probs, slope, grad_logits
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _softmax(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, log_probs: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Probabilities (C, V) of a chunk and the slope of its soft cap; fills `log_probs` if it is given."""
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
    # exp(z - max) / sum rather than exp(z - logsumexp): one pass over the logits less.
    logits -= logits.amax(1, keepdim=True)
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    logits.exp_()
    total = logits.sum(1)
    if log_probs is not None:
        torch.sub(chosen, total.log(), out=log_probs)
    logits /= total[:, None]
    return logits, slope


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in the dtype of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)
