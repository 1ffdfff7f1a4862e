"""Hugging Face checkpoints on disk, one weight at a time: reading configuration and weights, and writing them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.data.quantised_checkpoints import INDEX, weight_files, without_quantization
from slime_core.errors import ArgumentError, CheckpointError
from slime_core.remote_code import from_pretrained
from slime_core.tensors.stored_weights import name_dtype

_SHARD_BYTES = 4 * 2**30
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in safetensors."""


def read_config(folder: str) -> Any:
    """The configuration of a checkpoint.

    Raises:
        ArgumentError: there is none that transformers knows.
    """
    from transformers import AutoConfig

    try:
        return from_pretrained(AutoConfig, folder)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{folder} holds no model configuration that can be loaded: {error}") from error


class Reader:
    """The weights of a checkpoint by name, read when they are asked for. Holds one at a time.

    Args:
        quantised: how the checkpoint stores its weights, which are restored to float32; None: they are not quantised.

    Raises:
        ArgumentError: the folder has no safetensors files, or one that its index lists is missing.
    """

    def __init__(self, folder: Path, quantised: QuantisedCheckpoint | None = None) -> None:
        try:
            files = weight_files(folder)
        except CheckpointError as error:
            raise ArgumentError(str(error)) from error
        self._open = [safe_open(file, "pt") for file in files]
        self._of = {name: file for file in self._open for name in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118 - it is no mapping
        format = quantised.format if quantised is not None else None
        low = [name for name in self._of if format is not None and format.quantises(name)]
        self._parts = {name: list(format.layout(name, self._shape(name))) for name in low} if format is not None else {}
        self._scales = {own for name, parts in self._parts.items() for own in parts if own != name}
        self._format = format

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open, self._of = [], {}

    def read(self, name: str) -> Tensor:
        """A weight. Raises `KeyError` if there is none of this name."""
        if self._format is not None and name in self._parts:
            return self._format.restored(name, {own: self._stored(own) for own in self._parts[name]})
        return self._stored(name)

    def names(self) -> list[str]:
        """All names."""
        return [name for name in self._of if name not in self._scales]

    def like(self, name: str) -> Tensor:
        """A tensor on the meta device with the size and the dtype of a weight, which is not read."""
        about = self._of[name].get_slice(name)  # type: ignore[no-untyped-call]
        dtype = torch.float32 if name in self._parts else _DTYPES[about.get_dtype()]
        return torch.empty(about.get_shape(), dtype=dtype, device="meta")

    def _stored(self, name: str) -> Tensor:
        tensor: Tensor = self._of[name].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._of[name].get_slice(name).get_shape())  # type: ignore[no-untyped-call]


def write(
    folder: Path,
    weights: Iterator[tuple[str, Tensor]],
    source: Path,
    copied_prefixes: Sequence[str] = (),
    write: bool = True,
    shard_bytes: int = _SHARD_BYTES,
    quantised: QuantisedCheckpoint | None = None,
) -> None:
    """Write weights and configuration as a Hugging Face checkpoint in high precision, in files of limited size.

    config.json names the dtype that most of the numbers have: who loads the checkpoint goes by it, and would round them to another.

    Args:
        weights: read to the end, also where nothing is written: the other ranks take part in gathering them.
        source: the checkpoint that the configuration, and weights that training does not know, are copied from.
        copied_prefixes: what the names of the latter begin with.
        write: this rank writes.
        shard_bytes: largest size of a file, unless one weight alone is larger.
        quantised: how `source` stores its weights; None: it is not quantised.
    """
    if not write:
        for _ in weights:
            pass
        return
    folder.mkdir(parents=True, exist_ok=True)
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    files = _Files(folder, shard_bytes)
    for name, tensor in weights:
        files.add(name, tensor)
    if copied_prefixes:
        with Reader(source, quantised) as reader:
            for name in reader.names():
                if name.startswith(tuple(copied_prefixes)):
                    files.add(name, reader.read(name))
    files.finish()
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if quantised is not None:
        config = without_quantization(config)
    name_dtype(config, max(files.numbers, key=files.numbers.__getitem__))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class _Files:
    """Collects weights and writes a file whenever enough have come together.

    Attributes:
        numbers: how many there are of each dtype.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._held: dict[str, Tensor] = {}
        self._bytes = self._total = 0
        self._written: list[tuple[Path, list[str]]] = []
        self.numbers: Counter[torch.dtype] = Counter()

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._held and self._bytes + size > self._limit:
            self._flush()
        self._held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self._bytes += size
        self._total += size
        self.numbers[tensor.dtype] += tensor.numel()

    def finish(self) -> None:
        self._flush()
        count = len(self._written)
        index: dict[str, str] = {}
        for number, (path, names) in enumerate(self._written, 1):
            final = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self._folder / final)
            index |= dict.fromkeys(names, final)
        if count > 1:
            text = json.dumps({"metadata": {"total_size": self._total}, "weight_map": index}, indent=1)
            (self._folder / INDEX).write_text(text, encoding="utf-8")

    def _flush(self) -> None:
        if self._held:
            path = self._folder / f".part-{len(self._written)}.safetensors"
            save_file(self._held, path, metadata={"format": "pt"})
            self._written.append((path, list(self._held)))
            self._held, self._bytes = {}, 0
