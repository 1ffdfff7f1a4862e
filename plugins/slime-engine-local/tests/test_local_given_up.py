"""Weights that are about to be replaced are not kept, and nothing is computed without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from local_engine_cases import ask, weights_of

from slime_engine_local.errors import EngineError
from slime_engine_local.packed import packing_works

PROMPT = list(range(5, 30))
GREEDY = {"max_new_tokens": 10, "temperature": 0, "ignore_eos": True}


@pytest.mark.skipif(not packing_works(), reason="PyTorch here has no packed products")
def test_after_given_up_weights_come_new_ones_and_before_them_nothing(random_model: Any, start: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 600}
    folder, model = random_model(LlamaForCausalLM, LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    model.to(torch.float32)
    engine = start(folder, model)
    (before,) = ask(engine, [(PROMPT, GREEDY)])
    engine.give_up_weights()
    packed = list(engine._scheduler.model._decoder.packed())
    assert packed
    assert all(one._packed is None for one in packed)
    assert not engine._scheduler.model._module.get_input_embeddings().weight.untyped_storage().nbytes()
    with pytest.raises(EngineError, match="has given its weights up"):
        ask(engine, [(PROMPT, GREEDY)])
    engine.update_weights(weights_of(model), 2)
    (after,) = ask(engine, [(PROMPT, GREEDY)])
    assert (after.tokens, after.log_probs) == (before.tokens, before.log_probs)
