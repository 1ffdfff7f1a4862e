"""Gemma-2: zero-centred norms around attention and MLP, soft caps, windows in every other layer, scaled embeddings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F

from slime_megatron.families.shared import FILE, LAYER, attention, base, mlp, rotary
from slime_megatron.names import Rule
from slime_megatron.spec import ConfigReader, ModelSpec


def gemma2(c: ConfigReader, padded: Callable[[int], int]) -> ModelSpec:
    """See `slime_megatron.spec.Family`."""
    gelu = "gelu_pytorch_tanh"
    c.require("hidden_activation", gelu, why="only the tanh approximation of GELU is mapped")
    c.require("attention_bias", False, why="biases of attention are not mapped")
    c.require("use_bidirectional_attention", False, why="attention to later tokens is not mapped")
    spec = base(c, padded, gelu, windows=True)  # an older key says the same
    attention(c, spec)
    rotary(c, spec)
    mlp(spec)
    spec.config |= {
        "activation_func": partial(F.gelu, approximate="tanh"),
        "softmax_scale": c["query_pre_attn_scalar"] ** -0.5,
    }
    spec.norm, spec.post_norms = "zero_centred_rms", True
    spec.embedding_scale = c["hidden_size"] ** 0.5
    spec.attention_soft_cap, spec.final_soft_cap = c.get("attn_logit_softcapping"), c.get("final_logit_softcapping")
    window = c.get("sliding_window")
    spec.windows = [window if kind == "sliding_attention" else None for kind in c["layer_types"]]
    spec.rules = [rule for rule in spec.rules if rule.megatron != LAYER + "pre_mlp_layernorm.weight"]
    spec.rules += [
        Rule(LAYER + "pre_mlp_layernorm.weight", (FILE + "pre_feedforward_layernorm.weight",)),
        Rule(LAYER + "self_attn_bda.norm.weight", (FILE + "post_attention_layernorm.weight",)),
        Rule(LAYER + "mlp_bda.norm.weight", (FILE + "post_feedforward_layernorm.weight",)),
    ]
    return spec
