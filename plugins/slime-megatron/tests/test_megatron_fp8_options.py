"""What FP8 options do with this backend is said when a run is planned, before anything is loaded."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron_models import make_arguments

from slime_core.contracts.precision import Hardware
from slime_core.errors import ArgumentError
from slime_megatron import te_probe
from slime_megatron.refusals import refused

EMULATED = {"fp8_format": "e4m3", "fp8_recipe": "blockwise", "fp8_emulation": True}
ON_A_GPU = {"fp8_format": "e4m3", "fp8_recipe": "blockwise", "transformer_impl": "transformer_engine"}
GATHERED = {"fp8_recipe": "mxfp8", "fp8_param_gather": True, "reuse_grad_buf_for_mxfp8_param_ag": True}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Transformer Engine worked, on a GPU."""
    monkeypatch.setattr("slime_megatron.te_probe.probe", lambda: te_probe.Probe(cuda=True))


@pytest.mark.parametrize(
    "options",
    [
        EMULATED,
        {**EMULATED, "fp8_format": "hybrid", "tensor_model_parallel_size": 2, "sequence_parallel": True},
        {**EMULATED, "pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2},
        {**EMULATED, "recompute_granularity": "selective", "recompute_modules": ["mlp", "moe"]},
        ON_A_GPU,
        {**ON_A_GPU, **GATHERED},
        {**ON_A_GPU, "activation_func_fp8_input_store": True, "context_parallel_size": 2},
    ],
    ids=str,
)
def test_what_computes_in_fp8_is_not_refused(options: dict[str, Any], there: None) -> None:
    assert refused(make_arguments(**options)) == []


@pytest.mark.parametrize(
    ("options", "beginning"),
    [
        (
            {"fp8_format": "e4m3"},
            "--fp8-format e4m3: without Transformer Engine megatron-core ignores it in silence. Give --fp8-emul",
        ),
        ({**EMULATED, "lora_rank": 4}, "--fp8-format e4m3 with --lora-rank 4"),
        (
            {**EMULATED, "context_parallel_size": 2},
            "--fp8-format e4m3 with --context-parallel-size 2: the tokens of a row",
        ),
        ({**EMULATED, "fp8_param_gather": True}, "--fp8-param-gather: no weights are gathered in FP8 here"),
        (
            {**EMULATED, "reuse_grad_buf_for_mxfp8_param_ag": True},
            "--reuse-grad-buf-for-mxfp8-param-ag: it saves the memory",
        ),
        (
            {**EMULATED, "activation_func_fp8_input_store": True},
            "--activation-func-fp8-input-store: inputs of activation",
        ),
        ({**ON_A_GPU, "fp8_emulation": True}, "--fp8-format e4m3 with --transformer-impl transformer_engine"),
        (
            {**ON_A_GPU, "fp8_modules_to_not_convert": ["o_proj"]},
            "--fp8-modules-to-not-convert: with --transformer-impl",
        ),
        (
            {**ON_A_GPU, "fp8_recipe": "delayed", "first_last_layers_bf16": True},
            "--first-last-layers-bf16 with --fp8-recipe delayed",
        ),
        (
            {**ON_A_GPU, "fp8_param_gather": True, "use_distributed_optimizer": False},
            "--fp8-param-gather needs --use-dist",
        ),
        ({**ON_A_GPU, "reuse_grad_buf_for_mxfp8_param_ag": True}, "--reuse-grad-buf-for-mxfp8-param-ag is for weights"),
    ],
    ids=str,
)
def test_what_does_not_is_refused_with_the_reason(options: dict[str, Any], beginning: str, there: None) -> None:
    (told,) = refused(make_arguments(**options))
    assert told.startswith(beginning)


def test_options_of_fp8_reach_the_fields_of_megatron_core_that_they_have_there() -> None:
    """As far as this can be seen without a GPU."""
    pytest.importorskip("megatron.core")
    from slime_megatron import te_layers

    recipe: Any = SimpleNamespace(megatron_config=lambda: {"fp8": "e4m3", "fp8_recipe": "mxfp8"})
    args: Any = make_arguments(**{**ON_A_GPU, **GATHERED}, activation_func_fp8_input_store=True)
    assert te_layers.low_precision_fields(args, recipe) == {
        "fp8": "e4m3",
        "fp8_recipe": "mxfp8",
        "fp8_param": True,
        "activation_func_fp8_input_store": True,
        "bias_activation_fusion": True,
    }
    reusing = {"reuse_grad_buf_for_mxfp8_param_ag": True}
    assert te_layers.gathering(args) == {"fp8_param_gather": True, **reusing}
    assert te_layers.optimizing(args) == {"fp8_recipe": "mxfp8", **reusing}
    for other in (make_arguments(**EMULATED), make_arguments(transformer_impl="transformer_engine")):
        nothing: Any = other
        assert te_layers.gathering(nothing) == te_layers.optimizing(nothing) == {}


@pytest.mark.parametrize("why", ["", "mxfp8 needs compute capability 10.0 or higher."])
def test_a_gpu_that_cannot_compute_a_recipe_is_told_and_another_gets_its_environment(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slime_megatron import te_layers

    monkeypatch.setattr(te_layers, "hardware_of", lambda device: Hardware("NVIDIA H200", (9, 0), (12, 9)))
    monkeypatch.setenv("SLIME_TEST_SCALES", "0")
    made: list[str | None] = []
    device = torch.device("cpu")

    def make() -> Any:
        made.append(os.environ.get("SLIME_TEST_SCALES"))
        return SimpleNamespace(refusal=lambda on: why, environment=lambda on: {"SLIME_TEST_SCALES": "1"})

    if why:
        with pytest.raises(ArgumentError, match=why):
            te_layers.prepare_low_precision(make, device)
    else:
        assert te_layers.prepare_low_precision(make, device) is not None
        assert made == ["0", "1"]
    assert te_layers.prepare_low_precision(lambda: None, device) is None
