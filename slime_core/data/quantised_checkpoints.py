"""`quantised_checkpoint`: in which format a quantised Hugging Face checkpoint is. Reads config.json and the tables at the beginning of its
files, no weights, and imports nothing heavy. Called when a run is planned and by everything that loads such a checkpoint."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_core.contracts.checkpoint_format import CheckpointFormat, QuantisedCheckpoint, StoredTensor
from slime_core.errors import ArgumentError, CheckpointError, DataError
from slime_core.plugins import Plugins

INDEX = "model.safetensors.index.json"
_ENTRY = "quantization_config"
_LARGEST_TABLE = 100 << 20  # bytes; what safetensors itself reads at most


def quantised_checkpoint(
    folder: str | None, plugins: Plugins, option: str = "--hf-checkpoint"
) -> QuantisedCheckpoint | None:
    """A checkpoint with its format; None where it is not quantised, or `folder` leads to no Hugging Face checkpoint.

    Args:
        plugins: where the format is looked for, by the `quant_method` of its config.json.
        option: that names the folder, for messages.

    Raises:
        ArgumentError: no installed plugin knows the format, or config.json and the files contradict each other.
    """
    entry = quantization_config(folder)
    if folder is None or entry is None:
        return None
    method = str(entry.get("quant_method", ""))
    if not plugins.find("checkpoint_format", method):
        known = sorted(plugins.components("checkpoint_format"))
        advice = plugins.where_to_get("checkpoint_format", method) or (
            " Give the checkpoint in high precision (bfloat16), or one in FP8 (slime convert hf-to-fp8, of slime-fp8)."
        )
        raise ArgumentError(
            f"{option} {folder} is quantised (quant_method {method!r} in config.json), and no installed plugin reads and writes "
            f"such weights; known are: {', '.join(known) or 'none'}.{advice}"
        )
    try:
        tensors = stored_tensors(Path(folder))
        made: CheckpointFormat = plugins.select("checkpoint_format", method, option)(entry, tensors)
    except (CheckpointError, DataError) as error:
        raise ArgumentError(f"{option} {folder}: {error}") from error
    return QuantisedCheckpoint(folder, made, tensors)


def quantization_config(folder: str | Path | None) -> dict[str, Any] | None:
    """The entry of this name in the config.json of a folder, its own or its language model's; None where there is none."""
    try:
        config = json.loads((Path(folder or "") / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return None  # who loads the checkpoint says what is wrong with it
    if not isinstance(config, dict):
        return None
    entry = config.get(_ENTRY) or (config.get("text_config") or {}).get(_ENTRY)
    return entry if isinstance(entry, dict) else None


def num_layers(config: Mapping[str, Any]) -> int | None:
    """Layers of the language model, of the content of a config.json; None where it does not tell."""
    for part in (config.get("text_config") or {}, config):
        for name in ("num_hidden_layers", "n_layer"):
            if isinstance(part.get(name), int):
                return int(part[name])
    return None


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json for the same model in high precision."""
    left = {key: value for key, value in config.items() if key != _ENTRY}
    if isinstance(text := left.get("text_config"), dict):
        left["text_config"] = {key: value for key, value in text.items() if key != _ENTRY}
    return left


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """{name: dtype and shape} of everything in a checkpoint's safetensors files.

    Raises:
        CheckpointError: there are none, or one is not complete.
    """
    return {name: tensor for file in weight_files(folder) for name, tensor in _table(file).items()}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those that its index lists, or all where it has none.

    Raises:
        CheckpointError: there are none, the index cannot be read, or a file that it lists is missing.
    """
    index = folder / INDEX
    if not index.is_file():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise CheckpointError(f"{folder} has no safetensors files. Save the checkpoint with safetensors first.")
        return found
    try:
        listed = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of weights ({error!r}); expected JSON with a weight_map of names of tensors to files. Get a "
            "complete checkpoint."
        ) from None
    if missing := [name for name in listed if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}, which {INDEX} lists; the checkpoint is incomplete."
        )
    return [folder / name for name in listed]


def weight_files_if_any(folder: Path) -> list[Path]:
    """What `weight_files` returns, but nothing for a folder without safetensors files: its weights are in another format, or
    not there, which who loads them says."""
    return weight_files(folder) if any(folder.glob("*.safetensors")) else []


def _table(path: Path) -> dict[str, StoredTensor]:
    """The table at the beginning of a safetensors file: 8 bytes with its length, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_TABLE:
                raise ValueError(f"its table would have {length} bytes")
            table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        return {name: StoredTensor(about["dtype"], tuple(about["shape"])) for name, about in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path} is no complete safetensors file: {error}.") from None
