"""A decoder with fused layers is used where it computes what its module does, which deep models in half precision show layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
from local_engine_cases import SHAPE

from slime_engine_local import model
from slime_engine_local.layer_operations import PlainOperations


def test_layers_in_half_precision_are_compared_one_by_one(
    random_model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr(model, "_may_fuse", lambda dtype, device: True)  # as on a GPU
    folder, reference = random_model(LlamaForCausalLM, LlamaConfig(**{**SHAPE, "num_hidden_layers": 12}))
    weights = {name: weight.bfloat16() for name, weight in reference.state_dict().items()}
    assert model.LanguageModel(str(folder), weights)._decoder is not None
    assert not caplog.records
    plain = PlainOperations.gated
    monkeypatch.setattr(PlainOperations, "gated", lambda self, x, activation: 1.1 * plain(self, x, activation))
    assert model.LanguageModel(str(folder), weights)._decoder is None
    assert "its layers compute something else" in caplog.text
