"""A family of somebody's own that turns queries and keys with another base than its checkpoint says."""

from __future__ import annotations

from typing import Any


def wrong_rope_base(config: Any, padded_vocabulary: Any) -> Any:
    """Qwen3 with ten times the base."""
    from slime_megatron.families import FAMILIES

    spec = FAMILIES["qwen3"](config, padded_vocabulary)
    spec.model["rotary_base"] = spec.model["rotary_base"] * 10
    return spec
