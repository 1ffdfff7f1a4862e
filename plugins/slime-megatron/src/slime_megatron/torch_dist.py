"""A folder in the format torch_dist, read one tensor at a time: megatron-core's distributed checkpoints, whoever wrote them.

    FOLDER/.metadata          of each tensor its size and its chunks, and in which file each chunk is, pickled
    FOLDER/__0_0.distcp, …    the chunks, as torch.save writes them
    FOLDER/common.pt          all else, of which only `GROUPS` is read here

The names in it are global: a tensor has one name and one size, however many ranks wrote chunks of it. Neither megatron-core nor
ranks are needed to read one.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from slime_core.errors import CheckpointError
from slime_core.tensors.dcp_metadata import read_metadata
from slime_core.tensors.stored import load_stored

GROUPS = "groups of heads"
"""What a run calls, in `common.pt`, how many groups of heads its model has with those of zeros that fill up its layout."""


class TorchDistFolder:
    """The tensors of a folder by their names.

    Attributes:
        tensors: {name: its size, its dtype and its chunks}.

    Raises:
        CheckpointError: there is no `.metadata`, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            found = read_metadata(folder)
        except CheckpointError as error:
            raise CheckpointError(f"This is no complete torch_dist checkpoint. {error}") from error
        self.tensors: dict[str, TensorStorageMetadata] = {
            name: about for name, about in found.state_dict_metadata.items() if isinstance(about, TensorStorageMetadata)
        }
        self._places: dict[MetadataIndex, Any] = found.storage_data
        self._by_index: dict[tuple[str, int], dict[tuple[int, ...], list[ChunkStorageMetadata]]] = {}
        self._last: tuple[Any, Tensor] | None = None
        self._common: dict[Any, Any] | None = None

    def groups(self, real: int) -> int:
        """How many groups of heads the tensors have, of which `real` belong to the model: the others are zeros that only a run
        of slime's adds, and says so."""
        if self._common is None:
            try:
                found = load_stored(self._folder / "common.pt")
            except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
                found = {}  # another program's has objects of its own
            self._common = found if isinstance(found, dict) else {}
        return int(self._common.get(GROUPS, real))

    def like(self, name: str, index: Sequence[int] = ()) -> Tensor:
        """A tensor on the meta device with the size and the dtype of what `read` returns. Raises `KeyError` like that."""
        about = self.tensors[name]
        return torch.empty(about.size[len(index) :], dtype=about.properties.dtype, device="meta")

    def read(self, name: str, index: Sequence[int] = ()) -> Tensor:
        """A tensor, or the part of it at `index` of its first dimensions, such as one layer of all. It must not be changed.

        Raises:
            KeyError: there is none of this name.
            CheckpointError: a chunk is missing or damaged.
        """
        about = self.tensors[name]
        depth = len(index)
        result: Tensor | None = None
        filled, wanted = 0, math.prod(about.size[depth:])
        for chunk in self._chunks_at(name, depth).get(tuple(index), ()):
            start, size = tuple(chunk.offsets), tuple(chunk.sizes)
            whole = self._chunk(name, chunk.offsets)
            if whole.shape != size:
                raise CheckpointError(
                    f"{self._folder}: a part of {name} has the size {tuple(whole.shape)}, and {size} by the metadata."
                )
            part = whole[tuple(n - first for n, first in zip(index, start, strict=False))]
            filled += part.numel()
            if part.numel() == wanted:
                result = part
                continue
            if result is None:
                result = torch.empty(about.size[depth:], dtype=about.properties.dtype)
            result[tuple(slice(a, a + n) for a, n in zip(start[depth:], size[depth:], strict=True))] = part
        if result is None or filled != wanted:
            raise CheckpointError(
                f"{self._folder} has {filled} of the {wanted} numbers of {name}{list(index) or ''}: parts of it are missing."
            )
        return result

    def _chunks_at(self, name: str, depth: int) -> dict[tuple[int, ...], list[ChunkStorageMetadata]]:
        """The chunks of a tensor by the indices of its first dimensions, such as layer and expert, of which they have a part."""
        if (name, depth) not in self._by_index:
            about = self.tensors[name]
            found: dict[tuple[int, ...], list[ChunkStorageMetadata]] = {}
            for chunk in about.chunks:
                bounds = zip(chunk.offsets, chunk.sizes, about.size[:depth], strict=False)
                for index in product(*(range(max(first, 0), min(first + n, size)) for first, n, size in bounds)):
                    found.setdefault(index, []).append(chunk)
            self._by_index[name, depth] = found
        return self._by_index[name, depth]

    def _chunk(self, name: str, offsets: torch.Size) -> Tensor:
        key = (name, tuple(offsets))
        if self._last is None or self._last[0] != key:  # a chunk may hold several layers, which are asked for in turn
            self._last = None
            self._last = key, self._read_chunk(self._places[MetadataIndex(name, offsets)], name)
        return self._last[1]

    def _read_chunk(self, place: Any, name: str) -> Tensor:
        path = self._folder / place.relative_path
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                tensor: Tensor = load_stored(file.read(place.length))
            return tensor
        except Exception as error:
            raise CheckpointError(f"{path} is damaged: {name} cannot be read from it ({error!r}).") from error
