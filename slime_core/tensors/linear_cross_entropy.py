"""Log-probabilities of given tokens, and entropies, from hidden states, with one chunk of logits alive at a time.

A train backend calls `token_log_probs` on the trained positions of a micro-batch in place of the model's own head. The
full (T, V) logits never exist: the forward pass goes chunk by chunk, and the backward pass computes a chunk's logits
again, except for the last chunk, which is kept. The gradient of any later function of the log-probabilities and
entropies flows through, so every loss can use them.

With logits z = s · (h Wᵀ + b), soft-capped by c as c · tanh(z / c), then divided by the temperature, and p = softmax z:

    log p(y) = z_y - log Σ exp z              ∂ log p(y) / ∂z_j = [j = y] - p_j
    H = -Σ p log p = log Σ exp z - Σ p z      ∂H / ∂z_j = -p_j (log p_j + H) = -p_j (z_j - Σ p z)

Where the ranks of a tensor-parallel group have some rows of W each (`Shard`), the sums run over all of them: two small
exchanges for each chunk in the forward pass, one where the backward pass computes its logits again. The gradient by the
hidden states is then this rank's part of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slime_core.tensors.fused.launch import by_kernels
from slime_core.tensors.fused.log_probs import LogProbs
from slime_core.tensors.matrix_products import matmul

BLOCK = 2**20
"""Where numbers are needed before and after an operation, both are there for so many numbers at a time, which stay in a processor's cache."""


@dataclass(frozen=True)
class Shard:
    """Which rows of a head's weight a rank has.

    Attributes:
        first: the token of its first row.
        rows: how many of its rows are tokens; those behind them only fill up.
        group: the ranks that have all rows together.
    """

    first: int
    rows: int
    group: dist.ProcessGroup

    def largest_(self, values: Tensor) -> Tensor:
        """The largest values over all ranks, in place."""
        dist.all_reduce(values, dist.ReduceOp.MAX, self.group)
        return values

    def sum_(self, values: Tensor) -> Tensor:
        """The sums over all ranks, in place."""
        dist.all_reduce(values, group=self.group)
        return values

    def places(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Where the targets' columns are among this rank's, and which of them it has; some place for the others."""
        places = targets - self.first
        own = (places >= 0) & (places < self.rows)
        return places.clamp(0, max(0, self.rows - 1)), own


@dataclass(frozen=True)
class Head:
    """The last step of a causal language model, from hidden states to logits.

    Attributes:
        weight: (V, H), or this rank's rows of it.
        bias: (V,) or None.
        scale: the logits are multiplied by this.
        softcap: the scaled logits are bounded to ±softcap by tanh; None: they are not.
        shard: which rows the weight has, where other ranks have the others; None: all of them.
        fused: the kernels of this device were found to be right (`slime_core.tensors.fused_proof`), and may be used.
        rounded: the weight in bfloat16, for the kernels; None: it is rounded for each call.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    shard: Shard | None = None
    fused: bool = False
    rounded: Tensor | None = None


def token_log_probs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk_size: int = -1,
    product: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The log-prob of every row's target and, if wanted, the entropy of its distribution softmax(logits / temperature).

    Args:
        hidden: (T, H) hidden states of the positions that predict the targets.
        targets: (T,) int64 token ids.
        temperature: divides the logits that the head gives, after its soft cap.
        chunk_size: rows whose logits exist at one time; -1: all.
        product: dtype of the matrix products, that of `hidden` if None. All else is computed in float32, or in float64 where the weight
            is.

    Returns:
        (T,) log-probs and (T,) entropies, or None, in float32, or in float64 where `head.weight` is.
    """
    scale, stretch = (head.scale / temperature, 1.0) if head.softcap is None else (head.scale, 1.0 / temperature)
    product, bias = product or hidden.dtype, head.bias
    if scale != 1.0 and _exact(product) is product:
        # What scales all logits may as well scale the hidden states, which are far fewer; but half precision would round them anew.
        hidden = hidden * scale
        bias = None if bias is None else bias * scale
        scale = 1.0
    hidden = hidden.to(product)
    if head.fused and (found := _by_kernels(hidden, head, scale, targets, entropy, chunk_size)):
        return found
    apply: Callable[..., tuple[Tensor, Tensor | None]] = _TokenLogProbs.apply
    return apply(hidden, head.weight, bias, targets, (scale, head.softcap, stretch, head.shard), entropy, chunk_size)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are computed in: never half precision."""
    return torch.promote_types(dtype, torch.float32)


def _by_kernels(
    hidden: Tensor, head: Head, scale: float, targets: Tensor, entropy: bool, chunk_size: int
) -> tuple[Tensor, Tensor | None] | None:
    """The same by the kernels of a GPU, for heads that they know; else None."""
    known = head.softcap is None and head.bias is None and head.shard is None and head.weight.dtype == torch.float32
    if not (known and by_kernels(hidden) and len(hidden)):
        return None
    rounded = head.weight.detach().to(hidden.dtype) if head.rounded is None else head.rounded
    apply: Callable[..., tuple[Tensor, Tensor | None]] = LogProbs.apply
    return apply(hidden, head.weight, rounded, targets, scale, entropy, _chunks(len(hidden), chunk_size))


def _chunks(rows: int, chunk_size: int) -> list[slice]:
    """Cut the rows into chunks. The last one, whose logits are kept for the backward pass, is a full one."""
    size = max(1, rows if chunk_size == -1 else min(chunk_size, rows))  # of no rows there is one chunk all the same
    starts = [0, *range(rows % size or size, rows, size)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], rows], strict=True)]


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shape: tuple[float, float | None, float, Shard | None],
        entropy: bool,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.softcap, ctx.stretch, ctx.shard = shape
        ctx.exact = _exact(weight.dtype)
        ctx.chunks = _chunks(len(hidden), chunk_size)
        log_probs = torch.empty(len(hidden), dtype=ctx.exact, device=weight.device)
        entropies, means = (torch.empty_like(log_probs) for _ in range(2)) if entropy else (None, None)
        factor = _rows(weight, ctx.shard).to(hidden.dtype)  # once for all chunks
        for rows in ctx.chunks:
            shifted, slope = _shifted_logits(ctx, hidden[rows], factor, bias)
            chosen = _chosen(shifted, targets[rows], ctx.shard)
            powers, total, weighted = _powers_(shifted, entropy)
            if ctx.shard is not None:
                parts = [part for part in (chosen, total.squeeze(1), weighted) if part is not None]
                chosen, summed, *more = ctx.shard.sum_(torch.stack(parts))
                total, weighted = summed[:, None], more[0] if more else None
            log_total = total.squeeze(1).log()
            torch.sub(chosen, log_total, out=log_probs[rows])
            if entropies is not None and means is not None and weighted is not None:
                torch.div(weighted, total.squeeze(1), out=means[rows])
                torch.sub(log_total, means[rows], out=entropies[rows])
            del shifted
        ctx.save_for_backward(hidden, weight, bias, targets, means)
        ctx.kept = (powers, total, slope) if any(ctx.needs_input_grad) else None
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, means = ctx.saved_tensors
        means = None if grad_entropy is None else means
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=ctx.exact) if need_bias else None
        factor = _rows(weight, ctx.shard).to(hidden.dtype)
        for rows in reversed(ctx.chunks):
            kept, ctx.kept = ctx.kept, None
            if kept is None:
                shifted, slope = _shifted_logits(ctx, hidden[rows], factor, bias)
                powers, total, _ = _powers_(shifted, entropy=False)
                kept = powers, total if ctx.shard is None else ctx.shard.sum_(total), slope
            grad_logits, total, slope = kept
            per_row = (None if t is None else t[rows, None] for t in (grad, grad_entropy, means))
            _gradient_by_logits_(grad_logits, total, targets[rows, None], ctx.shard, *per_row)
            if slope is not None:
                grad_logits.mul_(slope)
            if ctx.scale != 1.0:
                grad_logits.mul_(ctx.scale)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = matmul(grad_logits, factor)
            if need_weight:
                grad_weight = _add_product(grad_weight, grad_logits.t(), hidden[rows], ctx.exact)
            del kept, slope, grad_logits
        if grad_weight is not None and len(grad_weight) < len(weight):
            filling = grad_weight.new_zeros(len(weight) - len(grad_weight), grad_weight.shape[1])
            grad_weight = torch.cat([grad_weight, filling])
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _shifted_logits(ctx: Any, hidden: Tensor, factor: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The (C, V) logits z of a chunk of C rows minus each row's largest one, and the (C, V) derivative of z by what the soft cap is
    applied to, or None where there is no soft cap.

    Args:
        factor: (V, H) the head's weight in the dtype of the hidden states.
    """
    logits = matmul(hidden, factor.t()).to(ctx.exact)
    if bias is not None:
        logits += bias
    if ctx.scale != 1.0:
        logits *= ctx.scale
    slope = None
    if ctx.softcap is not None:
        logits.div_(ctx.softcap).tanh_()
        slope = 1 - logits.square()
        logits *= ctx.softcap * ctx.stretch
        if ctx.stretch != 1.0:
            slope *= ctx.stretch
    if ctx.shard is None:
        logits -= logits.amax(1, keepdim=True)
    else:
        none = logits.new_full((len(logits), 1), -torch.inf)
        logits -= ctx.shard.largest_(logits.amax(1, keepdim=True) if logits.shape[1] else none)
    return logits, slope


def _powers_(shifted: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Turn the logits z of a chunk, (C, V), in place into exp z. Returns them, their sums (C, 1) and, if wanted, Σ z exp z (C,)."""
    if not entropy:
        powers = shifted.exp_()
        return powers, powers.sum(1, keepdim=True), None
    weighted = shifted.new_empty(len(shifted))
    for block, sums in zip(_blocks(shifted), _blocks(weighted, shifted.shape[1]), strict=True):
        powers = torch.exp(block)
        torch.sum(block.mul_(powers), 1, out=sums)
        block.copy_(powers)
    return shifted, shifted.sum(1, keepdim=True), weighted


def _blocks(values: Tensor, columns: int | None = None) -> Sequence[Tensor]:
    """Views of a few rows of `values` each, as many as have `BLOCK` numbers in `columns` columns; its own, if that is None."""
    return torch.split(values, max(1, BLOCK // max(1, values.shape[1] if columns is None else columns)))


def _rows(weight: Tensor, shard: Shard | None) -> Tensor:
    """The rows of the weight that are tokens."""
    return weight if shard is None else weight[: shard.rows]


def _chosen(shifted: Tensor, targets: Tensor, shard: Shard | None) -> Tensor:
    """(C,) shifted logits of the targets; 0 where another rank has the target's column."""
    if shard is None:
        return shifted.gather(1, targets[:, None]).squeeze(1)
    if not shard.rows:
        return shifted.new_zeros(len(targets))
    places, own = shard.places(targets)
    return shifted.gather(1, places[:, None]).squeeze(1) * own


def _gradient_by_logits_(
    powers: Tensor,
    total: Tensor,
    targets: Tensor,
    shard: Shard | None,
    grad: Tensor | None,
    grad_entropy: Tensor | None,
    means: Tensor | None,
) -> None:
    """Turn exp(z - max z) in place into grad · ∂ log p(y) / ∂z + grad_entropy · ∂H / ∂z.

    Args:
        powers, total: (C, V) and its sums over V, (C, 1).
        means: (C, 1) Σ p (z - max z); read with `grad_entropy`.
    """
    if grad_entropy is None:
        assert grad is not None  # there is no backward pass without either gradient
        powers.mul_(-grad / total)
    else:
        assert means is not None  # entropies and their means come together
        factors = (grad_entropy * means if grad is None else grad_entropy * means - grad) / total
        shares = grad_entropy / total
        columns = powers.shape[1]
        for block, factor, share in zip(
            _blocks(powers), _blocks(factors, columns), _blocks(shares, columns), strict=True
        ):
            # powers · (z - max z) without the logits; 0, not NaN, where a power has become 0. (xlogy takes thrice as long.)
            weighted = torch.log(block).clamp_min_(-1e4).mul_(block)
            block.mul_(factor).addcmul_(weighted, share, value=-1)
    if grad is not None and shard is None:
        powers.scatter_add_(1, targets, grad)
    elif grad is not None and shard is not None and shard.rows:
        places, own = shard.places(targets)
        powers.scatter_add_(1, places, grad * own)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """total + left @ right, added in `dtype`; in place, unless `total` is None and so 0."""
    if total is None:
        return torch.mm(left, right).to(dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(torch.mm(left, right))
