"""What must agree with how a recipe computes: which modules, which hardware, which settings, which names in checkpoints."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
import torch
from fp8_cases import INF, NAN, RECIPES, made, numbers
from transformers import AutoConfig, AutoModelForCausalLM

from slime_core.contracts.precision import Hardware
from slime_core.errors import ArgumentError, DataError
from slime_core.testing import check_distribution
from slime_fp8.modules import QuantisedModules
from slime_fp8.recipes.blockwise import FP32_SCALES
from slime_fp8.weight_formats import FORMATS, format_of

EVERY = pytest.mark.parametrize("name", RECIPES)
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_everything_that_this_distribution_provides_keeps_its_contract():
    check_distribution("slime-fp8")


# ------------------------------------------------------------------------------------------------------------ modules

QUANTISED = [
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.self_attn.kv_a_proj_with_mqa",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.mlp.experts.7.down_proj",
    "model.layers.1.mlp.shared_experts.up_proj",
    "model.layers.1.mlp.shared_expert.gate_proj",
    "model.layers.1.block_sparse_moe.experts.0.w1",
    "model.language_model.layers.1.mlp.down_proj",
    "model.layers.1.linear_attn.in_proj_qkvz",
]
LEFT_OUT = [
    "lm_head",
    "model.embed_tokens",
    "model.norm",
    "model.layers.1.input_layernorm",
    "model.layers.1.self_attn.q_norm",
    "model.layers.1.mlp.gate",
    "model.layers.1.block_sparse_moe.gate",
    "model.layers.1.mlp.router",
    "model.layers.1.mlp.shared_expert_gate",
    "score",
    "model.layers.1.linear_attn.conv1d",
    "model.layers.1.linear_attn.in_proj_ba",
    "model.layers.4.eh_proj",
    "model.layers.4.shared_head.head",
    "model.visual.blocks.0.attn.qkv",
    "model.layers.1.self_attn.indexer.weights_proj",
    "model.layers.1.self_attn.q_proj.lora_A.default",
    "vision_tower.layers.1.mlp.fc1",
]


@pytest.mark.parametrize("module", QUANTISED)
def test_layers_are_quantised(module):
    assert QuantisedModules(4).holds(f"{module}.weight", (64, 64))


@pytest.mark.parametrize("module", LEFT_OUT)
def test_heads_embeddings_norms_and_what_chooses_are_not(module):
    assert not QuantisedModules(4).holds(f"{module}.weight", (64, 64))


@pytest.mark.parametrize(
    "kind", ["bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "llama", "mpt", "opt"]
)
def test_no_embedding_of_a_model_is_quantised_whatever_it_is_called(kind):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind))
    modules = QuantisedModules(1)
    embeddings = {
        f"{n}.weight": tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, torch.nn.Embedding)
    }
    assert embeddings
    assert [name for name, shape in embeddings.items() if modules.holds(name, shape)] == []
    assert any(modules.holds(name, tuple(p.shape)) for name, p in model.named_parameters()), "layers are"


@pytest.mark.parametrize(
    ("name", "shape"),
    [(UP, (64,)), (UP, (4, 64, 64)), (UP.replace("weight", "bias"), (64, 64)), ("model.layers.1.A", (4, 4))],
)
def test_only_weights_that_are_matrices_are(name, shape):
    assert not QuantisedModules(4).holds(name, shape)


def test_the_first_and_last_layers_are_left_out_when_it_is_asked_for():
    def layers(**changes):
        recipe = made("blockwise", 8, **changes)
        found = [n for n in range(10) if recipe.quantises(f"model.layers.{n}.mlp.up_proj.weight", (4, 4))]
        assert recipe.quantises("projection.weight", (4, 4)), "what is in no layer is at no end"
        return found

    assert layers() == list(range(10))
    assert layers(num_layers_at_start_in_bf16=3) == list(range(10))
    assert layers(first_last_layers_bf16=True) == [1, 2, 3, 4, 5, 6]
    ends = {"num_layers_at_start_in_bf16": 0, "num_layers_at_end_in_bf16": 5}
    assert layers(first_last_layers_bf16=True, **ends) == [0, 1, 2]
    ends = {"num_layers_at_start_in_bf16": 2, "num_layers_at_end_in_bf16": 0}
    assert layers(first_last_layers_bf16=True, **ends) == [2, 3, 4, 5, 6, 7, 8, 9], "layers behind the last one go on"


def test_ends_that_leave_no_layer_are_refused():
    with pytest.raises(ArgumentError, match="leave none of the 2 layers to FP8"):
        made("blockwise", 2, first_last_layers_bf16=True)


def test_further_modules_are_left_out_by_regular_expressions():
    recipe = made("tensorwise", fp8_modules_to_not_convert=[r"o_proj$", r"layers\.2\."])
    assert not recipe.quantises("model.layers.1.self_attn.o_proj.weight", (4, 4))
    assert not recipe.quantises("model.layers.2.mlp.up_proj.weight", (4, 4))
    assert recipe.quantises(UP, (4, 4))
    with pytest.raises(ArgumentError, match=r"--fp8-modules-to-not-convert '\(' is no regular expression"):
        made("tensorwise", fp8_modules_to_not_convert=["("])


# ----------------------------------------------------------------------------------------------------------- hardware

CPU = Hardware("CPU")
A100, L40S = Hardware("A100", (8, 0), (12, 9)), Hardware("L40S", (8, 9), (12, 9))
H200, OLD = Hardware("H200", (9, 0), (12, 9)), Hardware("H200", (9, 0), (12, 8))
B200, RTX = Hardware("B200", (10, 0), (13, 0)), Hardware("RTX PRO 6000", (12, 0), (13, 0))


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("tensorwise", [L40S, H200, OLD, B200, RTX]),
        ("delayed", [L40S, H200, OLD, B200, RTX]),
        ("blockwise", [H200, B200, RTX]),
        ("mxfp8", [B200]),
    ],
)
def test_a_recipe_says_which_hardware_computes_it(name, can):
    recipe = made(name)
    for hardware in (CPU, A100, L40S, H200, OLD, B200, RTX):
        why = recipe.refusal(hardware)
        assert (why == "") is (hardware in can), why
        assert not why or why.startswith(f"{name} needs ")


@pytest.mark.parametrize(
    ("name", "hardware", "why"),
    [
        ("mxfp8", H200, "mxfp8 needs compute capability 10.0 or higher, but below 12.0; H200 has 9.0."),
        ("blockwise", OLD, "blockwise needs CUDA 12.9 or newer; torch was built with 12.8."),
        ("tensorwise", CPU, "CPU has no FP8 arithmetic."),
    ],
)
def test_the_reason_is_a_sentence(name, hardware, why):
    assert made(name).refusal(hardware).endswith(why)


def test_scales_of_blocks_are_numbers_on_hopper_and_powers_of_two_on_blackwell(monkeypatch):
    for hardware, value, scaling in ((H200, "1", "float32"), (B200, "0", "power_of_two")):
        assert made("blockwise").environment(hardware) == {FP32_SCALES: value}
        monkeypatch.setenv(FP32_SCALES, value)
        recipe = made("blockwise")
        assert recipe.weights.quantiser.scaling == scaling
        operands = recipe.linear(UP).operands.quantisers
        assert {q.scaling for d in operands.values() for q in (d.along_columns, d.along_rows)} == {scaling}
        assert ("scale_fmt" in recipe.quantization_config({})) is (scaling == "power_of_two")
        assert format_of(recipe.quantization_config({})) == recipe.weights
    assert made("blockwise").environment(CPU) == {}
    assert [made(name).environment(B200) for name in RECIPES if name != "blockwise"] == [{}, {}, {}]


def test_packed_rows_have_a_multiple_of_the_tokens_that_blocks_need():
    assert {name: made(name).row_multiple() for name in RECIPES} == {
        "tensorwise": 16,
        "delayed": 16,
        "blockwise": 16,
        "mxfp8": 32,
    }


# ----------------------------------------------------------------------------------------------------------- Megatron


def megatron_fields() -> set[str]:
    """The fields of megatron-core's configuration, read from its source: importing it has effects."""
    package = importlib.util.find_spec("megatron")
    places = [Path(p) / "core" for p in (package.submodule_search_locations or () if package else ())]
    files = [p / f for p in places for f in ("transformer/transformer_config.py", "model_parallel_config.py")]
    if not all(file.exists() for file in files) or not files:
        pytest.skip("megatron-core is not installed")
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return {
        node.target.id
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@EVERY
def test_megatron_has_the_fields_that_are_set(name):
    assert made(name).megatron_config().keys() <= megatron_fields()


def test_megatron_is_told_the_same_as_the_emulation_does():
    changes = {
        "first_last_layers_bf16": True,
        "num_layers_at_end_in_bf16": 2,
        "fp8_margin": 1,
        "fp8_amax_history_len": 16,
    }
    config = made("delayed", fp8_format="hybrid", fp8_amax_compute_algo="max", **changes).megatron_config()
    assert config == {
        "fp8": "hybrid",
        "fp8_recipe": "delayed",
        "first_last_layers_bf16": True,
        "num_layers_at_start_in_bf16": 1,
        "num_layers_at_end_in_bf16": 2,
        "fp8_margin": 1,
        "fp8_amax_history_len": 16,
        "fp8_amax_compute_algo": "max",
    }


def test_gradients_in_e5m2_are_refused_under_mxfp8_by_name():
    with pytest.raises(ArgumentError, match="--fp8-recipe mxfp8 with --fp8-format hybrid: gradients in e5m2"):
        made("mxfp8", fp8_format="hybrid")


# -------------------------------------------------------------------------------------------------- weights at rest

SHAPES = {
    "tensorwise": ("_scale", (1,), torch.float32),
    "delayed": ("_scale", (1,), torch.float32),
    "blockwise": ("_scale_inv", (2, 3), torch.float32),
    "mxfp8": ("_scale_inv", (200, 10), torch.uint8),
}


@EVERY
def test_a_weight_is_stored_as_numbers_and_scales_under_the_names_that_engines_read(name):
    recipe, weight = made(name), numbers(200, 300)
    stored = recipe.stored(UP, weight)
    suffix, shape, dtype = SHAPES[name]
    assert {key: (tuple(value.shape), value.dtype) for key, value in stored.items()} == {
        UP: ((200, 300), torch.float8_e4m3fn),
        UP + suffix: (shape, dtype),
    }
    assert torch.allclose(recipe.restored(UP, stored), weight, rtol=0.0625, atol=0.02)
    assert format_of(recipe.quantization_config({})) == recipe.weights


@EVERY
@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_a_weight_that_is_not_finite_is_refused_by_name(name, bad):
    weight = numbers(64, 64)
    weight[3, 4] = bad
    with pytest.raises(DataError, match=f"{UP} has 1 numbers that are NaN or Inf, of 4096"):
        made(name).stored(UP, weight)


@EVERY
def test_a_weight_that_the_recipe_leaves_out_is_not_stored_in_fp8(name):
    with pytest.raises(ArgumentError, match=r"leaves model.layers.1.mlp.gate.weight out of FP8"):
        made(name).stored("model.layers.1.mlp.gate.weight", numbers(8, 64))


@EVERY
def test_missing_and_misshapen_scales_are_told(name):
    recipe = made(name)
    stored = recipe.stored(UP, numbers(200, 300))
    (scales,) = stored.keys() - {UP}
    with pytest.raises(DataError, match=f"there is no {scales} with its scales"):
        recipe.restored(UP, {UP: stored[UP]})
    with pytest.raises(DataError, match=r"has shape \(7, 7\); expected"):
        recipe.restored(UP, stored | {scales: torch.zeros(7, 7)})


@EVERY
def test_the_configuration_lists_every_matrix_that_is_left_out(name):
    weights = {
        "lm_head.weight": (96, 64),
        UP: (64, 64),
        "model.layers.1.mlp.gate.weight": (8, 64),
        "model.norm.weight": (64,),
    }
    config = made(name).quantization_config(weights)
    assert config.get("ignore", config.get("modules_to_not_convert")) == ["lm_head", "model.layers.1.mlp.gate"]


def test_transformers_and_compressed_tensors_accept_the_configurations():
    quantization = pytest.importorskip("compressed_tensors.quantization")
    for strategy in ("channel", "tensor"):
        config = quantization.QuantizationConfig.model_validate(FORMATS[strategy].quantization_config(["lm_head"]))
        assert config.config_groups["group_0"].weights.strategy == strategy


@pytest.mark.parametrize(
    "config",
    [{}, {"quant_method": "awq"}, {"quant_method": "fp8"}, {"quant_method": "compressed-tensors", "format": "int"}],
)
def test_other_formats_are_refused(config):
    with pytest.raises(DataError, match="expected quant_method 'fp8' with a weight_block_size"):
        format_of(config)
