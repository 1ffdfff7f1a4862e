"""The gradients of a model, as the backend's `gradients` gives them out: complete on every rank that has a part of a weight.

megatron-core adds gradients up in buffers of their own, of which the distributed optimizer leaves a rank a piece.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from slime_megatron.model import BuiltModel
from slime_megatron.weights import own_tensors


def complete(wrapped: nn.Module) -> None:
    """Bring together what the distributed optimizer leaves in pieces: each rank has only its own piece of a sum."""
    module: Any = wrapped
    if not module.ddp_config.use_distributed_optimizer:
        return
    for buffer in (*module.buffers, *module.expert_parallel_buffers):
        group = buffer.data_parallel_group
        for bucket in buffer.buckets:
            pieces = list(bucket.grad_data.chunk(group.size()))
            dist.all_gather(pieces, pieces[group.rank()].clone(), group=group)


def own(model: BuiltModel) -> dict[str, Tensor]:
    """The gradients of this rank's parameters, by their names in the whole model. Buffers have none, nor has what is frozen."""
    found: dict[str, Tensor] = {}
    for name, tensor in own_tensors(model):
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            found[name] = tensor.main_grad  # type: ignore[attr-defined]  # megatron-core's
    return found
