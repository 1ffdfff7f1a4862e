"""What differs between the versions of megatron-core that this package works with: 0.16 for Python 3.11, 0.19 for later ones.
`slime_megatron.model` calls this; no other file asks for a version.
"""

from __future__ import annotations

from typing import Any

import megatron.core.tensor_parallel.random as recomputation
import megatron.core.transformer.multi_latent_attention as latent
import torch
from torch import Tensor


def leave_values_as_they_are() -> None:
    """Let latent attention give the values of packed sequences to the core attention in their own size.

    0.19 makes them as wide as the queries, for kernels that want that: values that are narrower get zeros, which
    costs time, and values that are wider are cut off, which is wrong.
    """
    if hasattr(latent, "_prepare_mla_core_attention_value"):
        latent._prepare_mla_core_attention_value = _as_they_are


def take_latent_layers_as_given() -> None:
    """Let latent attention be built of the layers that it is given.

    0.19 asks for Transformer Engine's projection with a norm of its own where queries have no latents and thus no norm.
    """
    if hasattr(latent.MLASelfAttention, "_resolve_qk_norm_config"):
        latent.MLASelfAttention._resolve_qk_norm_config = lambda attention, given: vars(given)


def compile_nothing_on_cpus() -> None:
    """Let what is computed again for `--recompute-modules` be copied to where the first result was, where there is no GPU.

    0.19 has the two share memory, by a piece of C++ that each rank compiles in its first step, with a compiler that may be missing.
    """
    if hasattr(recomputation, "_get_share_storage") and not torch.cuda.is_available():
        recomputation._get_share_storage = lambda: _copy


def _copy(emptied: Tensor, computed: Tensor) -> None:
    whole = computed.untyped_storage()
    emptied.untyped_storage().resize_(whole.size())
    emptied.untyped_storage().copy_(whole)


def _as_they_are(attention: Any, query: Any, value: Any, packed: Any) -> tuple[Any, bool, int | None, int | None]:
    size = None if value is None else value.shape[-1]
    return value, False, size, size
