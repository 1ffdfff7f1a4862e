"""A model spread over the training ranks with FSDP2: every rank keeps its part of each parameter, of its gradient and of
the optimizer's state, and has a layer whole only while it computes that layer. Called by the backend.

Gradients are summed over the ranks, not averaged: every rank's loss is its share of the loss of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from slime_torch.ranks import Ranks

T = TypeVar("T")


class Sharded(nn.Module):
    """Spreads `model` over the ranks, in place, and runs computations with it.

    The weights are those of rank 0; on the other ranks the model may lie on the meta device. Layers are moved to the
    rank's device, sent and cut one after the other, so no more than one of them is there whole at any time. What lies
    outside of the layers (embedding, last norm, head) is one further unit.
    """

    def __init__(self, model: PreTrainedModel, ranks: Ranks) -> None:
        super().__init__()
        self.model = model
        mesh = init_device_mesh(ranks.device.type, (ranks.size,))
        for unit in (*_layers(model), self):
            _send_from_rank_0(unit, ranks.device)
            fully_shard(unit, mesh=mesh)
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                if hasattr(module, "set_reduce_scatter_unused_params"):  # not in every torch
                    module.set_reduce_scatter_unused_params(True)  # an expert may get tokens on one rank only

    def forward(self, compute: Callable[[], T]) -> T:
        """`compute()`, which may read parameters outside of the layers: they are whole while it runs. All ranks must
        call this at the same time, and take the gradient at the same time if one does."""
        return compute()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be spread; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread. All ranks must call this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The modules that transformers says must stay in one piece: the decoder layers."""
    kinds = set(model._no_split_modules or ())
    return (module for module in model.modules() if type(module).__name__ in kinds)


def _send_from_rank_0(unit: nn.Module, device: torch.device) -> None:
    """Put the parameters and buffers of `unit` that are not yet spread on `device`, with the values of rank 0."""
    sent: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, so that tied ones stay tied
    for module in unit.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is None or isinstance(old, DTensor):
                    continue
                if id(old) not in sent:
                    new = torch.empty_like(old, device=device) if old.is_meta else old.detach().to(device).contiguous()
                    dist.broadcast(new, 0)
                    new = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    sent[id(old)] = (old, new)
                table[name] = sent[id(old)][1]
