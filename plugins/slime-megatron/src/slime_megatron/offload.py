"""What a model in training holds of a GPU's memory, and giving it back while the engine generates there (`--offload`). Used by the
backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from slime_core.tensors.offload import Offloaded
from slime_megatron.optimizer import parts_of


class OffloadedModel:
    """The memory of one model: weights, master weights and the optimizer's state wait in host memory, gradients are dropped.

    megatron-core has weights and gradients in flat buffers, of which parameters, buckets and the optimizer's shards are views.
    Only the memory behind a buffer goes, so all of its views are what they were when it is back.

    Args:
        wrapped: the model, in what reduces its gradients if it is trained.
        optimizer: None for a model that is not trained.
    """

    def __init__(self, wrapped: nn.Module, optimizer: Any, device: torch.device) -> None:
        self._wrapped, self._optimizer, self._device = wrapped, optimizer, device
        self._offloaded = Offloaded()
        self._gradients: list[tuple[Tensor, int]] = []

    def leave(self) -> None:
        """Give the memory back; does nothing if that has been done."""
        if self._optimizer is not None:
            self._optimizer.zero_grad()  # gradients of master weights; those of weights are in buffers
        for data in (buffer.grad_data for buffer in self._gradient_buffers()):
            if size := data.untyped_storage().nbytes():
                self._gradients.append((data, size))
                data.untyped_storage().resize_(0)
        parallel_state.get_global_memory_buffer().buffer.clear()  # what sequence parallelism gathers, made anew when needed
        self._offloaded.leave(self._held(), self._device)

    def come_back(self) -> None:
        """Take the memory again, with everything in it as it was, and gradients of 0."""
        self._offloaded.come_back()
        for data, size in self._gradients:
            data.untyped_storage().resize_(size)
            data.zero_()
        self._gradients = []

    def _gradient_buffers(self) -> list[Any]:
        wrapped: Any = self._wrapped
        return [] if self._optimizer is None else [*wrapped.buffers, *wrapped.expert_parallel_buffers]

    def _held(self) -> Iterator[Tensor]:
        yield from self._wrapped.parameters()
        yield from nn.Module.buffers(self._wrapped)  # the wrapper's own attribute `buffers` is another thing
        for part in parts_of(self._optimizer):
            inner = getattr(part, "optimizer", None)
            if inner is not None:
                yield from (parameter for group in inner.param_groups for parameter in group["params"])
                yield from (t for state in inner.state.values() for t in state.values() if isinstance(t, Tensor))
