"""Qwen2 and Qwen2.5: biases of queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable

from slime_megatron.families.shared import attention, base, mlp, no_windows, rotary
from slime_megatron.spec import ConfigReader, ModelSpec


def qwen2(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    spec = base(c, padded)
    attention(c, spec, bias=True)
    rotary(c, spec)
    no_windows(c)
    mlp(spec)
    return spec
