"""The kernels of `norm.py`: a program reads rows of N numbers, each of which it has at once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(hidden, delta, weight, summed, normed, inverse, size, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    """One row: summed = hidden + delta, normed = summed · inverse · weight, inverse = 1 / sqrt(mean(summed²) + eps)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    place = row * size + column
    x = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(delta + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(summed + place, x, mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / size + eps)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, (x * scale * factor).to(normed.dtype.element_ty), mask=inside)
    tl.store(inverse + row, scale)


@triton.jit(do_not_specialize=["rows"])
def backward(
    grad_normed,
    grad_summed,
    summed,
    weight,
    inverse,
    grad_hidden,
    grad_delta,
    grad_weight,
    rows,
    size,
    BY_SUM: tl.constexpr,
    BY_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every so many rows: the gradient by what was normed, with the one that reaches it otherwise if BY_SUM, in its dtype and if
    BY_DELTA in another; and the part of these rows in the gradient by the weight."""
    program, step = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    inside = column < size
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(program, rows, step):
        place = tl.full((), 0, tl.int64) + row
        scale = tl.load(inverse + place)
        place = place * size + column
        x = tl.load(summed + place, mask=inside, other=0.0).to(tl.float32) * scale
        grad = tl.load(grad_normed + place, mask=inside, other=0.0).to(tl.float32)
        total += grad * x
        grad *= factor
        grad = (grad - x * (tl.sum(grad * x, 0) / size)) * scale
        if BY_SUM:
            grad += tl.load(grad_summed + place, mask=inside, other=0.0).to(tl.float32)
        if BY_DELTA:
            tl.store(grad_delta + place, grad.to(grad_delta.dtype.element_ty), mask=inside)
        tl.store(grad_hidden + place, grad.to(grad_hidden.dtype.element_ty), mask=inside)
    tl.store(grad_weight + program * size + column, total, mask=inside)
