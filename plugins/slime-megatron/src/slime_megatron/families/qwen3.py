"""Qwen3: norms of queries and keys."""

from __future__ import annotations

from collections.abc import Callable

from slime_megatron.families.shared import attention, base, mlp, rotary
from slime_megatron.spec import ConfigReader, ModelSpec


def qwen3(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    spec = base(c, padded)
    c.require("attention_bias", False, why="megatron-core cannot give the output projection a bias alone")
    attention(c, spec, qk_norm=True)
    rotary(c, spec)
    mlp(spec)
    return spec
