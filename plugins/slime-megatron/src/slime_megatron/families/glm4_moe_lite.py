"""GLM-4.7-Flash: latent attention, and experts behind a sigmoid router in all layers but the first ones."""

from __future__ import annotations

from collections.abc import Callable

from slime_megatron.families.glm4_moe import predicting_layers
from slime_megatron.families.shared import base, experts, latent_attention, mlp, router_bias, sigmoid_router
from slime_megatron.spec import ConfigReader, ModelSpec


def glm4_moe_lite(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    spec = base(c, padded)
    latent_attention(c, spec)
    mlp(spec)
    sparse = [int(kind == "sparse") for kind in c["mlp_layer_types"]]
    c.ignore("first_k_dense_replace")  # says the same
    experts(c, spec, c["n_routed_experts"], sparse, c.get("n_shared_experts", 0), sigmoid_router(c))
    spec.rules.append(router_bias())
    predicting_layers(c, spec)
    return spec
