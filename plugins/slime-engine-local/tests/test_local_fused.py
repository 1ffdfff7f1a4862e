"""A decoder with fused layers is used where it computes what its module does, which deep models in half precision show layer by layer."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from local_engine_cases import SHAPE
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors in float64 that live at once, but for those in `known`."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64 or tensor.is_meta:
                continue
            if (storage := tensor.untyped_storage())._cdata not in self._counted:
                self._counted.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return found

    def _gone(self, key: int, size: int) -> None:
        self._counted.remove(key)
        self.now -= size


@pytest.mark.parametrize("fits", [True, False], ids=["fused", "not fused after all"])
@pytest.mark.parametrize("given", [torch.float32, torch.float64], ids=["converted", "as they are"])
@pytest.mark.parametrize("biased", [False, True])
def test_the_first_weights_are_held_once_and_are_copies(
    fits: bool, given: torch.dtype, biased: bool, random_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    large = {**SHAPE, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8, "attention_bias": biased}
    small_cache = {"num_key_value_heads": 1, "head_dim": 8}
    folder, reference = random_model(LlamaForCausalLM, LlamaConfig(**large, **small_cache))
    weights = {name: weight.to(given) for name, weight in reference.state_dict().items()}
    sizes = {weight.data_ptr(): weight.numel() for weight in weights.values()}
    size = 8 * sum(sizes.values())
    if not fits:
        monkeypatch.setattr(model.LanguageModel, "_computes", lambda *given: False)
    with Live(weights.values()) as live:
        own = model.LanguageModel(str(folder), weights, torch.float64)
        gc.collect()
        made = live.now
    assert (own._decoder is not None) == fits
    assert made == pytest.approx(size, rel=0.02)
    assert live.peak <= 1.25 * size  # one of eight layers is there twice, and what it computes
    before = own._probe()
    for weight in weights.values():
        weight.zero_()
    assert own._probe().equal(before)
    kept = list(own.tensors())
    assert len({tensor.untyped_storage().data_ptr() for tensor in kept}) == len({id(tensor) for tensor in kept})
