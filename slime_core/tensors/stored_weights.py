"""The safetensors files of a Hugging Face folder, read and rewritten one tensor after the other. Called by exports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slime_core.data.quantised_checkpoints import INDEX, quantization_config, weight_files
from slime_core.errors import CheckpointError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KEPT_IN_FLOAT32 = ("e_score_correction_bias",)
"""Ends of the names of what models keep in float32 whatever dtype they have: it chooses experts."""


def read_all(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of everything in the files of a checkpoint."""
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, file.get_tensor(name)


def cast_all(folder: Path, dtype: str) -> None:
    """Give all floating-point weights in a folder another dtype, and say so in its config.json.

    Args:
        folder: a model, or an adapter as peft has it.
        dtype: one of `DTYPES`.

    Raises:
        CheckpointError: the folder is quantised, has no safetensors files, or a number is too large for the dtype.
    """
    if quantization_config(folder) is not None:
        raise CheckpointError(
            f"{folder} is quantised: its weights are no numbers of one dtype. Restore it first: slime convert fp8-to-hf."
        )
    size = sum(_cast_file(path, DTYPES[dtype], dtype) for path in weight_files(folder))
    if (index := folder / INDEX).is_file():
        table = json.loads(index.read_text(encoding="utf-8"))
        table["metadata"] = {**table.get("metadata", {}), "total_size": size}
        index.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    if (file := folder / "config.json").is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        name_dtype(config, DTYPES[dtype])
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _cast_file(path: Path, dtype: torch.dtype, word: str) -> int:
    """Rewrite a file, and return the bytes of its tensors."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {"format": "pt"}
        made = {name: _cast(name, file.get_tensor(name), dtype, word) for name in file.keys()}  # noqa: SIM118
    beside = path.with_name(f".tmp-{path.name}")
    save_file(made, beside, metadata=metadata)
    beside.replace(path)
    return sum(tensor.nbytes for tensor in made.values())


def _cast(name: str, tensor: Tensor, dtype: torch.dtype, word: str) -> Tensor:
    if not tensor.is_floating_point() or name.endswith(KEPT_IN_FLOAT32):
        return tensor
    made = tensor.to(dtype)
    if not bool(made.isfinite().all()) and bool(tensor.isfinite().all()):
        raise CheckpointError(
            f"--dtype {word}: {name} has numbers up to {tensor.abs().max().item():.3g}, and {word} ends at "
            f"{torch.finfo(dtype).max:.3g}. Give --dtype bf16."
        )
    return made


def name_dtype(config: dict[str, Any], dtype: torch.dtype) -> None:
    """Let the content of a config.json name the dtype, in each of its parts that names one."""
    name = str(dtype).removeprefix("torch.")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in ("dtype", "torch_dtype"):
            if key in part and (part is config or isinstance(part[key], str)):
                part[key] = name
    if "torch_dtype" not in config:
        config["dtype"] = name
