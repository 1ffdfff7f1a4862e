"""Every key of a configuration is mapped, known to mean nothing, or refused by name; so is every layout that megatron-core
cannot compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron_model_cards import CONFIGS
from megatron_models import FAMILIES, HALF, LLAMA3, MODELS, PARITY, YARN, make_arguments, make_config

from slime_core.errors import ArgumentError
from slime_megatron.checkpoint_files import read_config
from slime_megatron.families import FAMILIES as KNOWN
from slime_megatron.spec import ConfigReader, ModelSpec

pytest.importorskip("megatron.core")

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}


def spec_of(name: str, **changes: Any) -> ModelSpec:
    """What the family makes of a tiny configuration with these keys changed afterwards, as a file may have them."""
    values = {**make_config(name).to_dict(), **changes}
    reader = ConfigReader(values, "tiny")
    spec = KNOWN[reader.model_type](reader, lambda size: -(-size // 16) * 16)
    reader.require_all_read()
    return spec


@pytest.mark.parametrize("name", MODELS)
def test_every_key_of_a_configuration_is_looked_at(name: str) -> None:
    spec = spec_of(name)
    assert spec.config["num_layers"] == MODELS[name].get("num_hidden_layers", 3)
    assert spec.model["vocab_size"] == 256


@pytest.mark.parametrize("model_type", KNOWN)
def test_the_configuration_that_transformers_has_for_a_family_is_mapped(model_type: str) -> None:
    from transformers import AutoConfig

    reader = ConfigReader(AutoConfig.for_model(model_type).to_dict(), "default")
    KNOWN[model_type](reader, lambda size: size)
    reader.require_all_read()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("key", "value"), [("residual_multiplier", 0.22), ("layer_scales", [1.0]), ("use_gates", False)]
)
def test_a_key_that_the_family_does_not_know_is_refused_by_name(name: str, key: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match="--train-backend torch") as raised:
        spec_of(name, **{key: value})
    assert f"{key}={value!r}" in str(raised.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_key_that_says_nothing_is_no_reason_to_refuse(name: str) -> None:
    spec_of(name, some_setting=None, _private=3, transformers_version="4.33", torch_dtype="bfloat16")
    spec_of(name, unsloth_fixed=True, unsloth_version="2024.9")  # of checkpoints that were uploaded again
    if name in PLAIN:
        spec_of(name, layer_types=["full_attention"] * make_config(name).num_hidden_layers)


@given(
    st.dictionaries(st.text("abcdefgh_", min_size=2), st.one_of(st.none(), st.integers(), st.booleans()), max_size=6)
)
def test_all_unknown_keys_are_named_and_no_known_one(values: dict[str, Any]) -> None:
    reader = ConfigReader({"model_type": "x", "hidden_size": 4, **values}, "here")
    assert reader["hidden_size"] == values.get("hidden_size", 4)
    unknown = sorted(key for key, value in values.items() if value is not None and not key.startswith("_"))
    if not unknown:
        reader.require_all_read()
        return
    with pytest.raises(ArgumentError) as raised:
        reader.require_all_read()
    shown = ", ".join(f"{key}={values[key]!r}" for key in unknown)
    assert str(raised.value).endswith(
        f"keys that the family x does not know: {shown}. Use --train-backend torch, which runs the model of transformers itself."
    )


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ArgumentError, match="here: its configuration has no 'hidden_size', which a llama model needs"):
        ConfigReader({"model_type": "llama"}, "here")["hidden_size"]


def test_null_is_as_good_as_missing() -> None:
    reader = ConfigReader({"head_dim": None, "count": 0}, "here")
    assert reader.get("head_dim", 7) == 7
    assert reader.get("count", 7) == 0
    assert reader["count"] == 0


PLAIN = [name for name in FAMILIES if name != "gemma2"]
"""Families whose layers look at everything."""
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_parameters": {**LLAMA3, "low_freq_factor": 2.0}}, r"\[2.0, 4.0, 8192\].* fixes at 1, 4 and 8192"),
    ("llama", {"rope_parameters": {**LLAMA3, "high_freq_factor": 8.0}}, r"\[1.0, 8.0, 8192\]"),
    ("llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 4096}}, r"\[1.0, 4.0, 4096\]"),
    ("llama", {"attention_bias": True}, "attention_bias is True; .* output projection a bias alone"),
    ("llama", {"mlp_bias": True}, "mlp_bias is True"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp is 2"),
    ("qwen3", {"attention_bias": True}, "attention_bias is True; .* output projection a bias alone"),
    ("qwen3_moe", {"attention_bias": True}, "attention_bias is True; .* output projection a bias alone"),
    ("glm4_moe_lite", {"attention_bias": True}, "attention_bias is True; latent projections with biases"),
    ("deepseek_v3", {"attention_bias": True}, "attention_bias is True; latent projections with biases"),
    ("gemma2", {"attention_bias": True}, "attention_bias is True"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; only the tanh approximation"),
    *((name, SLIDING, "use_sliding_window is True; sliding windows") for name in ("qwen2", "qwen3", "qwen3_moe")),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "types sliding_attention; only full_attention"),
    ("qwen2", {"use_mrope": True}, "use_mrope is True; rotary embeddings of several axes"),
    *((name, {"use_sliding_window": None, "sliding_window": 4}, "sliding_window is 4") for name in PLAIN),
    *((name, {"layer_types": ["sliding_attention"]}, "types sliding_attention") for name in PLAIN),
    *((name, {"rope_parameters": DYNAMIC}, "of the type 'dynamic'") for name in FAMILIES),
    *((name, {"rope_parameters": LONG}, "of the type 'longrope'") for name in FAMILIES),
    ("qwen3", {"rope_parameters": {**HALF, "mrope_section": [1, 2]}}, "rope_parameters have mrope_section"),
    ("deepseek_v3", {"rope_parameters": {**YARN, "mrope_section": [1, 2]}}, "rope_parameters have mrope_section"),
    ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 1.5}}, "attention_factor or truncate"),
    ("qwen2", {"rope_parameters": {**YARN, "truncate": False}}, "attention_factor or truncate"),
    *((name, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only .* is mapped") for name in FAMILIES),
    *((name, {"attention_dropout": 0.1}, "attention_dropout is 0.1") for name in FAMILIES),
    *((name, {"quantization_config": {"quant_method": "fp8"}}, "its weights are quantised") for name in FAMILIES),
    ("glm4_moe_lite", {"rope_interleave": False}, "rope_interleave is false"),
    ("glm4_moe", {"norm_topk_prob": False}, "norm_topk_prob is false"),
    ("glm4_moe", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1"),
    (
        "qwen3_moe",
        {"num_experts_per_tok": 1, "norm_topk_prob": True},
        "num_experts_per_tok is 1 and norm_topk_prob is true",
    ),
    ("deepseek_v3", {"num_experts_per_tok": 6}, "by their best 2 experts, megatron-core by their best 3"),
]


@pytest.mark.parametrize(("name", "changes", "why"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_computed_exactly_is_refused_with_the_reason(
    name: str, changes: dict[str, Any], why: str
) -> None:
    spec_of(name)  # it is the change that is refused
    with pytest.raises(ArgumentError, match=why) as raised:
        spec_of(name, **changes)
    assert str(raised.value).startswith("tiny cannot be trained with --train-backend megatron: ")


def test_a_family_that_is_not_mapped_is_refused_with_those_that_are() -> None:
    from slime_megatron.configuration import read_spec

    class Config:
        def to_dict(self) -> dict[str, Any]:
            return {"model_type": "qwen4"}

    with pytest.raises(ArgumentError, match=r"type 'qwen4' are not mapped .* qwen2, qwen3, qwen3_moe") as raised:
        read_spec(Config(), "here", make_arguments(), 1)
    assert "--custom-model-provider-path" in str(raised.value)


def test_a_family_of_somebodys_own_is_named_by_its_import_path() -> None:
    from slime_megatron.configuration import read_spec

    config = make_config("qwen3")
    config.own_key = 3
    with pytest.raises(ArgumentError, match="own_key=3"):
        read_spec(config, "here", make_arguments(), 1)
    args = make_arguments(custom_model_provider_path="megatron_models.own_family")
    spec = read_spec(config, "here", args, 1)
    assert spec.remarks == ["a family of somebody's own"]
    assert spec.model["vocab_size"] == 256, "a multiple of --make-vocab-size-divisible-by, 8"


PUBLISHED: dict[str, dict[str, Any]] = {
    **CONFIGS,
    "Gemma-2-2B": {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "attention_dropout": 0.0,
        "eos_token_id": [1, 107],
        "torch_dtype": "bfloat16",
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "vocab_size": 256000,
    },
}
"""What the files of published models say."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_as_published_models_have_them_are_mapped(name: str, tmp_path: Path) -> None:
    values = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    reader = ConfigReader(read_config(str(tmp_path)).to_dict(), name)
    spec = KNOWN[reader.model_type](reader, lambda size: size)
    reader.require_all_read()
    assert spec.config["num_layers"] == values["num_hidden_layers"]
    assert spec.model["rotary_base"] == values["rope_theta"]
    if values.get("num_nextn_predict_layers"):
        assert spec.extra_file_prefixes == (f"model.layers.{values['num_hidden_layers']}.",)
    if spec.latent:
        assert spec.config["kv_channels"] == values["v_head_dim"], "not another name of qk_rope_head_dim"


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=f"{tmp_path} holds no model configuration"):
        read_config(str(tmp_path))


# ------------------------------------------------------------------------------------------------------------- layouts


LAYOUTS: list[tuple[dict[str, Any], int, int, str]] = [
    ({"tensor_model_parallel_size": 3}, 4, 0, "= 3 does not divide the 4 training ranks"),
    (
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "context_parallel_size": 2},
        4,
        0,
        "= 8 does not",
    ),
    ({"expert_model_parallel_size": 2}, 2, 0, "needs a model with experts; this one has none"),
    ({"expert_model_parallel_size": 3}, 3, 8, "--expert-model-parallel-size 3 does not divide the 8 experts"),
    ({"expert_model_parallel_size": 4}, 2, 8, "does not divide the 2 ranks of a pipeline stage"),
    (
        {"expert_model_parallel_size": 2, "expert_tensor_parallel_size": 2},
        2,
        8,
        "--expert-tensor-parallel-size 2 does not",
    ),
    (
        {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_tensor_parallel_size": 1},
        2,
        8,
        "never adds up the gradients of the experts' copies",
    ),
    ({"tensor_model_parallel_size": 2}, 2, 8, "needs --sequence-parallel"),
]


@pytest.mark.parametrize(("options", "ranks", "experts", "why"), LAYOUTS, ids=lambda value: str(value)[:60])
def test_layouts_that_do_not_fit_or_would_be_wrong_are_refused(
    options: dict[str, Any], ranks: int, experts: int, why: str
) -> None:
    from slime_megatron.layout import ParallelLayout

    with pytest.raises(ArgumentError, match=why):
        ParallelLayout.of(make_arguments(**options), ranks, experts)


def test_experts_are_cut_like_all_else_unless_they_are_spread_over_ranks() -> None:
    from slime_megatron.layout import ParallelLayout

    options = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    assert ParallelLayout.of(make_arguments(**options), 2, experts=8).expert_tensor == 2
    spread = make_arguments(**options, expert_model_parallel_size=2)
    assert ParallelLayout.of(spread, 2, experts=8).expert_tensor == 1
    assert ParallelLayout.of(make_arguments(**options), 2, experts=0).expert_tensor == 1


def test_sequence_parallelism_needs_tensor_parallelism() -> None:
    from slime_megatron.layout import ParallelLayout

    assert not ParallelLayout.of(make_arguments(sequence_parallel=True), 2, experts=0).sequence


STAGES: list[tuple[int, int, dict[str, int], bool]] = [
    (3, 2, {}, False),
    (4, 2, {}, True),
    (1, 2, {}, False),
    (3, 2, {"decoder_first_pipeline_num_layers": 2}, True),
    (3, 2, {"decoder_last_pipeline_num_layers": 1}, True),
    (3, 2, {"decoder_first_pipeline_num_layers": 3}, False),
    (3, 2, {"decoder_first_pipeline_num_layers": 2, "decoder_last_pipeline_num_layers": 2}, False),
    (5, 3, {"decoder_first_pipeline_num_layers": 2}, False),
    (5, 3, {"decoder_first_pipeline_num_layers": 1}, True),
    (47, 4, {"decoder_last_pipeline_num_layers": 11}, True),
]


@pytest.mark.parametrize(("layers", "stages", "options", "fits"), STAGES, ids=str)
def test_layers_go_into_pipeline_stages_evenly_or_as_options_say(
    layers: int, stages: int, options: dict[str, int], fits: bool
) -> None:
    from slime_megatron import model
    from slime_megatron.layout import ParallelLayout

    spec = spec_of("qwen3", num_hidden_layers=layers, layer_types=["full_attention"] * layers)
    args = make_arguments(pipeline_model_parallel_size=stages, **options)
    layout = ParallelLayout.of(args, stages, experts=0)
    if fits:
        assert model._config(spec, layout, args, torch.float32).num_layers == layers
        return
    with pytest.raises(ArgumentError, match=f"The model has {layers} layers.* --decoder-first-pipeline-num-layers"):
        model._config(spec, layout, args, torch.float32)


@pytest.mark.parametrize("name", [*FAMILIES, *PARITY])
def test_remarks_say_that_experts_are_not_balanced(name: str) -> None:
    remarks = " ".join(spec_of(name).remarks)
    assert ("auxiliary load-balancing loss of the experts is off" in remarks) == ("num_experts_per_tok" in MODELS[name])


@pytest.mark.parametrize(("name", "said"), [("glm4_moe_lite", True), ("deepseek_v3", True), ("glm4_moe", False)])
def test_a_remark_says_where_norms_of_latents_differ_from_those_of_transformers(name: str, said: bool) -> None:
    for epsilon, differs in ((1e-6, False), (1e-5, True)):
        remarks = " ".join(spec_of(name, rms_norm_eps=epsilon).remarks)
        assert ("log-probs of trainer and engine differ by about 2e-05" in remarks) == (said and differs)
