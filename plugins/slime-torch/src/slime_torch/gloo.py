"""FSDP's two exchanges between CPUs, without the detours of torch's gloo backend. Used by `sharding`.

In gloo a reduce-scatter is an all-reduce of a copy, of which all but one part is thrown away, so twice as much travels
as is needed; and what an all-gather receives is copied once more. Here every rank sends each other rank what that one
needs, and adds up what it gets in the order of the ranks, so that the result is the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Exchange:
    """An exchange among the ranks of a group, in which each has as many numbers for every other one."""

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Make a tensor for FSDP to exchange."""
        return torch.empty(size, dtype=dtype, device=device)

    def swap(self, sent: Sequence[Tensor], received: Sequence[Tensor], group: dist.ProcessGroup) -> None:
        """Send `sent[r]` to each other rank r, and fill `received[r]` with what that rank sends here."""
        works = []
        for rank in range(group.size()):
            if rank != group.rank():
                works.append(dist.irecv(received[rank], group=group, group_src=rank))
                works.append(dist.isend(sent[rank], group=group, group_dst=rank))
        for work in works:
            if work is not None:  # which it is only for a rank outside of the group
                work.wait()


class AllGather(_Exchange):
    """What `torch.distributed.fsdp.FSDPModule.set_custom_all_gather` takes."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        """Put the inputs of the other ranks into the output, of which the input is this rank's part."""
        self.swap([input_tensor] * group.size(), output_tensor.chunk(group.size()), group)


class ReduceScatter(_Exchange):
    """What `torch.distributed.fsdp.FSDPModule.set_custom_reduce_scatter` takes."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        """Put the sum of this rank's part of all inputs into the output."""
        parts = input_tensor.chunk(group.size())
        received = [torch.empty_like(output_tensor) for _ in parts]
        received[group.rank()] = parts[group.rank()]
        self.swap(parts, received, group)
        torch.add(*received[:2], out=output_tensor)
        for more in received[2:]:
            output_tensor += more
