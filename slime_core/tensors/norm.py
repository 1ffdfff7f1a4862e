"""The norm of a gradient, whatever the number of its parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

CHAIN = 1024
"""So many squares are added up in float32 on a CPU."""
SMALLEST = 1e-20
"""Below this, squares may have been lost that float32 cannot hold."""


def squares_of(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of the squares of all numbers of the tensors: one float64 number on their device; 0 of none.

    On a CPU torch's own norm adds up the squares in float32, in chains so long that the norm of an embedding with 28 million
    numbers is off by up to 7e-4. Here short chains are added up so, and their sums in float64; where float32 cannot hold the
    squares, all of them in float64, which takes twenty times as long. On a GPU torch adds them up in a tree, without that loss,
    and the norms of all tensors are one pass there, not a launch for each.
    """
    tensors = list(tensors)
    if tensors and all(tensor.is_cuda for tensor in tensors):
        return torch.stack(torch._foreach_norm(tensors)).double().square().sum()
    found = [_squares(tensor) for tensor in tensors]
    return torch.stack(found).sum() if found else torch.zeros((), dtype=torch.float64)


def _squares(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cpu":
        norm: Tensor = torch.linalg.vector_norm(tensor)
        return norm.double().square()
    if tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.numel() >= CHAIN:
        whole = tensor.numel() // CHAIN * CHAIN
        flat = tensor.view(-1)
        norms: Tensor = torch.linalg.vector_norm(flat[:whole].view(-1, CHAIN), dim=1)
        found = norms.double().square_().sum() + _in_float64(flat[whole:])
        if SMALLEST < found < torch.inf:
            return found
    return _in_float64(tensor)


def _in_float64(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm.square()
