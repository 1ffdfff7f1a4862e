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


def turned(projected: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The same of queries, or keys, alone: (N, heads · size) → (N, heads, size)."""
    found: Tensor = _Turned.apply(projected, cos, sin, weight, eps)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return found


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(projected, cos, sin, weight)
        return (_turned_by_kernels if by_kernels(projected) else _turned)(projected, cos, sin, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        projected, cos, sin, weight = ctx.saved_tensors
        grad_projected = torch.empty_like(projected)
        compute = _gradient_by_kernels if by_kernels(projected) else _gradient
        return grad_projected, None, None, compute(grad, projected, cos, sin, weight, ctx.eps, grad_projected), None


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        cos: Tensor,
        sin: Tensor,
        query_weight: Tensor | None,
        key_weight: Tensor | None,
        heads: Heads,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.heads = heads
        ctx.save_for_backward(projected, cos, sin, query_weight, key_weight)
        queries, keys, values = _split(projected, heads)
        compute = _turned_by_kernels if by_kernels(projected) else _turned
        return (
            compute(queries, cos, sin, query_weight, heads.eps),
            compute(keys, cos, sin, key_weight, heads.eps),
            values.view(len(values), heads.keys, heads.size),
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        projected, cos, sin, query_weight, key_weight = ctx.saved_tensors
        heads: Heads = ctx.heads
        grad = torch.empty_like(projected)
        compute = _gradient_by_kernels if by_kernels(projected) else _gradient
        grad_queries, grad_keys, grad_values = _split(grad, heads)
        queries, keys, _ = _split(projected, heads)
        by_query = compute(grads[0], queries, cos, sin, query_weight, heads.eps, grad_queries)
        by_key = compute(grads[1], keys, cos, sin, key_weight, heads.eps, grad_keys)
        grad_values.copy_(grads[2].reshape(grad_values.shape))
        return grad, None, None, by_query, by_key, None


def _split(projected: Tensor, heads: Heads) -> list[Tensor]:
    """Queries, keys and values as views."""
    sizes = [heads.queries * heads.size, heads.keys * heads.size, heads.keys * heads.size]
    return list(torch.split(projected, sizes, -1))


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


def _turned_by_kernels(x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    from slime_core.tensors.fused import heads_kernels

    tokens, size = cos.shape
    heads = x.shape[1] // size
    turned = x.new_empty(tokens, heads, size)
    shape = {"HEADS": block(heads), "HALF": block(size // 2)}
    heads_kernels.forward[(tokens,)](
        x,
        cos,
        sin,
        cos if weight is None else weight,
        turned,
        x.stride(0),
        heads,
        size // 2,
        eps,
        NORMS=weight is not None,
        **shape,
        num_warps=warps(shape["HEADS"] * shape["HALF"]),
    )
    return turned


def _gradient_by_kernels(
    grad: Tensor, x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float, grad_x: Tensor
) -> Tensor | None:
    from slime_core.tensors.fused import heads_kernels

    tokens, size = cos.shape
    heads = x.shape[1] // size
    parts = torch.empty(programs(tokens, x.device), size, dtype=torch.float32, device=x.device)
    shape = {"HEADS": block(heads), "HALF": block(size // 2)}
    heads_kernels.backward[(len(parts),)](
        grad.contiguous(),
        x,
        cos,
        sin,
        cos if weight is None else weight,
        grad_x,
        parts,
        tokens,
        x.stride(0),
        grad_x.stride(0),
        heads,
        size // 2,
        eps,
        NORMS=weight is not None,
        **shape,
        num_warps=warps(shape["HEADS"] * shape["HALF"]),
    )
    return None if weight is None else parts.sum(0).to(weight.dtype)
