"""A Llama of one layer, as small as it can be, for tests of the files that it is written to."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, LlamaConfig


def small_llama(tied: bool = True) -> Any:
    """Return it, with 16 embeddings of 8 numbers; the head is the embedding where it is tied."""
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # transformers leaves it so
    return model
