"""`--optimizer-cpu-offload`: the optimizer's state is in host memory but for the moments in which a step is taken.

Adam's state is twice as large as the weights in float32. On a GPU it then shares no moment with the activations of
forward and backward pass, at the price of moving it there and back in every step. The backend calls this around its
steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from slime_core.errors import ArgumentError

HOST = torch.device("cpu")


def check_device(device: torch.device) -> None:
    """Raise `ArgumentError` where there is no memory but the host's."""
    if device.type == "cpu":
        raise ArgumentError(
            "--optimizer-cpu-offload needs a GPU: this process trains on the CPU, so the optimizer's state is in host "
            "memory already. Leave the option out."
        )


@contextmanager
def on_device(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The state is where the parameters are, and in host memory afterwards."""
    move_state(optimizer, None)
    try:
        yield
    finally:
        move_state(optimizer, HOST)


def move_state(optimizer: torch.optim.Optimizer, device: torch.device | None) -> None:
    """Move every tensor of the state, its values unchanged.

    Args:
        device: None: that of the parameter which the tensor belongs to.
    """
    for parameter, values in optimizer.state.items():
        target = parameter.device if device is None else device
        for key, value in values.items():
            if isinstance(value, Tensor):
                values[key] = value.to(target)
