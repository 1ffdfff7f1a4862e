"""In emulated FP8, megatron-core computes what the torch backend does, in all layouts: the same log-probs, and every gradient. What
it computes is FP8: every layer is off from high precision by as much as its formats round, and not less.

All cases with equally many ranks run in one launch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from megatron_cases import Case, among
from megatron_fp8_cases import fp8, limits, prepare
from megatron_models import make_model, save
from megatron_ranks import launch

pytest.importorskip("megatron.core")

TIMEOUT_S = 400
pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)

RECIPES = [(r, f) for r in ("tensorwise", "delayed", "blockwise", "mxfp8") for f in ("e4m3", "hybrid")]
RECIPES.remove(("mxfp8", "hybrid"))
ALL = [fp8(recipe, format) for recipe, format in RECIPES]
FEW = [fp8("tensorwise", "hybrid"), fp8("delayed", "hybrid"), fp8("blockwise")]
"""Scales of whole matrices, of earlier steps, and of blocks."""
SOME = ["k_proj$", r"experts\.3\.", "layers.1.*up_proj$"]
"""Parts of what megatron-core has in one weight."""
MOE = ("qwen3_moe", "glm4_moe_lite")
MOE_AGAIN = {"recompute_granularity": "selective", "recompute_modules": ["moe"]}
RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
EXPERTS = {"tensor": 2, "expert": 2, "sequence": True, "double": True}

TWO = [
    *(Case("qwen3, wide", tensor=2, double=True, options=options) for options in ALL),
    *(Case("qwen3_moe, wide", **EXPERTS, options=options) for options in among(ALL, *FEW)),
    *(Case("glm4_moe_lite, wide", **EXPERTS, options=options) for options in among(FEW, FEW[1])),
    *(Case("qwen3", tensor=2, options=options) for options in among(FEW[::2], FEW[0])),
    *(
        Case(name, tensor=2, expert=2, sequence=True, options=options)
        for name in among(MOE, "glm4_moe_lite")
        for options in among(FEW[::2], FEW[2])
    ),
    Case("qwen3, wide", tensor=2, sequence=True, double=True, options=fp8("tensorwise")),
    Case("qwen2, wide", tensor=2, sequence=True, double=True, options=fp8("blockwise", "hybrid")),
    Case("qwen2, 3 groups, wide", tensor=2, double=True, options=fp8("tensorwise")),
    Case("glm4, wide", tensor=2, sequence=True, double=True, options=fp8("blockwise")),
    Case("gemma2, wide", tensor=2, sequence=True, double=True, options=fp8("tensorwise")),
    Case("glm4_moe, wide", tensor=2, sequence=True, double=True, options=fp8("delayed", "hybrid")),
    Case("deepseek_v3, wide", **EXPERTS, options=fp8("mxfp8")),
    Case("qwen3, wide", pipeline=2, double=True, options=fp8("delayed")),
    Case("glm4_moe_lite, wide", pipeline=2, double=True, options=fp8("tensorwise")),
    Case("qwen3, wide", data=2, double=True, options=fp8("delayed")),
    *(Case("qwen3_moe, wide", data=2, expert=2, double=True, options=options) for options in among(FEW, FEW[1])),
    Case("qwen3, wide", tensor=2, sequence=True, double=True, options=fp8("delayed", **RECOMPUTED)),
    Case("qwen3_moe", tensor=2, expert=2, sequence=True, options=fp8("tensorwise", "hybrid", **MOE_AGAIN)),
    Case("qwen3_moe, wide", **EXPERTS, options=fp8("tensorwise", fp8_modules_to_not_convert=SOME)),
]
FOUR = [
    Case("qwen3_moe, wide", data=2, **EXPERTS, options=fp8("tensorwise", expert_tensor_parallel_size=2)),
    Case("qwen3_moe, wide", data=2, **{**EXPERTS, "expert": 4}, options=fp8("delayed", "hybrid")),
    Case("glm4_moe_lite, wide", pipeline=2, **EXPERTS, options=fp8("blockwise")),
]
CASES = [*TWO, *FOUR]
DOUBLE = [case for case in CASES if case.double]
SINGLE = [case for case in CASES if not case.double]

Results = Callable[[Case], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Gives for a case what every rank found."""
    folder = tmp_path_factory.mktemp("fp8")
    launches: dict[int, list[dict[str, Any]]] = {}

    def of(case: Case) -> list[dict[str, Any]]:
        if case.ranks not in launches:
            cases = sorted((c for c in CASES if c.ranks == case.ranks), key=lambda c: c.layout)
            for one in cases:
                prepare(one, folder)
            launches[case.ranks] = launch("megatron_fp8_cases:work", (cases, folder), case.ranks, folder, TIMEOUT_S)
        return [
            rank.get(str(case), {"error": rank.get("error", "did not come that far")}) for rank in launches[case.ranks]
        ]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_log_probs_and_every_gradient_are_those_of_the_torch_backend(results: Results, case: Case) -> None:
    for number, rank in enumerate(results(case)):
        assert "error" not in rank, f"rank {number}: {rank['error']}"
        for k, gradients in enumerate(rank["gradients"]):
            worst = max(gradients, key=gradients.__getitem__)
            assert gradients[worst] < 1e-13, f"rank {number}, batch {k}: {worst}"
            assert max(rank["loss"][k], rank["log_probs"][k]) < 1e-13, f"rank {number}, batch {k}"


@pytest.mark.slow
@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_in_float32_they_agree_to_six_digits_unless_a_number_rounds_otherwise(results: Results, case: Case) -> None:
    """Where sums end in other digits, one number in a million is rounded to the next one of FP8, a few percent away. Of three batches
    not all have such a number."""
    found = results(case)
    for number, rank in enumerate(found):
        assert "error" not in rank, f"rank {number}: {rank['error']}"
    worst = [max(max(rank["gradients"][k].values()) for rank in found) for k in range(3)]
    others = [max(max(rank["loss"][k], rank["log_probs"][k]) for rank in found) for k in range(3)]
    assert min(map(max, worst, others)) < 1e-6, worst
    assert max(worst) < 0.3


PLAIN = [case for case in DOUBLE if "3 groups" not in case.model and "fp8_modules_to_not_convert" not in case.options]
"""Without heads of zeros, and without matrices in high precision, in the layers that compute by the recipe."""


@pytest.mark.slow
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_every_layer_s_products_and_gradients_have_errors_between_two_bounds(results: Results, case: Case) -> None:
    bounds = limits(case.options["fp8_format"])
    for rank in results(case):
        assert rank["layers"]
        for layer, found in rank["layers"].items():
            for what, error in found.items():
                assert bounds[what][0] < error < bounds[what][1], f"{what} of {layer}"


@pytest.mark.slow
@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_gradients_of_all_weights_of_the_model_are_off_in_both_backends_alike(results: Results, case: Case) -> None:
    """Through all layers errors add up, so the upper bound is wide; a backend that quantises nothing is at 0."""
    for rank in results(case):
        assert rank["errors"]
        for name, (ours, torch_s) in rank["errors"].items():
            assert math.isnan(ours) or 0.02 < ours < 1.5, name
            assert math.isnan(ours) or ours == pytest.approx(torch_s, rel=1e-3), name


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks found when they saved and loaded what delayed scaling remembers."""
    folder = tmp_path_factory.mktemp("states")
    delayed = {"lr": 1e-2, **fp8("delayed", "hybrid", fp8_amax_history_len=3, fp8_amax_compute_algo="max")}
    model, cut = "glm4_moe_lite", {"tensor": 2, "expert": 2, "sequence": True}
    cases = {
        "first": Case(model, **cut, options=delayed),
        "another layout": Case(model, pipeline=2, options={**delayed, "decoder_first_pipeline_num_layers": 1}),
        "another recipe": Case(model, **cut, options=fp8("tensorwise")),
        "reference": Case(model, **cut, options=fp8("blockwise")),
    }
    save(make_model(model), folder / model)
    found = launch("megatron_fp8_cases:states", (cases, folder, folder), 2, folder, TIMEOUT_S)
    assert [rank["error"] for rank in found if "error" in rank] == []
    return found


@pytest.mark.slow
def test_a_resumed_run_equals_the_unbroken_one_also_in_another_layout(states: list[dict[str, Any]]) -> None:
    for rank in states:
        losses = rank["losses"]
        assert losses["first, loaded"] == losses["first"]
        assert rank["remembered"]["first, loaded"] == rank["remembered"]["first"]
        assert losses["another layout, loaded"] == pytest.approx(losses["first"], rel=1e-3)
    saved, loaded = (
        {name: kept for rank in states for name, kept in rank["remembered"][which].items()}
        for which in ("first", "another layout, loaded")
    )
    assert loaded == saved
    assert any(kept != [1, 1, 1] for name, kept in saved.items() if name.endswith("operands.scale"))


@pytest.mark.slow
def test_only_training_moves_scales_and_weights_have_plain_names(states: list[dict[str, Any]]) -> None:
    for rank in states:
        assert not rank["moved"]
        assert not [name for name in rank["names"] if "precision" in name]


@pytest.mark.slow
def test_a_state_of_another_recipe_is_refused(states: list[dict[str, Any]]) -> None:
    assert all("--fp8-recipe" in rank["refusal"] for rank in states)


@pytest.mark.slow
def test_a_reference_model_computes_by_the_recipe_too(states: list[dict[str, Any]]) -> None:
    assert all(rank["reference"] for rank in states)
