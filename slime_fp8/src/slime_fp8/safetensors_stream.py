"""Reads and writes safetensors files one tensor at a time, so that a checkpoint of any size is converted in the memory of its
largest tensor. Reading is safetensors' own; its writer wants all tensors of a file at once."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls dtypes."""


@dataclass(frozen=True)
class Layout:
    """What a tensor in a file will be, known before its numbers are.

    Attributes:
        dtype: of its numbers.
        shape: of the tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_stream(path: Path, layouts: Mapping[str, Layout], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write a safetensors file.

    Args:
        path: the file, which is replaced.
        layouts: all tensors, in the order of the file.
        tensors: (name, tensor) in that order.

    Raises:
        ValueError: the tensors are others than `layouts` says.
    """
    with path.open("wb") as file:
        file.write(_header(layouts))
        expected = iter(layouts.items())
        for name, tensor in tensors:
            wanted, layout = next(expected, ("nothing", None))
            if name != wanted or layout != Layout(tensor.dtype, tuple(tensor.shape)):
                raise ValueError(f"{name} {tensor.dtype} {tuple(tensor.shape)} comes where {wanted} {layout} should.")
            _write(file, tensor)
        if (left := next(expected, None)) is not None:
            raise ValueError(f"{left[0]} did not come.")


def _header(layouts: Mapping[str, Layout]) -> bytes:
    """The length of the table of contents, 8 bytes, and the table as JSON, padded to a multiple of 8 bytes."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, layout in layouts.items():
        table[name] = {
            "dtype": NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [offset, offset + layout.size],
        }
        offset += layout.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write(file: BinaryIO, tensor: Tensor) -> None:
    if tensor.numel():
        file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
