"""FSDP's two exchanges between CPUs, without the detours of torch's gloo backend. Used by `sharding`.

In gloo a reduce-scatter is an all-reduce of a copy, of which all but one part is thrown away, so twice as much travels
as is needed; and what an all-gather receives is copied once more. Here every rank gives each other rank what that one
needs, through the network or, on one machine, through memory that they share (`shared_memory`), and adds up what it gets
in the order of the ranks, so that the result is the same in every run and on either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slime_core.tensors.ranks import in_time


class Network:
    """The way between any ranks: messages of gloo. What travels are tensors of one dimension."""

    def gather(self, own: Tensor, received: Sequence[Tensor], group: dist.ProcessGroup) -> None:
        """Give `own` to every other rank r, and fill `received[r]` with what that rank gives."""
        swap([own] * group.size(), received, group)

    def add(self, given: Sequence[Tensor], total: Tensor, group: dist.ProcessGroup) -> None:
        """Give `given[r]` to each other rank r, and put into `total` the sum of what all ranks, this one included, have
        for this one."""
        received = [torch.empty_like(total) for _ in given]
        received[group.rank()] = given[group.rank()]
        swap(given, received, group)
        add_up(received, total)


class _Exchange:
    """An exchange among the ranks of a group, in which each has as many numbers for every other one.

    Args:
        way: how they get there.
    """

    def __init__(self, way: Network) -> None:
        self._way = way

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Make a tensor for FSDP to exchange."""
        return torch.empty(size, dtype=dtype, device=device)


class AllGather(_Exchange):
    """What `torch.distributed.fsdp.FSDPModule.set_custom_all_gather` takes."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        """Put the inputs of the other ranks into the output, of which the input is this rank's part."""
        self._way.gather(input_tensor, output_tensor.chunk(group.size()), group)


class ReduceScatter(_Exchange):
    """What `torch.distributed.fsdp.FSDPModule.set_custom_reduce_scatter` takes."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        """Put the sum of this rank's part of all inputs into the output."""
        self._way.add(input_tensor.chunk(group.size()), output_tensor, group)


def swap(sent: Sequence[Tensor], received: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Send `sent[r]` to each other rank r, and fill `received[r]` with what that rank sends here."""
    works = []
    for rank in range(group.size()):
        if rank != group.rank():
            works.append(dist.irecv(received[rank], group=group, group_src=rank))
            works.append(dist.isend(sent[rank], group=group, group_dst=rank))
    with in_time("their parts of layers and gradients"):
        for work in works:
            if work is not None:  # which it is only for a rank outside of the group
                work.wait()


def add_up(parts: Sequence[Tensor], total: Tensor) -> None:
    """Put the sum of at least two parts, in their order, into `total`."""
    torch.add(*parts[:2], out=total)
    for more in parts[2:]:
        total += more
