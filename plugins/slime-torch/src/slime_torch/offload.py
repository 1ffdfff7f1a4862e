"""What a backend keeps in host memory while its GPU is needed for something else. Called by the backend.

With `--offload` that is everything that it holds (`held`), while the engine generates on the same GPU. With
`--optimizer-cpu-offload` it is the optimizer's state, but for the moments in which a step is taken (`on_device`).
Adam's state is twice as large as the weights in float32. It is then never on the GPU together with the activations of
forward and backward pass, at the price of moving it there and back in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from slime_torch.sharding import local

HOST = torch.device("cpu")


def held(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """This rank's parts of weights, buffers and the optimizer's state, all of which the next step needs."""
    states = optimizer.state.values() if optimizer is not None else ()
    state = [value for values in states for value in values.values() if isinstance(value, Tensor)]
    return [local(tensor) for tensor in (*model.parameters(), *model.buffers(), *state)]


@contextmanager
def on_device(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Have the optimizer's state where its parameters are inside of this context, and in host memory afterwards."""
    move_state(optimizer, None)
    try:
        yield
    finally:
        move_state(optimizer, HOST)


def move_state(optimizer: torch.optim.Optimizer, device: torch.device | None) -> None:
    """Move every tensor of the optimizer's state, its values unchanged. Between a CUDA device and the host it goes through pinned
    memory, all of it in one queue.

    Args:
        device: where to; None: to the device of the parameter that the tensor belongs to.
    """
    from torch.distributed.tensor import DTensor

    left: set[torch.device] = set()
    for parameter, values in optimizer.state.items():
        target = parameter.device if device is None else device
        for key, value in values.items():
            if not isinstance(value, Tensor):
                continue
            if isinstance(value, DTensor):
                values[key] = value.to(target)
            elif value.is_cuda and target.type == "cpu":
                values[key] = torch.empty_like(value, device=target, pin_memory=True).copy_(value, non_blocking=True)
                left.add(value.device)
            else:
                values[key] = value.to(target, non_blocking=value.is_pinned())
    for one in left:
        torch.cuda.synchronize(one)  # nobody reads what has not arrived
