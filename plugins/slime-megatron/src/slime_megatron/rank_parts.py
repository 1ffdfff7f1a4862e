"""What tensor-parallel ranks have parts of, put together and taken apart where every rank computes the whole: the numbers, and
their gradients. `slime_megatron.low_precision` computes so.

Each of these does with the gradient what makes it whole on every rank, where the others expect it whole, and a share that is
added up over ranks, where they expect that. With one rank all of them do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_shards(shard: Tensor, group: Any) -> list[Tensor]:
    """This rank's part → the parts of all ranks, in their order. Gradient: of this rank's part; all ranks have computed the same."""
    if group.size() == 1:
        return [shard]
    found: Tensor = _AllShards.apply(shard, group)  # type: ignore[no-untyped-call]
    return list(found)


def own_shard(shards: Sequence[Tensor], group: Any) -> Tensor:
    """The parts of all ranks, which every rank has → this rank's. Gradient: of all parts, each from its rank."""
    if group.size() == 1:
        return shards[0]
    own: Tensor = _OwnShard.apply(torch.stack(list(shards)), group)  # type: ignore[no-untyped-call]
    return own


def first_rank_s(whole: Tensor, group: Any) -> Tensor:
    """What every rank has → on the first rank, and zeros on all others, so that a sum over ranks counts it once. Gradient: as it
    is."""
    once: Tensor = _Once.apply(whole, group) if group.size() > 1 else whole  # type: ignore[no-untyped-call]
    return once


def to_first_rank(whole: Tensor, group: Any) -> Tensor:
    """What every rank has, as it is. Gradient: on the first rank, and zeros on all others, so that a sum over ranks counts it
    once."""
    same: Tensor = _GradientOnce.apply(whole, group) if group.size() > 1 else whole  # type: ignore[no-untyped-call]
    return same


def _gathered(own: Tensor, group: Any) -> Tensor:
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, own.contiguous(), group=group)
    return torch.stack(parts)


def _on_first(whole: Tensor, group: Any) -> Tensor:
    return whole.clone() if group.rank() == 0 else torch.zeros_like(whole)


class _AllShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, group: Any) -> Tensor:
        ctx.rank = group.rank()
        return _gathered(shard, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.rank].contiguous(), None


class _OwnShard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shards: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return shards[group.rank()].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.group), None


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: Any) -> Tensor:
        return _on_first(whole, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _GradientOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _on_first(gradient, ctx.group), None
