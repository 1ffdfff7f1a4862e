"""GLM-4 (0414): partial interleaved rotary embeddings, norms behind attention and MLP, gate and up projection as one tensor."""

from __future__ import annotations

from collections.abc import Callable

from slime_megatron.families.shared import FILE, LAYER, attention, base, mlp, rotary
from slime_megatron.names import Rule
from slime_megatron.spec import ConfigReader, ModelSpec


def glm4(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    spec = base(c, padded)
    attention(c, spec, bias=bool(c.get("attention_bias", False)))  # of queries, keys and values alone
    rotary(c, spec)
    mlp(spec, fused=True)
    spec.config["rotary_interleaved"] = True
    spec.post_norms = True
    spec.rules += [
        Rule(LAYER + "self_attn_bda.norm.weight", (FILE + "post_self_attn_layernorm.weight",)),
        Rule(LAYER + "mlp_bda.norm.weight", (FILE + "post_mlp_layernorm.weight",)),
    ]
    return spec
