"""A model spread over the training ranks with FSDP2: every rank keeps its part of each parameter, of its gradient and
of the optimizer's state, and has a layer whole only while it computes that layer. Called by the backend.

With `--no-fsdp-reshard-after-forward` a rank has all layers whole from the first forward pass of an optimizer step to
its last backward pass, and whole gradients, to which every micro-batch adds. Weights and gradients then travel once in
a step, and not twice and once with every micro-batch.

Gradients are summed over the ranks, not averaged: every rank's loss is its share of the loss of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slime_core.tensors.ranks import Ranks, in_time
from slime_torch import shared_memory
from slime_torch.gloo import AllGather, Network, ReduceScatter
from slime_torch.vision import language_model

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from transformers import PreTrainedModel

T = TypeVar("T")


class Sharded(nn.Module):
    """Spreads a model over the ranks, in place, and runs computations with it.

    The weights are those of rank 0; on the other ranks the model may lie on the meta device. Layers are moved to the
    rank's device, sent and cut one after the other, so no more than one of them is there whole at any time. What lies
    outside of the layers (embedding, last norm, head) is one further unit.

    Args:
        model: is changed: its parameters become `DTensor`s.
        reshard: False: keep layers whole after a forward pass, until `backward` or `reshard_all`.
    """

    def __init__(self, model: PreTrainedModel, ranks: Ranks, reshard: bool = True) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        super().__init__()
        self.model = model
        self._keeps_whole = not reshard
        mesh = init_device_mesh(ranks.device.type, (ranks.size,))
        on_cpus = ranks.device.type == "cpu"
        way = (shared_memory.between(mesh.get_group()) if on_cpus else None) or Network()
        for unit in (*decoder_layers(model), self):
            _send_from_rank_0(unit, ranks.device)
            fully_shard(unit, mesh=mesh, reshard_after_forward=None if reshard else False)
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                if on_cpus and hasattr(module, "set_custom_reduce_scatter"):
                    # Their base classes are private to torch, and not in every version.
                    module.set_custom_all_gather(AllGather(way))  # type: ignore[arg-type]  # has all that is asked for
                    module.set_custom_reduce_scatter(ReduceScatter(way))  # type: ignore[arg-type]  # likewise
                if hasattr(module, "set_reduce_scatter_unused_params"):  # not in every torch
                    module.set_reduce_scatter_unused_params(True)  # an expert may get tokens on one rank only

    def run(self, compute: Callable[[], T]) -> T:
        """Return `compute()`, which may read parameters outside of the layers: they are whole while it runs. All ranks
        must call this at the same time, and take the gradient at the same time if one does."""
        result: T = self(compute)  # as a call of the module, around which FSDP gathers and frees
        return result

    def forward(self, compute: Callable[[], T]) -> T:
        """Return `compute()`; called by `run` alone."""
        return compute()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add to the gradients.

        Args:
            last: no other micro-batch of this step follows. Where layers are kept whole, gradients are summed over the
                ranks only now, and then each rank keeps its parts alone.
        """
        if self._keeps_whole:
            unit = cast("FSDPModule", self)  # what `fully_shard` has made of it
            unit.set_requires_gradient_sync(last)
            unit.set_reshard_after_backward(last)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it

    def reshard_all(self) -> None:
        """Keep this rank's parts alone, which FSDP does not do after a forward pass without a backward pass."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be spread, in the same memory."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread, detached. All ranks must call this at the same time."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    with in_time("their parts of a weight"):
        return tensor.full_tensor()


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that transformers says must stay in one piece, which are the decoder layers, before and after FSDP has given each a class
    of its own, made of theirs."""
    kinds = set(model._no_split_modules or ())
    # Not those of a vision tower, which ranks without images do not compute: it is whole with what lies outside of the layers.
    modules = language_model(model).modules()
    return [module for module in modules if any(kind.__name__ in kinds for kind in type(module).__mro__)]


def _send_from_rank_0(unit: nn.Module, device: torch.device) -> None:
    """Put the parameters and buffers of `unit` that are not yet spread on `device`, with the values of rank 0."""
    from torch.distributed.tensor import DTensor

    sent: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, so that tied ones stay tied
    for module in unit.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, old in table.items():
                if old is None or isinstance(old, DTensor):
                    continue
                if id(old) not in sent:
                    new = torch.empty_like(old, device=device) if old.is_meta else old.detach().to(device).contiguous()
                    with in_time("a weight of rank 0"):
                        dist.broadcast(new, 0)
                    new = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    sent[id(old)] = (old, new)
                table[name] = sent[id(old)][1]
