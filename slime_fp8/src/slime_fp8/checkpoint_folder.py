"""A Hugging Face checkpoint of safetensors files, as converters see it: names, shapes and dtypes at once, tensors one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slime_core.data.quantised_checkpoints import INDEX, num_layers, weight_files
from slime_core.errors import CheckpointError
from slime_core.unfinished import replace_folder, unfinished
from slime_fp8.safetensors_stream import NAMES, Layout, write_stream

_DTYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class CheckpointFolder:
    """A checkpoint on disk.

    Attributes:
        folder: where it is.
        config: its config.json.
        files: {file name: {tensor name: dtype and shape}}, in the order of the files.
    """

    folder: Path
    config: dict[str, Any]
    files: dict[str, dict[str, Layout]]

    @cached_property
    def tensors(self) -> dict[str, Layout]:
        """{name: dtype and shape} of all files."""
        return {name: layout for layouts in self.files.values() for name, layout in layouts.items()}

    @property
    def num_layers(self) -> int:
        """Layers of the language model.

        Raises:
            CheckpointError: config.json does not tell.
        """
        if (found := num_layers(self.config)) is not None:
            return found
        raise CheckpointError(f"{self.folder / 'config.json'} has no num_hidden_layers; expected the number of layers.")


def read_folder(folder: Path) -> CheckpointFolder:
    """Look into a checkpoint, without reading any tensor.

    Raises:
        CheckpointError: there is none, it is incomplete, or it has no safetensors files.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Expected the folder of a Hugging Face checkpoint."
        ) from None
    return CheckpointFolder(folder, config, {file.name: _layouts(file) for file in weight_files(folder)})


def _layouts(path: Path) -> dict[str, Layout]:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
            return {name: Layout(_dtype(path, name, s.get_dtype()), tuple(s.get_shape())) for name, s in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no complete safetensors file: {error}.") from None


def _dtype(path: Path, name: str, dtype: str) -> torch.dtype:
    if dtype not in _DTYPES:
        raise CheckpointError(f"{path}: {name} has the dtype {dtype}; expected one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


@dataclass(frozen=True)
class Change:
    """What becomes of a tensor.

    Attributes:
        layouts: the tensors that take its place, by name, in order.
        make: is given the tensor and makes those.
    """

    layouts: dict[str, Layout]
    make: Callable[[Tensor], Mapping[str, Tensor]]


def unchanged(name: str, layout: Layout) -> Change:
    """The tensor stays as it is."""
    return Change({name: layout}, lambda tensor: {name: tensor})


def write_folder(
    source: CheckpointFolder,
    target: Path,
    changes: Mapping[str, Change | None],
    config: dict[str, Any],
    workers: int = 1,
) -> None:
    """Write a checkpoint with other tensors and another config.json. Other files are copied, but no weights in other formats.

    The new checkpoint is complete or not there: it is written into a hidden folder, which then takes its place.

    Args:
        source: the checkpoint that is converted.
        target: a folder that is empty or does not exist yet.
        changes: for each tensor of the source what becomes of it; None: it is left out.
        config: config.json of the new checkpoint.
        workers: files that are written at the same time, each in the memory of its largest tensor.

    Raises:
        CheckpointError: the folder has something in it, or it cannot be written.
    """
    hidden = unfinished(target.absolute())  # first: what a killed conversion has left in the folder is no content of it
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(
            f"{target} exists and is not empty; nothing was written. Give another --save-dir, or empty it."
        )
    try:
        hidden.mkdir(parents=True)
        _copy_others(source, hidden)
        _write_weights(source, hidden, changes, workers)
        (hidden / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        replace_folder(hidden, target)
    except OSError as error:
        raise CheckpointError(f"The checkpoint could not be written to {target}: {error}.") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _copy_others(source: CheckpointFolder, target: Path) -> None:
    """Copy what is neither weights nor describes them: the tokenizer, the generation settings, the licence."""
    for file in sorted(source.folder.iterdir()):
        weights = file.name in ("config.json", INDEX) or file.name.endswith((".safetensors", ".bin", ".pth", ".pt"))
        if file.is_file() and not weights:
            shutil.copyfile(file, target / file.name)


def _write_weights(source: CheckpointFolder, target: Path, changes: Mapping[str, Change | None], workers: int) -> None:
    """Write the files with the tensors, under their old names, and the index if there was one."""
    places: dict[str, str] = {}
    total = 0
    with ThreadPoolExecutor(max_workers=workers) as pool:
        jobs = []
        for file_name, layouts in source.files.items():
            of_file = {name: change for name in layouts if (change := changes[name]) is not None}
            new = {key: layout for change in of_file.values() for key, layout in change.layouts.items()}
            if not new:
                continue
            places |= dict.fromkeys(new, file_name)
            total += sum(layout.size for layout in new.values())
            jobs.append(pool.submit(_write_file, source.folder / file_name, target / file_name, new, of_file))
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if len(source.files) > 1 or (source.folder / INDEX).exists():
        table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (target / INDEX).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _write_file(source: Path, target: Path, layouts: Mapping[str, Layout], changes: Mapping[str, Change]) -> None:
    def tensors() -> Iterator[tuple[str, Tensor]]:
        with safe_open(source, "pt") as file:
            for name, change in changes.items():
                made = change.make(file.get_tensor(name))
                yield from ((key, made[key]) for key in change.layouts)

    write_stream(target, layouts, tensors())
