"""Checkpoints into FP8 and back: pure of any command line, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from slime_core.data.quantised_checkpoints import quantization_config, without_quantization
from slime_core.errors import CheckpointError, DataError
from slime_fp8.checkpoint_folder import Change, CheckpointFolder, read_folder, unchanged, write_folder
from slime_fp8.modules import QuantisedModules
from slime_fp8.safetensors_stream import Layout
from slime_fp8.weight_formats import WeightFormat, format_of

EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        changed: names of the weights that were quantised, or restored.
        left: names of matrices that stayed as they are.
        ragged: names of weights whose last blocks are not full, which some engines refuse.
        bytes_before, bytes_after: of all tensors.
    """

    changed: tuple[str, ...]
    left: tuple[str, ...]
    ragged: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def to_fp8(
    model_dir: Path, save_dir: Path, format: WeightFormat, modules: QuantisedModules | None = None, workers: int = 1
) -> Converted:
    """Write a Hugging Face checkpoint anew with its weights in FP8. Tensors that are not quantised keep their bytes.

    Args:
        model_dir: the checkpoint, with floating-point weights.
        save_dir: a folder that is empty or does not exist yet.
        format: how weights are stored, from `slime_fp8.weight_formats`.
        modules: which are quantised; by default every layer, but no head, router or embedding.
        workers: files at a time.

    Raises:
        CheckpointError: the checkpoint cannot be read, is quantised already, or has nothing to quantise; or the folder is not
            empty.
        DataError: a weight has NaN or Inf.
    """
    source = read_folder(model_dir)
    if quantization_config(model_dir) or any(t.dtype in EIGHT_BITS for t in source.tensors.values()):
        raise CheckpointError(
            f"{model_dir} is quantised already. Restore it first (fp8-to-hf), or take the original checkpoint."
        )
    modules = modules or QuantisedModules(source.num_layers)
    chosen = [n for n, t in source.tensors.items() if t.dtype in FLOATS and modules.holds(n, t.shape)]
    if not chosen:
        raise CheckpointError(f"{model_dir} has no weight that would be quantised, of {len(source.tensors)} tensors.")
    picked = set(chosen)
    changes = {n: _quantising(n, t, format) if n in picked else unchanged(n, t) for n, t in source.tensors.items()}
    shapes = {name: layout.shape for name, layout in source.tensors.items()}
    left = modules.left_out(shapes)
    config = {**without_quantization(source.config), "quantization_config": format.quantization_config(left)}
    return _written(source, save_dir, changes, config, workers, chosen, format)


def from_fp8(model_dir: Path, save_dir: Path, dtype: torch.dtype | None = None, workers: int = 1) -> Converted:
    """Write an FP8 checkpoint anew with ordinary weights, for trainers and converters that read no FP8.

    Args:
        model_dir: the checkpoint; its config.json says which format it has.
        save_dir: a folder that is empty or does not exist yet.
        dtype: of the restored weights; by default what config.json calls the model's, or else bfloat16.
        workers: files at a time.

    Raises:
        CheckpointError: the checkpoint cannot be read, or the folder is not empty.
        DataError: it is quantised in no known way, or a weight has no scales or is no matrix.
    """
    source = read_folder(model_dir)
    entry = quantization_config(model_dir)
    if entry is None:
        raise CheckpointError(
            f"{model_dir} is not quantised: its config.json has no quantization_config. Take it as it is."
        )
    format = format_of(entry)
    named = source.config.get("dtype", source.config.get("torch_dtype"))
    dtype = dtype or getattr(torch, str(named), None) or torch.bfloat16
    chosen = [name for name, layout in source.tensors.items() if layout.dtype in EIGHT_BITS]
    places = {name: file for file, layouts in source.files.items() for name in layouts}
    for name in chosen:
        if name + format.suffix not in places:
            raise DataError(f"{name} is in 8 bits, but the checkpoint has no {name}{format.suffix} with its scales.")
        if len(shape := source.tensors[name].shape) != 2:
            raise DataError(
                f"{name} is in 8 bits and of shape {shape}; expected matrices. Experts in one tensor are not read."
            )
    scales = {name + format.suffix for name in chosen}
    changes: dict[str, Change | None] = {n: unchanged(n, t) for n, t in source.tensors.items() if n not in scales}
    changes |= dict.fromkeys(scales)
    for name in chosen:
        file = source.folder / places[name + format.suffix]
        changes[name] = _restoring(name, source.tensors[name], format, file, dtype)
    config = without_quantization(source.config)
    return _written(source, save_dir, changes, config, workers, chosen, format)


def _quantising(name: str, layout: Layout, format: WeightFormat) -> Change:
    """A weight becomes numbers and scales."""
    made = {key: Layout(dtype, shape) for key, (dtype, shape) in format.layout(name, layout.shape).items()}
    return Change(made, lambda weight: format.stored(name, weight))


def _restoring(name: str, layout: Layout, format: WeightFormat, scales_in: Path, dtype: torch.dtype) -> Change:
    """Numbers become a weight; their scales may be in another file."""

    def make(data: Tensor) -> Mapping[str, Tensor]:
        with safe_open(scales_in, "pt") as file:
            scales = file.get_tensor(name + format.suffix)
        return {name: format.restored(name, {name: data, name + format.suffix: scales}).to(dtype)}

    return Change({name: Layout(dtype, layout.shape)}, make)


def _written(
    source: CheckpointFolder,
    save_dir: Path,
    changes: Mapping[str, Change | None],
    config: dict[str, Any],
    workers: int,
    chosen: list[str],
    format: WeightFormat,
) -> Converted:
    write_folder(source, save_dir, changes, config, workers)
    tensors, picked = source.tensors, set(chosen)
    after = [layout for change in changes.values() if change is not None for layout in change.layouts.values()]
    return Converted(
        changed=tuple(chosen),
        left=tuple(n for n, t in tensors.items() if len(t.shape) > 1 and n not in picked and changes[n] is not None),
        ragged=tuple(name for name in chosen if format.is_ragged(tensors[name].shape)),
        bytes_before=sum(layout.size for layout in tensors.values()),
        bytes_after=sum(layout.size for layout in after),
    )
