"""Tensors on their way through Ray's object store: as raw bytes, which the receiver reads where they lie."""

from __future__ import annotations

import warnings
from typing import Any


def share_tensors_by_bytes() -> None:
    """Let Ray send every `torch.Tensor` of this process as raw bytes. On the receiving side it is a view of the object
    store, on the CPU, and must not be written to."""
    import ray.util
    import torch

    ray.util.register_serializer(torch.Tensor, serializer=to_bytes, deserializer=from_bytes)


def to_bytes(tensor: Any) -> tuple[Any, str, tuple[int, ...]]:
    import torch

    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy(), str(plain.dtype).removeprefix("torch."), tuple(plain.shape)


def from_bytes(sent: tuple[Any, str, tuple[int, ...]]) -> Any:
    import torch

    data, dtype, shape = sent
    if not data.size:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the bytes are read-only
        return torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape)
