"""The gated activation of Llama's feed-forward layers, of a gate and another projection that lie beside each other in one matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from slime_core.tensors.fused.launch import by_kernels

BLOCK = 1024


def gated(both: Tensor) -> Tensor:
    """Compute silu(gate) · up (Shazeer 2020, arXiv:2002.05202), rounded once.

    Args:
        both: (N, 2 · I), the gate first.

    Returns:
        (N, I).
    """
    product: Tensor = _Gated.apply(both)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return product


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        if not by_kernels(both):
            gate, up = _wide(both).chunk(2, -1)
            return (silu(gate) * up).to(both.dtype)
        from slime_core.tensors.fused import gated_kernels

        rows, size = len(both), both.shape[1] // 2
        product = both.new_empty(rows, size)
        gated_kernels.forward[(rows, -(-size // BLOCK))](both, product, size, BLOCK=BLOCK, num_warps=4)
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        if not by_kernels(both):
            gate, up = _wide(both).chunk(2, -1)
            above, share = _wide(grad), gate.sigmoid()
            by_gate = above * up * share * (1 + gate * (1 - share))
            return torch.cat((by_gate, above * gate * share), -1).to(both.dtype)
        from slime_core.tensors.fused import gated_kernels

        grad, grad_both, size = grad.contiguous(), torch.empty_like(both), both.shape[1] // 2
        gated_kernels.backward[(len(both), -(-size // BLOCK))](grad, both, grad_both, size, BLOCK=BLOCK, num_warps=4)
        return grad_both


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
