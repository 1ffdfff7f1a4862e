"""The kernels of `heads.py`: a program has all heads of a token at once, as their first and their second halves."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    x,
    cos,
    sin,
    weight,
    turned,
    x_stride,
    heads,
    half,
    eps,
    NORMS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """One token: every head is normed, if NORMS, and turned to its position."""
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    there = column < half
    inside = (head < heads) & there
    place = x + token * x_stride + head * (2 * half) + column
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        scale = 1.0 / tl.sqrt(tl.sum(first * first + second * second, 1) / (2 * half) + eps)[:, None]
        first = first * scale * tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
        second = second * scale * tl.load(weight + half + column, mask=there, other=0.0).to(tl.float32)
    angle = token * (2 * half) + column
    cos_first = tl.load(cos + angle, mask=there, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + angle, mask=there, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + angle + half, mask=there, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + angle + half, mask=there, other=0.0).to(tl.float32)
    place = turned + (token * heads + head) * (2 * half) + column
    tl.store(place, (first * cos_first - second * sin_first).to(turned.dtype.element_ty), mask=inside)
    tl.store(place + half, (second * cos_second + first * sin_second).to(turned.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def backward(
    grad_turned,
    x,
    cos,
    sin,
    weight,
    grad_x,
    grad_weight,
    tokens,
    x_stride,
    grad_stride,
    heads,
    half,
    eps,
    NORMS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Every so many tokens: the gradients by their heads, and the part of these tokens in the gradient by the norm's weight."""
    program, step = tl.program_id(0), tl.num_programs(0)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    there = column < half
    inside = (head < heads) & there
    total_first = tl.zeros((HEADS, HALF), tl.float32)
    total_second = tl.zeros((HEADS, HALF), tl.float32)
    if NORMS:
        weight_first = tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
        weight_second = tl.load(weight + half + column, mask=there, other=0.0).to(tl.float32)
    for number in range(program, tokens, step):
        token = tl.full((), 0, tl.int64) + number
        place = grad_turned + (token * heads + head) * (2 * half) + column
        above = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        below = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
        angle = token * (2 * half) + column
        cos_first = tl.load(cos + angle, mask=there, other=0.0).to(tl.float32)
        sin_first = tl.load(sin + angle, mask=there, other=0.0).to(tl.float32)
        cos_second = tl.load(cos + angle + half, mask=there, other=0.0).to(tl.float32)
        sin_second = tl.load(sin + angle + half, mask=there, other=0.0).to(tl.float32)
        grad_first = above * cos_first + below * sin_second
        grad_second = below * cos_second - above * sin_first
        if NORMS:
            place = x + token * x_stride + head * (2 * half) + column
            first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            second = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
            scale = 1.0 / tl.sqrt(tl.sum(first * first + second * second, 1) / (2 * half) + eps)[:, None]
            first *= scale
            second *= scale
            total_first += grad_first * first
            total_second += grad_second * second
            grad_first *= weight_first
            grad_second *= weight_second
            mean = (tl.sum(grad_first * first + grad_second * second, 1) / (2 * half))[:, None]
            grad_first = (grad_first - first * mean) * scale
            grad_second = (grad_second - second * mean) * scale
        place = grad_x + token * grad_stride + head * (2 * half) + column
        tl.store(place, grad_first.to(grad_x.dtype.element_ty), mask=inside)
        tl.store(place + half, grad_second.to(grad_x.dtype.element_ty), mask=inside)
    if NORMS:
        place = grad_weight + program * (2 * half) + tl.arange(0, HALF)
        own = tl.arange(0, HALF) < half
        tl.store(place, tl.sum(total_first, 0), mask=own)
        tl.store(place + half, tl.sum(total_second, 0), mask=own)
