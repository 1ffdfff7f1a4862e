"""The kernels of `gated.py`: a program has some columns of a row of the gate, and the same ones of the other projection."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(gate, up, product, stride, size, BLOCK: tl.constexpr):
    """product = silu(gate) · up of a row, where rows of both are `stride` numbers apart."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    place = row * stride + column
    x = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    found = x / (1.0 + tl.exp(-x)) * tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(product + row * size + column, found.to(product.dtype.element_ty), mask=inside)


@triton.jit
def backward(grad, gate, up, grad_gate, grad_up, stride, size, BLOCK: tl.constexpr):
    """The gradients by gate and up of a row, rows of which are as far apart."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    place = row * stride + column
    x = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    above = tl.load(grad + row * size + column, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-x))
    by_gate = above * factor * share * (1.0 + x * (1.0 - share))
    tl.store(grad_gate + place, by_gate.to(grad_gate.dtype.element_ty), mask=inside)
    tl.store(grad_up + place, (above * x * share).to(grad_up.dtype.element_ty), mask=inside)
