"""Qwen3 with experts: a softmax router."""

from __future__ import annotations

from collections.abc import Callable

from slime_megatron.families.qwen3 import qwen3
from slime_megatron.families.shared import experts
from slime_megatron.spec import ConfigReader, ModelSpec


def qwen3_moe(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    spec = qwen3(c, padded)
    count = c.get("num_experts") or c["num_local_experts"]
    c.ignore("num_experts", "num_local_experts")  # two names of one number
    dense, step = c.get("mlp_only_layers", ()), c.get("decoder_sparse_step", 1)
    sparse = [int(n not in dense and (n + 1) % step == 0) for n in range(c["num_hidden_layers"])]
    normalised = c.get("norm_topk_prob", False)
    if normalised and c["num_experts_per_tok"] == 1:
        c.refuse(
            "num_experts_per_tok is 1 and norm_topk_prob is true: transformers weighs the one expert with 1, megatron-core cannot"
        )
    router = {
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": not normalised,
    }
    experts(c, spec, count, sparse, router=router)
    return spec
