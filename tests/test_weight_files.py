"""Which files the weights of a checkpoint are in: everything that looks into them goes by its index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_llama import small_llama

from slime_core.data.quantised_checkpoints import INDEX, stored_tensors, weight_files, weight_files_if_any
from slime_core.errors import CheckpointError
from slime_core.tensors.embedding import require_tied, stored_rows
from slime_core.tensors.stored_weights import read_all
from slime_core.training.checkpoint_check import stored_linear
from slime_torch.model import add_value_head


def value_head(folder: str) -> float:
    return add_value_head(small_llama(), folder).weight.sum().item()


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """A checkpoint with an index, which lists its files, and a file of an earlier one that it does not list."""
    small_llama().save_pretrained(tmp_path, max_shard_size="1KB")
    stale = {
        "lm_head.weight": torch.ones(16, 8),
        "a.embed_tokens.weight": torch.ones(3, 8),
        "model.layers.0.mlp.stale.weight": torch.ones(8, 8),
        "value_head.weight": torch.ones(1, 8),
    }
    save_file(stale, tmp_path / "a.safetensors", {"format": "pt"})
    return tmp_path


LOOKS: dict[str, Callable[[str], Any]] = {
    "names": lambda folder: sorted(stored_tensors(Path(folder))),
    "read": lambda folder: sorted(name for name, _ in read_all(Path(folder))),
    "rows": stored_rows,
    "tied": lambda folder: require_tied(folder, True, "--hf-checkpoint"),
    "linear": stored_linear,
    "value head": value_head,
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_file_that_the_index_does_not_list_counts_for_nothing(indexed: Path, look: str) -> None:
    found = LOOKS[look](str(indexed))
    (indexed / "a.safetensors").unlink()
    assert found == LOOKS[look](str(indexed))


@pytest.mark.parametrize(
    "text", ['{"weight_map": {"a": "b', "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": {}}}']
)
def test_an_index_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=f"{INDEX} is no index of weights"):
        weight_files(tmp_path)


def test_a_folder_without_files_and_one_that_lacks_some(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no safetensors files"):
        weight_files(tmp_path)
    assert weight_files_if_any(tmp_path) == []
    save_file({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    for files in (weight_files, weight_files_if_any):
        with pytest.raises(CheckpointError, match=r"lacks model-2\.safetensors"):
            files(tmp_path)
