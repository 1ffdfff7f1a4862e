"""The kernels of `gated.py`: a program has some columns of a row of the gate, and the same ones of the other projection."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(both, product, size, BLOCK: tl.constexpr):
    """product = silu(gate) · up of a row, where `both` has gate and up beside each other."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    place = both + row * (2 * size) + column
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + size, mask=inside, other=0.0).to(tl.float32)
    found = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(product + row * size + column, found.to(product.dtype.element_ty), mask=inside)


@triton.jit
def backward(grad, both, grad_both, size, BLOCK: tl.constexpr):
    """The gradients by gate and up of a row, beside each other."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    place = row * (2 * size) + column
    gate = tl.load(both + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + place + size, mask=inside, other=0.0).to(tl.float32)
    above = tl.load(grad + row * size + column, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    by_gate = above * up * share * (1.0 + gate * (1.0 - share))
    tl.store(grad_both + place, by_gate.to(grad_both.dtype.element_ty), mask=inside)
    tl.store(grad_both + place + size, (above * gate * share).to(grad_both.dtype.element_ty), mask=inside)
