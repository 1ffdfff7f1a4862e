"""Triton kernels of the decoder: heads and their places in pages, attention over pages, the choice of tokens, and experts. Launched by
`slime_engine_local.triton_operations` and `triton_experts`, which say what each of them computes; imported only where there is triton.

Sums, norms, positions and scores are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def encode(
    projected,
    cosine,
    sine,
    query_weight,
    key_weight,
    places,
    query,
    key,
    value,
    eps,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    NORMS: tl.constexpr,
    PAGED: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Some heads of one token a program: norms of queries and keys, their positions, and where they go."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    half: tl.constexpr = SIZE // 2
    inside = (head < QUERIES + 2 * KEYS) & (column < half)
    at = (row * (QUERIES + 2 * KEYS) + head) * SIZE + column
    first = tl.load(projected + at, mask=inside, other=0.0)
    second = tl.load(projected + at + half, mask=inside, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    if NORMS:
        inverse = 1 / tl.sqrt(tl.sum(a * a + b * b, 1) / SIZE + eps)[:, None]
        there = column < half
        weights = tl.where(
            head < QUERIES,
            tl.load(query_weight + column, mask=there, other=0.0),
            tl.load(key_weight + column, mask=there, other=0.0),
        )
        later = tl.where(
            head < QUERIES,
            tl.load(query_weight + column + half, mask=there, other=0.0),
            tl.load(key_weight + column + half, mask=there, other=0.0),
        )
        a = a * inverse * weights.to(tl.float32)
        b = b * inverse * later.to(tl.float32)
    angle = row * SIZE + column
    there = column < half
    new = a * tl.load(cosine + angle, mask=there, other=0.0) + b * tl.load(sine + angle, mask=there, other=0.0)
    newer = b * tl.load(cosine + angle + half, mask=there, other=0.0) + a * tl.load(
        sine + angle + half, mask=there, other=0.0
    )
    new, newer = new.to(first.dtype), newer.to(first.dtype)
    own = (row * QUERIES + head) * SIZE + column
    is_query = inside & (head < QUERIES)
    tl.store(query + own, new, mask=is_query)
    tl.store(query + own + half, newer, mask=is_query)
    place = row
    if PAGED:
        place = tl.load(places + row)
    own = (place * KEYS + head - QUERIES) * SIZE + column
    is_key = inside & (head >= QUERIES) & (head < QUERIES + KEYS)
    tl.store(key + own, new, mask=is_key)
    tl.store(key + own + half, newer, mask=is_key)
    if PAGED:
        own = (place * KEYS + head - QUERIES - KEYS) * SIZE + column
        is_value = inside & (head >= QUERIES + KEYS)
        tl.store(value + own, first, mask=is_value)
        tl.store(value + own + half, second, mask=is_value)


@triton.jit
def attend(
    query,
    keys,
    values,
    table,
    lengths,
    out,
    parts,
    sums,
    scale,
    width,
    window,
    WINDOWED: tl.constexpr,
    KEYS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One key head of one sequence a program, or one of SPLITS parts of its tokens: its GROUP queries attend to BLOCK tokens at a time.

    With one part the result goes to `out`; else the sum of values to `parts`, and the largest score and the sum of exponentials to
    `sums`.
    """
    sequence = tl.program_id(0).to(tl.int64)
    head, split = tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    blocks = tl.cdiv(length, BLOCK)
    first = 0
    if WINDOWED:
        first = tl.maximum(length - window, 0)
    share = tl.cdiv(blocks - first // BLOCK, SPLITS)
    begin = first // BLOCK + split * share
    end = tl.minimum(begin + share, blocks)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    heads: tl.constexpr = KEYS * GROUP
    own = (sequence * heads + head * GROUP + row[:, None]) * SIZE + column[None, :]
    inside = (row[:, None] < GROUP) & (column[None, :] < SIZE)
    q = tl.load(query + own, mask=inside, other=0.0)
    largest = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    # The number of a page is read one step before the page: else no load of keys and values can be under way while others are used.
    pages = table + sequence * width
    page = tl.load(pages + begin * BLOCK // PAGE, mask=begin < end, other=0).to(tl.int64)
    for block in range(begin, end):
        following = tl.load(pages + (block + 1) * BLOCK // PAGE, mask=block + 1 < end, other=0).to(tl.int64)
        token = block * BLOCK + tl.arange(0, BLOCK)
        place = ((page * PAGE + token % PAGE) * KEYS + head) * SIZE
        seen = token < length
        key = tl.load(keys + place[None, :] + column[:, None], mask=seen[None, :] & (column[:, None] < SIZE), other=0.0)
        value = tl.load(
            values + place[:, None] + column[None, :], mask=seen[:, None] & (column[None, :] < SIZE), other=0.0
        )
        if WINDOWED:
            seen &= token >= first
        scores = tl.dot(q, key, input_precision="ieee") * (scale * 1.4426950408889634)
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(largest, tl.max(scores, 1))  # every block has a token that is seen
        weights = tl.exp2(scores - higher[:, None])
        fading = tl.exp2(largest - higher)
        total = total * fading + tl.sum(weights, 1)
        result = result * fading[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        largest = higher
        page = following
    if SPLITS == 1:
        tl.store(out + own, (result / total[:, None]).to(out.dtype.element_ty), mask=inside)
    else:
        part = (sequence * heads + head * GROUP + row) * SPLITS + split
        tl.store(parts + part[:, None] * SIZE + column[None, :], result, mask=inside)
        tl.store(sums + part * 2, largest, mask=row < GROUP)
        tl.store(sums + part * 2 + 1, total, mask=row < GROUP)


@triton.jit
def put_together(parts, sums, out, SIZE: tl.constexpr, SPLITS: tl.constexpr, COLUMNS: tl.constexpr):
    """One head of one sequence a program: its result from those of SPLITS parts of the tokens."""
    head = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, SPLITS), tl.arange(0, COLUMNS)
    largest = tl.load(sums + (head * SPLITS + split) * 2)
    share = tl.exp2(largest - tl.max(largest, 0))  # 0 for a part without tokens
    total = tl.sum(tl.load(sums + (head * SPLITS + split) * 2 + 1) * share, 0)
    at = (head * SPLITS + split[:, None]) * SIZE + column[None, :]
    there = (split[:, None] >= 0) & (column[None, :] < SIZE)
    result = tl.sum(tl.load(parts + at, mask=there, other=0.0) * share[:, None], 0) / total
    tl.store(out + head * SIZE + column, result.to(out.dtype.element_ty), mask=column < SIZE)


@triton.jit
def sum_spans(logits, temperatures, largest, places, sums, size, spans, SPAN: tl.constexpr, SPANS: tl.constexpr):
    """SPANS spans of the vocabulary of one row a program: the largest logit and where it is, and per span the sum of the
    exponentials of (logit - that one) / temperature."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = (block * SPANS + tl.arange(0, SPANS))[:, None] * SPAN + tl.arange(0, SPAN)[None, :]
    x = tl.load(logits + row * size + column, mask=column < size, other=-float("inf")).to(tl.float32)
    top = tl.max(tl.max(x, 1), 0)
    first = tl.min(tl.min(tl.where(x == top, column, size), 1), 0)
    at = row * tl.num_programs(1) + block
    tl.store(largest + at, top)
    top = tl.where(top == -float("inf"), 0.0, top)
    tl.store(places + at, first)
    temperature = tl.load(temperatures + row).to(tl.float32)
    temperature = tl.where(temperature == 0, 1.0, temperature)
    span = block * SPANS + tl.arange(0, SPANS)
    tl.store(sums + row * spans + span, tl.sum(tl.exp((x - top) / temperature), 1), mask=span < spans)


@triton.jit
def pick(
    logits,
    temperatures,
    draws,
    largest,
    places,
    sums,
    out,
    size,
    spans,
    blocks,
    SPAN: tl.constexpr,
    SPANS: tl.constexpr,
    ALL_SPANS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One row a program, from what `sum_spans` found: the token that the draw hits, or the likeliest one at temperature 0, its log-prob,
    and whether all logits are finite."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures + row).to(tl.float32)
    greedy = temperature == 0
    temperature = tl.where(greedy, 1.0, temperature)
    block = tl.arange(0, BLOCKS)
    tops = tl.load(largest + row * blocks + block, mask=block < blocks, other=-float("inf"))
    top = tl.max(tops, 0)
    likeliest = tl.load(places + row * blocks + block, mask=(block < blocks) & (tops == top), other=size)
    likeliest = tl.min(likeliest, 0)
    span = tl.arange(0, ALL_SPANS)
    there = span < spans
    fading = tl.exp(
        (tl.load(largest + row * blocks + span // SPANS, mask=there, other=-float("inf")) - top) / temperature
    )
    weights = (tl.load(sums + row * spans + span, mask=there, other=0.0) * fading).to(tl.float64)
    upto = tl.cumsum(weights, 0)
    total = tl.sum(weights, 0)
    target = tl.load(draws + row) * tl.max(upto, 0)
    # The first span that ends behind the target, but none behind the last one that weighs anything.
    hit = tl.sum((upto <= target).to(tl.int32), 0)
    hit = tl.minimum(hit, tl.sum((upto < tl.max(upto, 0)).to(tl.int32), 0))
    weight = tl.sum(tl.where(span == hit, weights, 0.0), 0)
    into = (target - tl.sum(tl.where(span == hit, upto, 0.0), 0) + weight) / weight
    into = tl.minimum(tl.maximum(into, 0.0), 1.0)
    column = hit * SPAN + tl.arange(0, SPAN)
    x = tl.load(logits + row * size + column, mask=column < size, other=-float("inf")).to(tl.float32)
    upto = tl.cumsum(tl.exp((x - top) / temperature).to(tl.float64), 0)
    target = into * tl.max(upto, 0)
    within = tl.sum((upto <= target).to(tl.int32), 0)
    within = tl.minimum(within, tl.sum((upto < tl.max(upto, 0)).to(tl.int32), 0))
    token = tl.where(greedy, likeliest, (hit * SPAN + within).to(tl.int64))
    token = tl.minimum(token, size - 1)  # numbers that are not finite lead anywhere
    chosen = tl.load(logits + row * size + token).to(tl.float32)
    tl.store(out + row * 3, token.to(tl.float64))
    tl.store(out + row * 3 + 1, ((chosen - top) / temperature).to(tl.float64) - tl.log(total))
    tl.store(out + row * 3 + 2, (total - total == 0).to(tl.float64))


@triton.jit
def expert_gates(
    x,
    weight,
    order,
    ends,
    out,
    hidden,
    inner,
    CHOSEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Some columns of one expert a program, for all tokens that have chosen it: silu(gate) · up, in the order of experts."""
    expert = tl.program_id(0)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends + expert)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    own = weight + expert.to(tl.int64) * 2 * inner * hidden + column[None, :] * hidden
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        token = tl.load(order + row, mask=row < end, other=0) // CHOSEN
        gates = tl.zeros((ROWS, COLUMNS), tl.float32)
        ups = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, hidden, DEPTH):
            depth = first + tl.arange(0, DEPTH)
            there = (column[None, :] < inner) & (depth[:, None] < hidden)
            some = tl.load(
                x + token[:, None] * hidden + depth[None, :],
                mask=(row[:, None] < end) & (depth[None, :] < hidden),
                other=0.0,
            )
            of_gate = tl.load(own + depth[:, None], mask=there, other=0.0)
            of_up = tl.load(own + inner * hidden + depth[:, None], mask=there, other=0.0)
            gates += tl.dot(some, of_gate, input_precision="ieee")
            ups += tl.dot(some, of_up, input_precision="ieee")
        gates = gates.to(out.dtype.element_ty).to(tl.float32)
        ups = ups.to(out.dtype.element_ty).to(tl.float32)
        active = gates / (1 + tl.exp(-gates)) * ups
        at = row[:, None].to(tl.int64) * inner + column[None, :]
        tl.store(out + at, active.to(out.dtype.element_ty), mask=(row[:, None] < end) & (column[None, :] < inner))


@triton.jit
def expert_outputs(
    active,
    weight,
    order,
    ends,
    shares,
    out,
    hidden,
    inner,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Some columns of one expert a program: what it adds to each token that has chosen it, at the place of that choice."""
    expert = tl.program_id(0)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends + expert)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    own = weight + expert.to(tl.int64) * inner * hidden + column[None, :] * inner
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        choice = tl.load(order + row, mask=row < end, other=0)
        result = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, inner, DEPTH):
            depth = first + tl.arange(0, DEPTH)
            some = tl.load(
                active + row[:, None].to(tl.int64) * inner + depth[None, :],
                mask=(row[:, None] < end) & (depth[None, :] < inner),
                other=0.0,
            )
            mine = tl.load(own + depth[:, None], mask=(column[None, :] < hidden) & (depth[:, None] < inner), other=0.0)
            result += tl.dot(some, mine, input_precision="ieee")
        share = tl.load(shares + choice, mask=row < end, other=0.0).to(tl.float32)
        result = result.to(active.dtype.element_ty).to(tl.float32) * share[:, None]
        at = choice[:, None].to(tl.int64) * hidden + column[None, :]
        tl.store(out + at, result, mask=(row[:, None] < end) & (column[None, :] < hidden))
