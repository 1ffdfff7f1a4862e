"""Adapters on disk name the weights that they lie on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slime_core.tensors.adapter_files import write_adapter

LORA = {"lora_rank": 2, "lora_alpha": 4.0, "lora_dropout": 0.0}


@pytest.mark.parametrize(
    ("ref_load", "file", "base", "told"),
    [
        (None, None, "hf", False),
        ("sft", "config.json", "sft", False),
        ("megatron", ".metadata", "megatron", True),
    ],
)
def test_the_base_is_the_folder_of_the_weights_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref_load: str | None, file: str | None, base: str, told: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if ref_load and file:
        Path(ref_load).mkdir()
        Path(ref_load, file).touch()
    args: Any = SimpleNamespace(hf_checkpoint="hf", ref_load=ref_load, **LORA)
    adapter = {f"model.q_proj.lora_{letter}.weight": torch.ones(2, 2) for letter in "AB"}
    write_adapter(tmp_path / "adapter", adapter, args, experts=False)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    readme = tmp_path / "adapter" / "README.md"
    assert readme.exists() == told
    if told:
        assert "in megatron, which peft cannot read. Convert it: slime convert torch-dist-to-hf" in readme.read_text()
