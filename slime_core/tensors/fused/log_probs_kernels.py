"""Log-probs and entropies of rows of logits in one pass, and their gradient by the logits in one more, in place. Called by
`slime_core.tensors.linear_cross_entropy`, whose module says what they are."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    logits,
    targets,
    log_probs,
    largest,
    totals,
    entropies,
    means,
    columns,
    factor,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of C logits, z = factor · logits: log p of its target, max z, Σ exp(z - max z); the entropy, and Σ p (z - max z)."""
    row = tl.program_id(0).to(tl.int64)
    begin = logits + row * columns
    high = tl.full((), -1e30, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    weighted = tl.full((), 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(begin + column, mask=column < columns, other=-1e30).to(tl.float32) * factor
        higher = tl.maximum(high, tl.max(z, 0))
        power = tl.exp(z - higher)
        fade = tl.exp(high - higher)
        if ENTROPY:
            weighted = fade * (weighted + (high - higher) * total) + tl.sum(
                tl.where(power > 0.0, power * (z - higher), 0.0), 0
            )
        total = fade * total + tl.sum(power, 0)
        high = higher
    chosen = tl.load(begin + tl.load(targets + row)).to(tl.float32) * factor - high
    log_total = tl.log(total)
    tl.store(log_probs + row, chosen - log_total)
    tl.store(largest + row, high)
    tl.store(totals + row, total)
    if ENTROPY:
        tl.store(entropies + row, log_total - weighted / total)
        tl.store(means + row, weighted / total)


@triton.jit
def backward(
    logits,
    targets,
    grads,
    entropy_grads,
    largest,
    totals,
    means,
    columns,
    factor,
    BY_LOG_PROB: tl.constexpr,
    BY_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: the logits become factor · (grad · ∂ log p(y) / ∂z + entropy_grad · ∂H / ∂z)."""
    row = tl.program_id(0).to(tl.int64)
    begin = logits + row * columns
    target = tl.load(targets + row)
    high = tl.load(largest + row)
    inverse = 1.0 / tl.load(totals + row)
    if BY_LOG_PROB:
        grad = tl.load(grads + row).to(tl.float32)
    if BY_ENTROPY:
        grad_entropy = tl.load(entropy_grads + row).to(tl.float32)
        mean = tl.load(means + row)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        z = tl.load(begin + column, mask=inside, other=-1e30).to(tl.float32) * factor - high
        share = tl.exp(z) * inverse
        found = tl.zeros((BLOCK,), tl.float32)
        if BY_LOG_PROB:
            found = grad * (tl.where(column == target, 1.0, 0.0) - share)
        if BY_ENTROPY:
            found -= grad_entropy * tl.where(share > 0.0, share * (z - mean), 0.0)
        tl.store(begin + column, (found * factor).to(logits.dtype.element_ty), mask=inside)
