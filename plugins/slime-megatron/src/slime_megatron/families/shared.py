"""What families have in common: dimensions, rotary embeddings, names of attention, MLP and experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from slime_megatron.names import Attention, GateUp, Heads, Replicated, Rule, Split, Vocabulary
from slime_megatron.spec import ConfigReader, ModelSpec

_LATENT_EPSILON = 1e-6
"""What transformers adds in the norms of latents."""
LAYER, FILE = "decoder.layers.{layer}.", "model.layers.{layer}."


def base(c: ConfigReader, padded: Callable[[int], int], activation: str = "silu", windows: bool = False) -> ModelSpec:
    """A model of pre-norm layers with a gated MLP: fields, embedding and output names that all families share.

    Args:
        activation: the only one that the family may have.
        windows: layers may look back at a window of tokens alone, which the family sets.
    """
    if not windows:
        _no_windows(c)
    c.require("hidden_act", activation, why=f"only {activation} is mapped")
    if c.get("quantization_config") is not None:
        c.refuse(
            "its weights are quantised (quantization_config), and their scales would be lost. Give a checkpoint in bfloat16 "
            "or float32 (slime convert fp8-to-hf restores one in FP8)"
        )
    c.require("attention_dropout", 0, 0.0, why="dropout of attention scores is not mapped")
    c.require("pretraining_tp", 1, why="weights that were sliced for pretraining are not mapped")
    vocabulary, tied = c["vocab_size"], bool(c.get("tie_word_embeddings", False))
    rows = Vocabulary(0, vocabulary, padded(vocabulary))
    rules = [
        Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), rows),
        Rule("decoder.final_layernorm.weight", ("model.norm.weight",)),
        Rule(LAYER + "input_layernorm.weight", (FILE + "input_layernorm.weight",)),
        Rule(LAYER + "pre_mlp_layernorm.weight", (FILE + "post_attention_layernorm.weight",)),
    ]
    if not tied:
        rules.append(Rule("output_layer.weight", ("lm_head.weight",), rows))
    return ModelSpec(
        config={
            "num_layers": c["num_hidden_layers"],
            "hidden_size": c["hidden_size"],
            "num_attention_heads": c["num_attention_heads"],
            "ffn_hidden_size": c["intermediate_size"],
            "layernorm_epsilon": c["rms_norm_eps"],
            "normalization": "RMSNorm",
            "gated_linear_unit": True,
            "activation_func": F.silu,
            "add_bias_linear": False,
            "add_qkv_bias": False,
            "qk_layernorm": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        model={
            "vocab_size": padded(vocabulary),
            "max_sequence_length": c["max_position_embeddings"],
            "share_embeddings_and_output_weights": tied,
        },
        rules=rules,
    )


def attention(c: ConfigReader, spec: ModelSpec, bias: bool = False, qk_norm: bool = False) -> None:
    """Grouped-query attention, with biases of queries, keys and values and norms of queries and keys if the family has them."""
    heads, groups = c["num_attention_heads"], c.get("num_key_value_heads", c["num_attention_heads"])
    head_dim = c.get("head_dim", c["hidden_size"] // heads)
    spec.config |= {
        "num_query_groups": groups,
        "kv_channels": head_dim,
        "add_qkv_bias": bias,
        "qk_layernorm": qk_norm,
    }
    together = Attention(0, heads, groups, head_dim)
    for kind in ("weight", *(["bias"] if bias else [])):
        names = tuple(f"{FILE}self_attn.{x}_proj.{kind}" for x in "qkv")
        spec.rules.append(Rule(f"{LAYER}self_attention.linear_qkv.{kind}", names, together))
    output = Heads(1, groups)
    spec.rules.append(Rule(LAYER + "self_attention.linear_proj.weight", (FILE + "self_attn.o_proj.weight",), output))
    if qk_norm:
        for x in "qk":
            spec.rules.append(
                Rule(f"{LAYER}self_attention.{x}_layernorm.weight", (f"{FILE}self_attn.{x}_norm.weight",))
            )


def _no_windows(c: ConfigReader) -> None:
    """Refuse layers that look back at a window of tokens alone."""
    c.ignore("max_window_layers")
    c.require("use_sliding_window", False, why="sliding windows are not mapped for this family")
    if c.get("use_sliding_window") is None and c.get("sliding_window") is not None:
        c.refuse(f"sliding_window is {c.get('sliding_window')}; sliding windows are not mapped for this family")
    c.ignore("sliding_window")
    kinds = set(c.get("layer_types", ())) - {"full_attention"}
    if kinds:
        c.refuse(f"its layers have the types {', '.join(sorted(kinds))}; only full_attention is mapped")


def rotary(c: ConfigReader, spec: ModelSpec) -> None:
    """Rotary embeddings: plain, partial, linear, Llama 3's or YaRN."""
    given = dict(c["rope_parameters"])
    kind = given.pop("rope_type", "default")
    given.pop("type", None)  # an older name of the same
    spec.model |= {
        "position_embedding_type": "rope",
        "rotary_base": given.pop("rope_theta"),
        "rotary_percent": given.pop("partial_rotary_factor", 1.0),
    }
    if kind == "llama3":
        fixed = [given.pop(key) for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")]
        if fixed != [1, 4, 8192]:
            c.refuse(
                "its llama3 rope has low_freq_factor, high_freq_factor and original_max_position_embeddings "
                f"{fixed}, which megatron-core fixes at 1, 4 and 8192"
            )
        spec.model |= {"rope_scaling": True, "rope_scaling_factor": given.pop("factor")}
    elif kind == "linear":
        spec.model["seq_len_interpolation_factor"] = given.pop("factor")
    elif kind == "yarn":
        spec.model["position_embedding_type"] = "yarn"
        spec.attributes |= {f"yarn_{key}": value for key, value in yarn(c, given).items()}
        spec.attributes["yarn_correction_range_round_to_int"] = True
    elif kind != "default":
        c.refuse(f"its rotary embedding is of the type {kind!r}; default, linear, llama3 and yarn are mapped")
    if left := sorted(key for key, value in given.items() if value is not None):
        c.refuse(f"its rope_parameters have {', '.join(left)}, which are not mapped for the type {kind!r}")


def yarn(c: ConfigReader, given: dict[str, Any]) -> dict[str, Any]:
    """YaRN's settings under megatron-core's names, taken out of `given`."""
    if given.pop("attention_factor", None) is not None or not given.pop("truncate", True):
        c.refuse("its YaRN rope has attention_factor or truncate, which megatron-core does not know")
    return {
        "rotary_scaling_factor": given.pop("factor"),
        "original_max_position_embeddings": given.pop("original_max_position_embeddings", c["max_position_embeddings"]),
        "beta_fast": given.pop("beta_fast", None) or 32.0,
        "beta_slow": given.pop("beta_slow", None) or 1.0,
        "mscale": given.pop("mscale", None),
        "mscale_all_dim": given.pop("mscale_all_dim", None),
    }


def mlp(spec: ModelSpec, fused: bool = False) -> None:
    """The names of a dense gated MLP."""
    names = ("gate_up_proj",) if fused else ("gate_proj", "up_proj")
    spec.rules += [
        Rule(LAYER + "mlp.linear_fc1.weight", tuple(f"{FILE}mlp.{n}.weight" for n in names), GateUp(0, fused)),
        Rule(LAYER + "mlp.linear_fc2.weight", (FILE + "mlp.down_proj.weight",), Split(1)),
    ]


def experts(
    c: ConfigReader,
    spec: ModelSpec,
    count: int,
    sparse: list[int],
    shared: int = 0,
    router: dict[str, Any] | None = None,
) -> None:
    """A mixture of experts in some layers.

    Args:
        count: experts of a layer.
        sparse: per layer 1 where it has experts.
        shared: experts that every token goes through.
        router: further fields of the router.
    """
    c.ignore("output_router_logits", "router_aux_loss_coef")
    spec.remarks.append("the auxiliary load-balancing loss of the experts is off")
    spec.config |= {
        "num_moe_experts": count,
        "moe_router_topk": c["num_experts_per_tok"],
        "moe_ffn_hidden_size": c["moe_intermediate_size"],
        "moe_layer_freq": sparse,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_router_dtype": "fp32",
        "moe_router_bias_update_rate": 0.0,
        "moe_grouped_gemm": False,
        **(router or {}),
    }
    expert = "mlp.experts.local_experts.{expert}."
    names = tuple(f"{FILE}mlp.experts.{{expert}}.{n}_proj.weight" for n in ("gate", "up", "down"))
    spec.rules += [
        Rule(LAYER + "mlp.router.weight", (FILE + "mlp.gate.weight",)),
        Rule(LAYER + expert + "linear_fc1.weight", names[:2], GateUp()),
        Rule(LAYER + expert + "linear_fc2.weight", names[2:], Split(1)),
    ]
    if shared:
        spec.config["moe_shared_expert_intermediate_size"] = c["moe_intermediate_size"] * shared
        for mine, theirs, layout in [
            ("linear_fc1", ("gate_proj", "up_proj"), GateUp()),
            ("linear_fc2", ("down_proj",), Split(1)),
        ]:
            files = tuple(f"{FILE}mlp.shared_experts.{name}.weight" for name in theirs)
            spec.rules.append(Rule(f"{LAYER}mlp.shared_experts.{mine}.weight", files, layout))


def sigmoid_router(c: ConfigReader) -> dict[str, Any]:
    """The router of DeepSeek-V3 and GLM: sigmoid scores, a bias that chooses and does not weigh, groups of experts."""
    topk, groups, kept = c["num_experts_per_tok"], c.get("n_group", 1), c.get("topk_group", 1)
    c.require("topk_method", "noaux_tc", why="only experts that are chosen by their scores and a bias are mapped")
    c.require("scoring_func", "sigmoid", why="only sigmoid scores are mapped for this family")
    c.require("moe_layer_freq", 1, why="layers with experts are mapped by first_k_dense_replace alone")
    c.ignore("ep_size", "seq_aux", "aux_loss_alpha")  # of the training of the checkpoint
    if not c.get("norm_topk_prob", True):
        c.refuse("norm_topk_prob is false, and megatron-core always normalises sigmoid scores of several experts")
    if topk == 1:
        c.refuse("num_experts_per_tok is 1: transformers weighs the one expert with 1, megatron-core with its score")
    found = {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_topk_scaling_factor": c["routed_scaling_factor"],
    }
    if groups > 1:
        if topk // kept != 2:
            c.refuse(
                f"experts are chosen in groups (n_group {groups}, topk_group {kept}, num_experts_per_tok {topk}): "
                f"transformers ranks groups by their best 2 experts, megatron-core by their best {topk // kept}"
            )
        found |= {"moe_router_num_groups": groups, "moe_router_group_topk": kept}
    return found


def router_bias() -> Rule:
    """The name of the bias that chooses experts, which is a buffer."""
    return Rule(LAYER + "mlp.router.expert_bias", (FILE + "mlp.gate.e_score_correction_bias",), Replicated())


def latent_attention(c: ConfigReader, spec: ModelSpec) -> None:
    """Multi-head latent attention."""
    if not c.get("rope_interleave", True):
        c.refuse("rope_interleave is false, and megatron-core's latent attention always pairs neighbouring dimensions")
    c.require("attention_bias", False, why="latent projections with biases are not mapped")
    c.ignore("head_dim", "qk_head_dim", "num_key_value_heads")  # other names of what is read below
    given = dict(c["rope_parameters"])
    kind = given.pop("rope_type", "default")
    given.pop("type", None)  # an older name of the same
    spec.latent = True
    spec.config |= {
        "multi_latent_attention": True,
        "q_lora_rank": c.get("q_lora_rank"),
        "kv_lora_rank": c["kv_lora_rank"],
        "qk_head_dim": c["qk_nope_head_dim"],
        "qk_pos_emb_head_dim": c["qk_rope_head_dim"],
        "v_head_dim": c["v_head_dim"],
        "kv_channels": c["v_head_dim"],
        "qk_layernorm": True,
        "rotary_base": given.pop("rope_theta"),
        "rotary_percent": 1.0,
        # Always set: megatron-core's own default is YaRN with a factor of 40.
        "rope_type": "rope",
        "rotary_scaling_factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
    }
    spec.model |= {"position_embedding_type": "rope", "rotary_base": spec.config["rotary_base"], "rotary_percent": 1.0}
    given.pop("partial_rotary_factor", None)
    if kind == "yarn":
        found = yarn(c, given)
        spec.config |= {
            "rope_type": "yarn",
            **found,
            "mscale": found["mscale"] or 1.0,
            "mscale_all_dim": found["mscale_all_dim"] or 0.0,
        }
    elif kind != "default":
        c.refuse(f"its rotary embedding is of the type {kind!r}; default and yarn are mapped for latent attention")
    if left := sorted(key for key, value in given.items() if value is not None):
        c.refuse(f"its rope_parameters have {', '.join(left)}, which are not mapped for latent attention")
    if (epsilon := c["rms_norm_eps"]) != _LATENT_EPSILON:
        spec.remarks.append(
            f"the norms of latents add rms_norm_eps {epsilon:g}, as SGLang does; transformers, and with it --rollout-engine local, "
            f"adds {_LATENT_EPSILON:g} whatever the configuration says: log-probs of trainer and engine differ by about "
            f"{2 * epsilon:.0e}"
        )
    own, theirs = LAYER + "self_attention.", FILE + "self_attn."
    rows, columns = Heads(0, c["num_attention_heads"]), Heads(1, c["num_attention_heads"])
    pairs = [
        ("linear_kv_down_proj.weight", "kv_a_proj_with_mqa.weight", Split(0)),
        ("linear_kv_up_proj.weight", "kv_b_proj.weight", rows),
        ("kv_layernorm.weight", "kv_a_layernorm.weight", Replicated()),
        ("linear_proj.weight", "o_proj.weight", columns),
    ]
    if c.get("q_lora_rank"):
        pairs += [
            ("linear_q_down_proj.weight", "q_a_proj.weight", Split(0)),
            ("linear_q_up_proj.weight", "q_b_proj.weight", rows),
            ("q_layernorm.weight", "q_a_layernorm.weight", Replicated()),
        ]
    else:
        pairs.append(("linear_q_proj.weight", "q_proj.weight", rows))
    spec.rules += [Rule(own + mine, (theirs + file,), layout) for mine, file, layout in pairs]
