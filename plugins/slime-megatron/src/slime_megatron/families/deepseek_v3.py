"""DeepSeek-V3: latent attention, and experts that are chosen in groups by a sigmoid router."""

from __future__ import annotations

from collections.abc import Callable

from slime_megatron.families.glm4_moe import predicting_layers
from slime_megatron.families.shared import base, experts, latent_attention, mlp, router_bias, sigmoid_router
from slime_megatron.spec import ConfigReader, ModelSpec


def deepseek_v3(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    spec = base(c, padded)
    latent_attention(c, spec)
    mlp(spec)
    sparse = [int(n >= c["first_k_dense_replace"]) for n in range(c["num_hidden_layers"])]
    experts(c, spec, c["n_routed_experts"], sparse, c.get("n_shared_experts", 0), sigmoid_router(c))
    spec.rules.append(router_bias())
    predicting_layers(c, spec)
    return spec
