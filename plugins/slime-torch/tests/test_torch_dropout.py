"""Models are trained without their own dropout, wherever they keep it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from slime_core.errors import ArgumentError
from slime_core.training.batches import make_train_batch
from slime_torch.backend import TorchBackend

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},  # modules
    "gpt_bigcode": {},
    "gpt_neox": {},
    "phi": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},  # numbers of modules, and layers that are left out
    "seed_oss": {},
    "starcoder2": {},
    "granite": {},
    "qwen3": {},
    "persimmon": {},  # its configuration, in every forward pass
}


def dropouts(config: PreTrainedConfig) -> dict[str, float]:
    """Every share of dropout that a configuration can have, as 0.3."""
    return {name: 0.3 for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float | int)}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_has_the_gradients_without_dropout(
    tiny: SimpleNamespace, family: str, tmp_path: Path, checkpointing: bool
) -> None:
    dropped = dropouts(AutoConfig.for_model(family))
    assert dropped
    model = tiny.model("llama", dtype=torch.float32, **{"model_type": family, **FAMILIES[family], **dropped})
    backend: TorchBackend = tiny.backend(model, lr=0.0, gradient_checkpointing=checkpointing)
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=4)
    wanted = {name: gradient.clone() for name, gradient in backend.gradients(batch)}
    backend.train_step(batch)
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    backend.export_hf(tmp_path)
    exported = json.loads((tmp_path / "config.json").read_text())
    assert {name: exported[name] for name in dropped} == dropped


def test_adapters_keep_theirs(tiny: SimpleNamespace) -> None:
    backend: TorchBackend = tiny.backend(tiny.model("qwen3", attention_dropout=0.3), lora_rank=2, lora_dropout=0.2)
    assert {module.p for module in backend.model.modules() if isinstance(module, torch.nn.Dropout)} == {0.2}


@pytest.mark.parametrize("name", ["attention_dropout", "hidden_dropout"])
def test_options_that_ask_for_it_are_refused(tiny: SimpleNamespace, name: str) -> None:
    with pytest.raises(ArgumentError, match=f"--{name.replace('_', '-')} is 0.1: models are trained without dropout"):
        TorchBackend(tiny.args(**{name: 0.1}))
    TorchBackend(tiny.args(**{name: 0.0}))
