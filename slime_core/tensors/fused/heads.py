"""Queries and keys of all heads are normed, where the model does, and turned to their positions, in one pass each; and the gradients
of queries, keys and values come back as one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slime_core.tensors.fused.launch import block, by_kernels, programs, warps


@dataclass(frozen=True)
class Heads:
    """Attributes:
    queries, keys: how many heads there are of them; as many of values as of keys.
    size: of a head.
    eps: of their norms.
    """

    queries: int
    keys: int
    size: int
    eps: float = 0.0


def queries_keys_values(
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    heads: Heads,
) -> tuple[Tensor, Tensor, Tensor]:
    """What attention reads of N tokens.

    Args:
        projected: (N, (queries + 2 · keys) · size): queries, keys and values beside one another.
        cos, sin: (N, size) of the tokens' positions; the two halves of a head are turned against each other, as those of Llama
            (Su et al. 2021, arXiv:2104.09864).
        query_weight, key_weight: (size,) of the RMS norms of each head before that; None: there are none.

    Returns:
        (N, heads, size) queries, keys and values, the values in the memory of `projected`.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Heads.apply(projected, cos, sin, query_weight, key_weight, heads)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return found


def queries_keys(
    queries: Tensor,
    keys: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    heads: Heads,
) -> tuple[Tensor, Tensor]:
    """The same of (N, queries · size) and (N, keys · size) that are matrices of their own, without values."""
    both = torch.cat((queries, keys), -1)
    found: tuple[Tensor, Tensor] = _Heads.apply(both, cos, sin, query_weight, key_weight, heads)[:2]  # type: ignore[no-untyped-call]  # torch does not annotate it
    return found


class _Heads(torch.autograd.Function):
    """`projected` may end behind the keys; then there are no values."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        cos: Tensor,
        sin: Tensor,
        query_weight: Tensor | None,
        key_weight: Tensor | None,
        heads: Heads,
    ) -> tuple[Tensor, ...]:
        ctx.heads = heads
        ctx.save_for_backward(projected, cos, sin, query_weight, key_weight)
        turned, values = _split(projected, heads)
        if by_kernels(projected):
            queries, keys = _turned_by_kernels(turned, cos, sin, query_weight, key_weight, heads)
        else:
            parts = torch.split(turned, [heads.queries * heads.size, heads.keys * heads.size], -1)
            queries, keys = (
                _turned(part, cos, sin, weight, heads.eps)
                for part, weight in zip(parts, (query_weight, key_weight), strict=True)
            )
        if not values.shape[1]:
            return queries, keys
        return queries, keys, values.view(len(values), heads.keys, heads.size)

    @staticmethod
    def backward(ctx: Any, grad_queries: Tensor, grad_keys: Tensor, *grad_values: Tensor) -> tuple[Tensor | None, ...]:
        projected, cos, sin, query_weight, key_weight = ctx.saved_tensors
        heads: Heads = ctx.heads
        grad = torch.empty_like(projected)
        (turned, _), (grad_turned, by_values) = _split(projected, heads), _split(grad, heads)
        given = turned, cos, sin, query_weight, key_weight, heads, grad_turned
        compute = _gradient_by_kernels if by_kernels(projected) else _gradients
        by_query, by_key = compute(grad_queries, grad_keys, *given)
        if grad_values:
            by_values.copy_(grad_values[0].reshape(by_values.shape))
        return grad, None, None, by_query, by_key, None


def _split(projected: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Queries and keys, and values, as views."""
    turned = (heads.queries + heads.keys) * heads.size
    return projected[:, :turned], projected[:, turned:]


def _turned(x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """(N, heads · size) → (N, heads, size)."""
    size = cos.shape[-1]
    wide = x.view(len(x), -1, size).to(torch.promote_types(x.dtype, torch.float32))
    if weight is not None:
        wide = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    first, second = wide.chunk(2, -1)
    found: Tensor = wide * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]
    return found.to(x.dtype)


def _gradient(
    grad: Tensor, x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float, grad_x: Tensor
) -> Tensor | None:
    """Write the gradient by x into `grad_x`, and return the one by the weight."""
    wide = torch.promote_types(x.dtype, torch.float32)
    grad = grad.to(wide)
    first, second = (grad * sin[:, None]).chunk(2, -1)
    grad = grad * cos[:, None] + torch.cat((second, -first), -1)
    by_weight = None
    if weight is not None:
        normed = x.view(grad.shape).to(wide)
        scale = (normed.square().mean(-1, keepdim=True) + eps).rsqrt()
        normed = normed * scale
        by_weight = (grad * normed).flatten(0, 1).sum(0).to(weight.dtype)
        grad = grad * weight
        grad = (grad - normed * (grad * normed).mean(-1, keepdim=True)) * scale
    grad_x.copy_(grad.reshape(x.shape))
    return by_weight


def _gradients(
    grad_queries: Tensor,
    grad_keys: Tensor,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    heads: Heads,
    grad_x: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Write the gradients by queries and keys into `grad_x`, and return those by the weights."""
    sizes = [heads.queries * heads.size, heads.keys * heads.size]
    parts = zip(torch.split(x, sizes, -1), torch.split(grad_x, sizes, -1), strict=True)
    (queries, into_queries), (keys, into_keys) = parts
    return (
        _gradient(grad_queries, queries, cos, sin, query_weight, heads.eps, into_queries),
        _gradient(grad_keys, keys, cos, sin, key_weight, heads.eps, into_keys),
    )


TOGETHER = 8
"""So many heads are computed by one program."""


def _turned_by_kernels(
    x: Tensor, cos: Tensor, sin: Tensor, query_weight: Tensor | None, key_weight: Tensor | None, heads: Heads
) -> tuple[Tensor, Tensor]:
    from slime_core.tensors.fused import heads_kernels

    tokens, size = cos.shape
    count = heads.queries + heads.keys
    turned = x.new_empty(tokens, count, size)
    half = block(size // 2)
    heads_kernels.forward[(tokens, -(-count // TOGETHER))](
        x,
        cos,
        sin,
        cos if query_weight is None else query_weight,
        cos if key_weight is None else key_weight,
        turned,
        x.stride(0),
        heads.queries,
        count,
        size // 2,
        heads.eps,
        NORMS=query_weight is not None,
        HEADS=TOGETHER,
        HALF=half,
        num_warps=warps(TOGETHER * half),
    )
    return turned[:, : heads.queries], turned[:, heads.queries :]


def _gradient_by_kernels(
    grad_queries: Tensor,
    grad_keys: Tensor,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    heads: Heads,
    grad_x: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    from slime_core.tensors.fused import heads_kernels

    tokens, size = cos.shape
    count = heads.queries + heads.keys
    blocks, half = -(-count // TOGETHER), block(size // 2)
    parts = torch.empty(programs(tokens, x.device, 8) * blocks, 2, size, dtype=torch.float32, device=x.device)
    heads_kernels.backward[(len(parts) // blocks, blocks)](
        grad_queries.contiguous(),
        grad_keys.contiguous(),
        x,
        cos,
        sin,
        cos if query_weight is None else query_weight,
        cos if key_weight is None else key_weight,
        grad_x,
        parts,
        tokens,
        x.stride(0),
        grad_x.stride(0),
        heads.queries,
        count,
        size // 2,
        heads.eps,
        NORMS=query_weight is not None,
        HEADS=TOGETHER,
        HALF=half,
        num_warps=2 * warps(TOGETHER * half),
    )
    if query_weight is None or key_weight is None:
        return None, None
    by_query, by_key = parts.sum(0)
    return by_query.to(query_weight.dtype), by_key.to(key_weight.dtype)
