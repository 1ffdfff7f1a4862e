"""What differs between the versions of megatron-core that this package works with: 0.16 for Python 3.11, 0.19 for later ones.
`slime_megatron.model` calls this; no other file asks for a version.
"""

from __future__ import annotations

from typing import Any

import megatron.core.transformer.multi_latent_attention as latent


def leave_values_as_they_are() -> None:
    """Let latent attention give the values of packed sequences to the core attention in their own size.

    0.19 makes them as wide as the queries, for kernels that want that: values that are narrower get zeros, which
    costs time, and values that are wider are cut off, which is wrong.
    """
    if hasattr(latent, "_prepare_mla_core_attention_value"):
        latent._prepare_mla_core_attention_value = _as_they_are


def _as_they_are(attention: Any, query: Any, value: Any, packed: Any) -> tuple[Any, bool, int | None, int | None]:
    size = None if value is None else value.shape[-1]
    return value, False, size, size
