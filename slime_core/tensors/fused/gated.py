"""The gated activation of Llama's feed-forward layers, of a gate and another projection that lie beside each other in one matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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
    product: Tensor = _Gated.apply(both, None)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return product


def gated_of(gate: Tensor, up: Tensor) -> Tensor:
    """The same of (N, I) gate and up that are matrices of their own."""
    product: Tensor = _Gated.apply(gate.contiguous(), up.contiguous())  # type: ignore[no-untyped-call]  # torch does not annotate it
    return product


@cache
def is_silu(activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether an activation is the one of `gated`, to the last bit."""
    x = torch.linspace(-9, 9, 37)
    return torch.equal(activation(x), silu(x))


class _Gated(torch.autograd.Function):
    """Of (N, 2 · I) and None, or of two (N, I)."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor | None) -> Tensor:
        ctx.save_for_backward(first, second)
        gate, up = _parts(first, second)
        if not by_kernels(first):
            return (silu(_wide(gate)) * _wide(up)).to(first.dtype)
        from slime_core.tensors.fused import gated_kernels

        rows, size = gate.shape
        product = first.new_empty(rows, size)
        gated_kernels.forward[(rows, -(-size // BLOCK))](
            gate, up, product, gate.stride(0), size, BLOCK=BLOCK, num_warps=4
        )
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        first, second = ctx.saved_tensors
        grads = torch.empty_like(first), None if second is None else torch.empty_like(second)
        (gate, up), (grad_gate, grad_up) = _parts(first, second), _parts(*grads)
        if not by_kernels(first):
            above, x = _wide(grad), _wide(gate)
            share = x.sigmoid()
            grad_gate.copy_(above * _wide(up) * share * (1 + x * (1 - share)))
            grad_up.copy_(above * x * share)
            return grads
        from slime_core.tensors.fused import gated_kernels

        rows, size = gate.shape
        gated_kernels.backward[(rows, -(-size // BLOCK))](
            grad.contiguous(), gate, up, grad_gate, grad_up, gate.stride(0), size, BLOCK=BLOCK, num_warps=4
        )
        return grads


def _parts(first: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gate and up, as views."""
    if second is not None:
        return first, second
    gate, up = first.chunk(2, -1)
    return gate, up


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
