"""The kernels of `heads.py`: a program has some heads of a token at once, as their first and their second halves."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    x,
    cos,
    sin,
    query_weight,
    key_weight,
    turned,
    x_stride,
    queries,
    heads,
    half,
    eps,
    NORMS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Some heads of a token, of which the first `queries` are those of queries: each is normed, if NORMS, and turned to its position."""
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    there = column < half
    inside = (head < heads) & there
    place = x + token * x_stride + head * (2 * half) + column
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        of_query = head < queries
        scale = 1.0 / tl.sqrt(tl.sum(first * first + second * second, 1) / (2 * half) + eps)[:, None]
        by_query = tl.load(query_weight + column, mask=there, other=0.0).to(tl.float32)
        by_key = tl.load(key_weight + column, mask=there, other=0.0).to(tl.float32)
        first = first * scale * tl.where(of_query, by_query, by_key)
        by_query = tl.load(query_weight + half + column, mask=there, other=0.0).to(tl.float32)
        by_key = tl.load(key_weight + half + column, mask=there, other=0.0).to(tl.float32)
        second = second * scale * tl.where(of_query, by_query, by_key)
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
    grad_queries,
    grad_keys,
    x,
    cos,
    sin,
    query_weight,
    key_weight,
    grad_x,
    grad_weights,
    tokens,
    x_stride,
    grad_stride,
    queries,
    heads,
    half,
    eps,
    NORMS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Some heads of every so many tokens: the gradients by them, and their part in the gradients by the norms' two weights."""
    program, step = tl.program_id(0), tl.num_programs(0)
    head, column = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    there = column < half
    inside = (head < heads) & there
    of_query = (head < queries) & there
    of_key = (head >= queries) & inside
    total_first = tl.zeros((HEADS, HALF), tl.float32)
    total_second = tl.zeros((HEADS, HALF), tl.float32)
    if NORMS:
        by_query = tl.load(query_weight + column, mask=there, other=0.0).to(tl.float32)
        by_key = tl.load(key_weight + column, mask=there, other=0.0).to(tl.float32)
        weight_first = tl.where(of_query, by_query, by_key)
        by_query = tl.load(query_weight + half + column, mask=there, other=0.0).to(tl.float32)
        by_key = tl.load(key_weight + half + column, mask=there, other=0.0).to(tl.float32)
        weight_second = tl.where(of_query, by_query, by_key)
    for number in range(program, tokens, step):
        token = tl.full((), 0, tl.int64) + number
        place = grad_queries + (token * queries + head) * (2 * half) + column
        above = tl.load(place, mask=of_query, other=0.0).to(tl.float32)
        below = tl.load(place + half, mask=of_query, other=0.0).to(tl.float32)
        place = grad_keys + (token * (heads - queries) + head - queries) * (2 * half) + column
        above += tl.load(place, mask=of_key, other=0.0).to(tl.float32)
        below += tl.load(place + half, mask=of_key, other=0.0).to(tl.float32)
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
        part = program * tl.num_programs(1) + tl.program_id(1)
        place = grad_weights + part * (4 * half) + tl.arange(0, HALF)
        own = tl.arange(0, HALF) < half
        tl.store(place, tl.sum(tl.where(of_query, total_first, 0.0), 0), mask=own)
        tl.store(place + half, tl.sum(tl.where(of_query, total_second, 0.0), 0), mask=own)
        tl.store(place + 2 * half, tl.sum(tl.where(of_key, total_first, 0.0), 0), mask=own)
        tl.store(place + 3 * half, tl.sum(tl.where(of_key, total_second, 0.0), 0), mask=own)
