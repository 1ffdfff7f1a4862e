"""Which form of a fused function computes, and the shapes of the blocks of its kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_computed_by = {"cuda"}
"""The kinds of devices whose tensors kernels compute."""


def by_kernels(tensor: Tensor) -> bool:
    """Whether a function of this tensor is computed by kernels."""
    return tensor.device.type in _computed_by


@contextmanager
def kernels_on(*kinds: str) -> Iterator[None]:
    """Inside of this context, tensors on these kinds of devices alone are computed by kernels, and all others by torch's operations. On
    "cpu" Triton's interpreter has to be switched on (TRITON_INTERPRET=1)."""
    before = set(_computed_by)
    _computed_by.clear()
    _computed_by.update(kinds)
    try:
        yield
    finally:
        _computed_by.clear()
        _computed_by.update(before)


def block(size: int) -> int:
    """The power of 2 in which a row of so many numbers has room."""
    return max(16, 1 << (size - 1).bit_length())


def warps(numbers: int) -> int:
    """How many warps compute a block of so many numbers: sixteen numbers for each thread."""
    return min(16, max(1, numbers // 512))


def programs(rows: int, device: torch.device, each: int = 4) -> int:
    """How many programs share the rows of a sum over all rows, each of which writes a part of it: always as many on a kind of device,
    so that sums are taken in the same order.

    Args:
        each: how many there are for each multiprocessor.
    """
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return max(1, min(rows, each * processors))
