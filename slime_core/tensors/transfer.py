"""How small tensors reach a device without the host waiting for it. Called for every micro-batch and every decoding step.

A copy from ordinary host memory makes the host wait until the device has finished all that it was given before, so that
it prepares the next work while the device has none. A copy from pinned memory only joins the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor`, which lies in host memory, on `device`; the tensor itself where that is the host.

    Nothing waits: what is given to a CUDA device afterwards finds the copy, and the host memory stays until it is made.
    """
    if device.type == "cpu" or tensor.device == device:
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def numbers_on(device: torch.device, numbers: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor of numbers of the host, or of nested lists of them, on `device`, as `sent` does."""
    return sent(torch.tensor(numbers, dtype=dtype), device)
