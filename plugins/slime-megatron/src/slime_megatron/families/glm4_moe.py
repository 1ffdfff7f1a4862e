"""GLM-4.5: experts behind a sigmoid router, partial rotary embeddings, optional norms of queries and keys."""

from __future__ import annotations

from collections.abc import Callable

from slime_megatron.families.shared import attention, base, experts, mlp, rotary, router_bias, sigmoid_router
from slime_megatron.spec import ConfigReader, ModelSpec


def glm4_moe(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    spec = base(c, padded)
    attention(c, spec, bias=bool(c.get("attention_bias", False)), qk_norm=bool(c.get("use_qk_norm", False)))
    rotary(c, spec)
    mlp(spec)
    layers, dense = c["num_hidden_layers"], c.get("first_k_dense_replace", 0)
    sparse = [int(n >= dense) for n in range(layers)]
    experts(c, spec, c["n_routed_experts"], sparse, c.get("n_shared_experts", 0), sigmoid_router(c))
    spec.rules.append(router_bias())
    predicting_layers(c, spec)
    return spec


def predicting_layers(c: ConfigReader, spec: ModelSpec) -> None:
    """Layers for predicting further tokens stand behind the others in the file. transformers leaves them out, training does not
    use them, and an export copies them."""
    layers, count = c["num_hidden_layers"], c.get("num_nextn_predict_layers", 0)
    spec.extra_file_prefixes = tuple(f"model.layers.{layers + n}." for n in range(count or 0))
    if count:
        spec.remarks.append(
            f"{count} layer(s) for multi-token prediction are not trained; an export copies them unchanged"
        )
