"""Llama 2 and 3, and models of its shape such as SmolLM2 and Mistral without windows."""

from __future__ import annotations

from collections.abc import Callable

from slime_megatron.families.shared import attention, base, mlp, rotary
from slime_megatron.spec import ConfigReader, ModelSpec


def llama(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    spec = base(c, padded)
    c.require("attention_bias", False, why="megatron-core cannot give the output projection a bias alone")
    c.require("mlp_bias", False, why="biases of the MLP are not mapped")
    c.require(
        "rope_interleaved", False, why="rotary embeddings of neighbouring dimensions are not mapped for this family"
    )
    c.ignore("is_llama_config")
    attention(c, spec)
    rotary(c, spec)
    mlp(spec)
    return spec
