"""Log-probs and entropies from hidden states in bfloat16, on a GPU: `slime_core.tensors.linear_cross_entropy` for a head without soft
cap or bias that is whole. Logits are bfloat16 in memory and float32 in registers, and become their own gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slime_core.tensors.fused.products import add_product_of_rounded_, gradient_by_weight

BLOCK = 4096


class LogProbs(torch.autograd.Function):
    """(T, H) hidden states, the (V, H) weight and the same rounded, (T,) targets, what logits are multiplied by, whether entropies are wanted, and the chunks of rows
    whose logits exist at one time → (T,) log-probs, and (T,) entropies or None, in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rounded: Tensor,
        targets: Tensor,
        scale: float,
        entropy: bool,
        chunks: list[slice],
    ) -> tuple[Tensor, Tensor | None]:
        from slime_core.tensors.fused import log_probs_kernels

        ctx.set_materialize_grads(False)
        ctx.chunks, ctx.scale, ctx.weight = chunks, scale, weight
        numbers = torch.empty(5 if entropy else 3, len(hidden), dtype=torch.float32, device=hidden.device)
        logits = None
        for rows in chunks:
            del logits  # before there are those of the next chunk
            logits = torch.mm(hidden[rows], rounded.t())
            found = [row[rows] for row in numbers]
            log_probs_kernels.forward[(len(logits),)](
                logits,
                targets[rows],
                *found,
                *[found[0]] * (5 - len(found)),
                logits.shape[1],
                scale,
                ENTROPY=entropy,
                BLOCK=BLOCK,
                num_warps=8,
            )
        ctx.save_for_backward(hidden, rounded, targets, numbers)
        ctx.kept = logits if any(ctx.needs_input_grad) else None
        return numbers[0].clone(), numbers[3].clone() if entropy else None

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        from slime_core.tensors.fused import log_probs_kernels

        hidden, rounded, targets, numbers = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        total: Tensor | None = ctx.weight.grad if need_weight and ctx.weight.is_leaf else None
        returned: Tensor | None = None
        _, largest, totals, *more = numbers
        means = more[1] if more else largest
        for rows in reversed(ctx.chunks):
            logits, ctx.kept = ctx.kept, None
            if logits is None:
                logits = torch.mm(hidden[rows], rounded.t())
            log_probs_kernels.backward[(len(logits),)](
                logits,
                targets[rows],
                totals if grad is None else grad[rows].contiguous(),
                totals if grad_entropy is None else grad_entropy[rows].contiguous(),
                largest[rows],
                totals[rows],
                means[rows],
                logits.shape[1],
                ctx.scale,
                BY_LOG_PROB=grad is not None,
                BY_ENTROPY=grad_entropy is not None,
                BLOCK=BLOCK,
                num_warps=8,
            )
            if grad_hidden is not None:
                torch.mm(logits, rounded, out=grad_hidden[rows])
            if need_weight and total is None:
                total = returned = gradient_by_weight(ctx.weight.detach(), logits, hidden[rows])
            elif need_weight:
                assert total is not None  # so the branch above says
                add_product_of_rounded_(total, logits.t(), hidden[rows])
            del logits
        return grad_hidden, returned, None, None, None, None, None
