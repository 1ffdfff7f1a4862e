"""The options that describe a model, as launch scripts for Megatron give them, and their comparison with the checkpoint.

The model follows from the checkpoint's configuration alone. An option here can only agree with it: one that contradicts it is
an error that names both values.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from slime_core.contracts.options import ArgumentGroup, option
from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from slime_megatron.arguments import MegatronArguments
    from slime_megatron.spec import ModelSpec


def _same(what: str, **declared: Any) -> Any:
    """An option that is compared with the checkpoint, and left out says nothing."""
    return option(None, what, affects_result=False, **declared)


class MegatronModelArguments(ArgumentGroup):
    """Megatron backend: the model, compared with the checkpoint"""

    spec: list[str] | None = _same("Module and function of slime's layers for a family; the family must be the same.")
    num_layers: int | None = _same("Number of layers of the model.")
    hidden_size: int | None = _same("Size of hidden states.")
    ffn_hidden_size: int | None = _same("Inner size of a dense MLP.")
    num_attention_heads: int | None = _same("Number of heads of queries.")
    group_query_attention: bool | None = _same("Several heads of queries share keys and values.")
    num_query_groups: int | None = _same("Number of heads of keys and values.")
    kv_channels: int | None = _same("Size of a head of attention.")
    vocab_size: int | None = _same("Rows of the embedding in the checkpoint.")
    max_position_embeddings: int | None = _same("Longest sequence. Has no effect: rotary embeddings have no end.")
    seq_length: int | None = _same("Length of sequences. Has no effect: packed rows are as long as their samples.")
    swiglu: bool | None = _same("A gated MLP with SiLU.")
    disable_bias_linear: bool | None = _same("Linear layers have no biases.")
    add_qkv_bias: bool | None = _same("Queries, keys and values have biases.")
    qk_layernorm: bool | None = _same("Queries and keys, or the latents of latent attention, have norms.")
    normalization: str | None = _same("The kind of norms, such as RMSNorm.")
    norm_epsilon: float | None = _same("Added under the root of norms.")
    post_self_attn_layernorm: bool | None = _same("Attention is followed by a norm of its own.")
    post_mlp_layernorm: bool | None = _same("The MLP is followed by a norm of its own.")
    untie_embeddings_and_output_weights: bool | None = _same("The output layer has weights of its own.")
    position_embedding: bool | None = _same("Learned position embeddings, which no family has.")
    position_embedding_type: str | None = _same("How positions are embedded, such as rope or yarn.")
    use_rotary_position_embeddings: bool | None = _same("Positions are embedded by rotation.")
    rotary_base: float | None = _same("Base of the rotary frequencies.")
    rotary_percent: float | None = _same("Share of a head that is rotated.")
    rotary_interleaved: bool | None = _same("Neighbouring dimensions are rotated together.")
    rotary_seq_len_interpolation_factor: float | None = _same("Factor of a linear rope scaling.")
    use_rope_scaling: bool | None = _same("Llama 3's rope scaling.")
    rope_scaling_factor: float | None = _same("Factor of Llama 3's rope scaling.")
    rotary_scaling_factor: float | None = _same("Factor of the rope scaling, of whatever kind.")
    mscale: float | None = _same("YaRN's factor of attention scores.")
    mscale_all_dim: float | None = _same("YaRN's factor of attention scores over all dimensions.")
    multi_latent_attention: bool | None = _same("Keys and values come from latents.")
    q_lora_rank: int | None = _same("Size of the latent of queries.")
    kv_lora_rank: int | None = _same("Size of the latent of keys and values.")
    qk_head_dim: int | None = _same("Size of the part of a head that is not rotated.")
    qk_pos_emb_head_dim: int | None = _same("Size of the part of a head that is rotated.")
    v_head_dim: int | None = _same("Size of a head of values.")
    num_experts: int | None = _same("Number of experts of a layer.")
    moe_layer_freq: str | None = _same(
        "Which layers have experts: every so many, or a list in Python's notation with 1 for each that has, such as "
        "[0]*1+[1]*46."
    )
    moe_ffn_hidden_size: int | None = _same("Inner size of an expert.")
    moe_shared_expert_intermediate_size: int | None = _same("Inner size of all shared experts together.")
    moe_router_topk: int | None = _same("Number of experts that a token goes to.")
    moe_router_score_function: str | None = _same("How experts are scored: softmax or sigmoid.")
    moe_router_pre_softmax: bool | None = _same("The softmax is taken before experts are chosen.")
    moe_router_num_groups: int | None = _same("Groups that experts are chosen in.")
    moe_router_group_topk: int | None = _same("Groups that are kept for a token.")
    moe_router_topk_scaling_factor: float | None = _same("Factor of the weights of chosen experts.")
    moe_router_enable_expert_bias: bool | None = _same("A bias takes part in choosing experts.")
    moe_router_dtype: str | None = _same("The type that the router computes in: fp32.")
    moe_router_bias_update_rate: float | None = _same("Only 0: the bias of experts stays as it is.", ge=0)
    moe_router_load_balancing_type: str | None = _same("Kind of the auxiliary loss.", when="moe_aux_loss_coeff")
    moe_aux_loss_coeff: float | None = _same("Only 0: there is no auxiliary loss.", ge=0)
    moe_expert_capacity_factor: float | None = _same("Refused: no token is dropped.")
    moe_token_drop_policy: Literal["probs", "position"] | None = _same(
        "Which tokens an expert drops.", when="moe_expert_capacity_factor"
    )
    mtp_num_layers: int | None = _same("Layers for multi-token prediction, which are not trained.")
    enable_mtp_training: bool | None = _same("Refused: layers for multi-token prediction are not trained.")
    mtp_loss_scaling_factor: float | None = _same("Weight of their loss.", when="enable_mtp_training")

    @field_validator("moe_layer_freq", mode="before")
    @classmethod
    def _of_a_recipe(cls, value: object) -> object:
        """What a recipe gives as a number or list, as the text that a command line gives."""
        return str(value) if isinstance(value, (int, list)) else value


def compare(args: MegatronArguments, spec: ModelSpec, where: str = "the checkpoint", model_type: str = "") -> None:
    """Compare every option that describes the model with what the family made of the checkpoint's configuration, and add to
    `spec.remarks` what has no effect.

    Args:
        where: the checkpoint, for messages.
        model_type: its `model_type`, for `--spec`.

    Raises:
        ArgumentError: an option contradicts the checkpoint, or asks for what the backend does not do; one line for each.
    """
    from slime_megatron.refusals import refused

    idle = _without_effect(args, spec)
    spec.remarks += [f"{_flag(name)} has no effect: {why}." for name, why in idle.items()]
    found = [*refused(args), *_foreign_layers(args.spec, where, model_type), *_recomputed(args, spec)]
    if args.use_routing_replay and not spec.config.get("num_moe_experts"):
        found.append(
            f"--use-routing-replay repeats the choice of experts, and the model of {where} has none. Leave the option out."
        )
    for name in MegatronModelArguments.model_fields:
        given = getattr(args, name)
        if given is None or name in idle or name in _NOT_COMPARED:
            continue
        known = _CHECKPOINT.get(name, _of_config(name))(spec)
        if name == "moe_layer_freq":
            given = _pattern(given, spec.config["num_layers"])
        if given != known:
            found.append(
                f"{_flag(name)} is {_shown(given)}, but {where} says {_shown(known)}. The model follows from the checkpoint: "
                "correct the option or leave it out, or choose the checkpoint that was meant."
            )
    if found:
        raise ArgumentError("\n".join(found))


def _of_config(name: str, otherwise: Any = None) -> Callable[[ModelSpec], Any]:
    """Reads a field of megatron-core's configuration."""
    return lambda spec: spec.config.get(name, otherwise)


def _of_model(name: str, otherwise: Any = None) -> Callable[[ModelSpec], Any]:
    """Reads an argument of megatron-core's model."""
    return lambda spec: spec.model.get(name, otherwise)


def _vocabulary(spec: ModelSpec) -> int | None:
    """Rows of the embedding in the file; the model has more, see `--make-vocab-size-divisible-by`."""
    from slime_megatron.names import Vocabulary

    return next((rule.layout.size for rule in spec.rules if isinstance(rule.layout, Vocabulary)), None)


def _gated_silu(spec: ModelSpec) -> bool:
    import torch.nn.functional as F

    return bool(spec.config.get("gated_linear_unit")) and spec.config.get("activation_func") is F.silu


def _shares_keys(spec: ModelSpec) -> bool:
    return spec.config.get("num_query_groups") not in (None, spec.config["num_attention_heads"])


def _rope_factor(spec: ModelSpec) -> Any:
    """The factor of the rope scaling, wherever megatron-core wants to have it; 1 without one."""
    named = (spec.config, "rotary_scaling_factor"), (spec.attributes, "yarn_rotary_scaling_factor")
    places = (*named, (spec.model, "rope_scaling_factor"), (spec.model, "seq_len_interpolation_factor"))
    return next((values[key] for values, key in places if key in values), 1.0)


def _yarn(name: str) -> Callable[[ModelSpec], Any]:
    return lambda spec: (spec.config if spec.latent else spec.attributes).get(name if spec.latent else f"yarn_{name}")


_CHECKPOINT: Mapping[str, Callable[[ModelSpec], Any]] = {
    "group_query_attention": _shares_keys,
    "vocab_size": _vocabulary,
    "swiglu": _gated_silu,
    "disable_bias_linear": lambda spec: not spec.config.get("add_bias_linear"),
    "norm_epsilon": _of_config("layernorm_epsilon"),
    "post_self_attn_layernorm": lambda spec: spec.post_norms,
    "post_mlp_layernorm": lambda spec: spec.post_norms,
    "untie_embeddings_and_output_weights": lambda spec: not spec.model.get("share_embeddings_and_output_weights"),
    "position_embedding": lambda spec: spec.model.get("position_embedding_type") == "learned_absolute",
    "position_embedding_type": _of_model("position_embedding_type"),
    "use_rotary_position_embeddings": lambda spec: spec.model.get("position_embedding_type") in ("rope", "yarn"),
    "rotary_base": _of_model("rotary_base"),
    "rotary_percent": _of_model("rotary_percent", 1.0),
    "rotary_interleaved": _of_config("rotary_interleaved", False),
    "rotary_seq_len_interpolation_factor": _of_model("seq_len_interpolation_factor"),
    "use_rope_scaling": _of_model("rope_scaling", False),
    "rope_scaling_factor": _of_model("rope_scaling_factor"),
    "rotary_scaling_factor": _rope_factor,
    "mscale": _yarn("mscale"),
    "mscale_all_dim": _yarn("mscale_all_dim"),
    "multi_latent_attention": lambda spec: spec.latent,
    "num_experts": _of_config("num_moe_experts"),
    "moe_router_pre_softmax": _of_config("moe_router_pre_softmax", False),
    "moe_router_num_groups": _of_config("moe_router_num_groups", 1),
    "moe_router_group_topk": _of_config("moe_router_group_topk", 1),
    "moe_router_enable_expert_bias": _of_config("moe_router_enable_expert_bias", False),
    "mtp_num_layers": lambda spec: len(spec.extra_file_prefixes),
}
"""What the checkpoint says, by option. An option that is not here has the name of the field of megatron-core's configuration."""

_NOT_COMPARED = {
    *("spec", "max_position_embeddings", "seq_length"),
    *("moe_router_bias_update_rate", "moe_router_load_balancing_type", "moe_aux_loss_coeff"),
    *("moe_expert_capacity_factor", "moe_token_drop_policy"),
    *("enable_mtp_training", "mtp_loss_scaling_factor"),
}
"""Options of the group that are refused, or have no effect, whatever the checkpoint says."""


def _without_effect(args: MegatronArguments, spec: ModelSpec) -> dict[str, str]:
    """{option that was given: why it means nothing for this model}. They are not compared."""
    why = {
        "max_position_embeddings": "rotary embeddings know no longest sequence",
        "seq_length": "packed rows are as long as their samples",
    }
    config = spec.config
    if spec.latent:
        why |= dict.fromkeys(("group_query_attention", "num_query_groups"), "latent attention has no groups")
        why["add_qkv_bias"] = "latent attention has no such biases"
        if args.kv_channels in (config["qk_head_dim"], config["v_head_dim"]):
            why["kv_channels"] = "the heads of latent attention have sizes of their own"
    if config.get("moe_router_score_function") == "sigmoid":
        why["moe_router_pre_softmax"] = "scores are sigmoids"
    if _rope_factor(spec) == 1:
        why |= dict.fromkeys(("mscale", "mscale_all_dim"), "the rope is not scaled")
    return {name: text for name, text in why.items() if getattr(args, name) is not None}


def _foreign_layers(given: Sequence[str] | None, where: str, model_type: str) -> list[str]:
    """What is wrong with `--spec`: a list of one sentence, or of none."""
    if not given:
        return []
    own = _FAMILY_OF_LAYERS.get(given[0])
    if own is None:
        return [
            f"--spec {' '.join(given)}: layers follow from the family of the checkpoint's model_type here. Leave the option "
            "out; --custom-model-provider-path names a family of your own."
        ]
    if own == model_type:
        return []
    return [f"--spec {' '.join(given)} has the layers of {own}, but {where} says {model_type}."]


def _recomputed(args: MegatronArguments, spec: ModelSpec) -> list[str]:
    """What is wrong with `--recompute-modules` for this model; adds a remark for parts that it has not."""
    chosen = args.recompute_modules or ()
    for part, there in (
        ("moe", spec.config.get("num_moe_experts")),
        ("shared_experts", spec.config.get("moe_shared_expert_intermediate_size")),
    ):
        if part in chosen and not there:
            spec.remarks.append(f"--recompute-modules {part} has no effect: the model has none.")
    if "mla_up_proj" in chosen and not spec.latent:
        return ["--recompute-modules mla_up_proj needs a model with latent attention, which this one has not."]
    return []


_FAMILY_OF_LAYERS = {"slime_plugins.models.glm4": "glm4"}


def _pattern(given: str, layers: int) -> list[int]:
    """A number for each layer: 1 where it has experts."""
    try:
        value = _evaluated(ast.parse(given, mode="eval").body)
        return [int(n % value == 0) for n in range(layers)] if isinstance(value, int) else list(value)
    except (SyntaxError, TypeError, ZeroDivisionError) as error:
        raise ArgumentError(
            f"--moe-layer-freq is {given!r}, which is neither a number nor a list such as [0]*1+[1]*46: {error}"
        ) from None


def _evaluated(node: ast.expr) -> Any:
    """The value of an expression of numbers, lists, + and *."""
    match node:
        case ast.Constant(value=int()):
            return node.value
        case ast.List():
            return [_evaluated(item) for item in node.elts]
        case ast.BinOp(op=ast.Add()):
            return _evaluated(node.left) + _evaluated(node.right)
        case ast.BinOp(op=ast.Mult()):
            return _evaluated(node.left) * _evaluated(node.right)
    raise TypeError(f"{ast.unparse(node)} is not understood")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(value: Any) -> str:
    """A value in a message; long lists as their runs, the way people write them."""
    if value is None:
        return "nothing of the kind"
    if isinstance(value, list) and len(value) > 1:
        return "+".join(f"[{item}]*{len(list(run))}" for item, run in groupby(value))
    return f"{value:.15g}" if isinstance(value, float) else str(value)
