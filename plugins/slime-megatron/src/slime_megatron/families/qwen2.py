"""Qwen2 and Qwen2.5: biases of queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable

from slime_megatron.families.shared import attention, base, mlp, rotary
from slime_megatron.spec import ConfigReader, ModelSpec


def qwen2(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    spec = base(c, padded)
    c.require("use_mrope", False, why="rotary embeddings of several axes are not mapped")
    attention(c, spec, bias=True)
    rotary(c, spec)
    mlp(spec)
    return spec
