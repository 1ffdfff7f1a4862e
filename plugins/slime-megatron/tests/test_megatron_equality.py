"""megatron-core trains every family in every layout as transformers and torch's AdamW do: the same log-probs, entropies, loss
and metrics, every gradient, and the same weights after optimizer steps.

All cases with equally many ranks run in one launch; a test looks at what became of one of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from megatron_cases import Case, among, differences, prepare, run_cases
from megatron_models import FAMILIES, MODELS, PARITY, make_config, make_samples
from megatron_truth import Truth

from slime_core.training.batches import make_train_batch
from slime_megatron.families import FAMILIES as KNOWN
from slime_megatron.names import Names
from slime_megatron.spec import ConfigReader

pytest.importorskip("megatron.core")

TIMEOUT_S = 400
pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)

EXPERTS = ("qwen3_moe", "glm4_moe", "glm4_moe_lite", "deepseek_v3")
DENSE = tuple(name for name in FAMILIES if name not in EXPERTS)
MEANS = ("sample", "token", "constant")
LOSSES = [{"loss": loss, "mean": mean} for loss in ("policy", "sft") for mean in MEANS]
ALONE = ("llama, tied, linear rope", "qwen3_moe, not normalised", "glm4_moe, no norms of queries")
"""Those of `PARITY` that are in no case of several ranks."""
UNEVEN = ((0, 1), (2,), (3, 5, 4), (), (6, 7), ())
"""Six micro-batches of two ranks, of which the second has one that is not empty."""
BALANCED = make_train_batch(make_samples(), max_tokens=24, ranks=2, balance=True).micro_batches
"""As --balance-data spreads the samples over two ranks."""
RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def stages(name: str) -> dict[str, Any]:
    """Options with which two stages have the layers of a model: three are cut unevenly."""
    layers = MODELS[name].get("num_hidden_layers", 3)
    return {"decoder_first_pipeline_num_layers": 2} if layers == 3 else {}


ONE = [
    *(Case(name) for name in among(FAMILIES, "qwen3")),  # `DOUBLE` has them all
    *(Case(name) for name in among(PARITY, *ALONE)),
    *(Case("qwen3", **loss) for loss in among(LOSSES[1:])),
]
TWO = [
    *(Case(name, tensor=2) for name in among(DENSE, "qwen2", "gemma2")),
    *(Case(name, tensor=2, sequence=True) for name in FAMILIES),
    *(Case(name, pipeline=2, options=stages(name)) for name in among(FAMILIES, "gemma2", "glm4_moe_lite")),
    *(Case(name, context=2) for name in among(FAMILIES, "glm4", "gemma2", "qwen3_moe")),
    *(Case(name, data=2, expert=2) for name in among(EXPERTS)),  # and as whole gradients, and beside a reference
    *(Case(name, tensor=2, expert=2, sequence=True) for name in among(EXPERTS, "qwen3_moe")),
    *(Case(name, data=2) for name in among(FAMILIES, "gemma2", "qwen3_moe")),
    *(Case(name, data=2, distributed=False) for name in ("gemma2", EXPERTS[0])),
    *(Case("qwen3", tensor=2, **loss) for loss in LOSSES[1:]),
    *(
        Case(name, tensor=2, expert=ranks, sequence=True, options=RECOMPUTED)
        for name, ranks in [("qwen3", 1), (EXPERTS[2], 2)]
    ),
    *(Case(name, tensor=2, expert=2, sequence=True, whole=True) for name in ("glm4_moe", "deepseek_v3")),
    *(Case("qwen3", data=2, distributed=whole, whole=True) for whole in (True, False)),
    Case("qwen3_moe", data=2, expert=2, whole=True),
    Case("llama", context=2, whole=True),
    Case("llama", context=2, rows=tuple((n,) for n in range(8))),  # in some of which one rank has no trained token
    Case("qwen3, tied, 4 layers", pipeline=2, whole=True),
    Case("gemma2", tensor=2, reference=True),
    Case("qwen2", pipeline=2, reference=True),
    Case("glm4_moe_lite", data=2, expert=2, reference=True),
    Case("qwen3", tensor=2, options={"recompute_granularity": "selective"}),
    Case(
        "glm4_moe_lite", data=2, expert=2, options={"recompute_granularity": "selective", "recompute_modules": ["moe"]}
    ),
    Case("qwen3", data=2, options={"overlap_grad_reduce": True}),
    Case("qwen3_moe", data=2, expert=2, options={"overlap_grad_reduce": True}),
    Case("qwen3", data=2, rows=UNEVEN),
    Case("qwen3", data=2, rows=tuple(map(tuple, BALANCED))),
    Case("qwen3_moe", data=2, expert=2, rows=UNEVEN),
    Case("glm4_moe_lite", data=2, expert=2, rows=(tuple(range(8)), ())),
    Case("qwen3, tied, 4 layers", pipeline=2),
    Case("qwen3, tied, 4 layers", pipeline=2, options={"decoder_last_pipeline_num_layers": 1}),
    *(Case(name, context=2) for name in ("qwen2, untied, YaRN", "deepseek_v3, YaRN")),
    Case("glm4_moe_lite, whole queries", tensor=2, expert=2, sequence=True),
    Case("deepseek_v3, YaRN", tensor=2, sequence=True),
    *(Case(name, tensor=2) for name in ("qwen3, 3 groups", "qwen2, 3 groups", "gemma2, 3 heads")),
    Case("qwen3, 3 groups", tensor=2, sequence=True),
    Case("glm4_moe_lite, 5 heads", tensor=2, expert=2, sequence=True),
]
FOUR = [
    Case("qwen3, tied, 4 layers", tensor=2, pipeline=2),
    Case("glm4_moe_lite", tensor=2, pipeline=2, expert=2, sequence=True, options=stages("glm4_moe_lite"), whole=True),
    Case("gemma2", tensor=2, pipeline=2, sequence=True, options=stages("gemma2")),
    Case("llama", tensor=2, context=2),
    Case("glm4", tensor=2, context=2, sequence=True),
    *(Case(name, pipeline=2, data=2) for name in among(("qwen2",))),
    Case("qwen3", tensor=2, data=2, sequence=True, distributed=False),
    *(Case("qwen3", pipeline=2, data=2, options=stages("qwen3"), **loss) for loss in among(LOSSES[::2], LOSSES[4])),
    Case("qwen3, tied, 4 layers", pipeline=4),
    Case("qwen3_moe", pipeline=2, data=2, expert=2, options=stages("qwen3_moe"), rows=UNEVEN),
    *(
        Case(name, tensor=2, pipeline=2, expert=2, sequence=True, options=stages(name))
        for name in among(EXPERTS, "deepseek_v3")
    ),
    Case("glm4_moe_lite", tensor=2, context=2, expert=2, sequence=True),
    Case("deepseek_v3", tensor=2, data=2, expert=4, sequence=True),
    Case("qwen3, 3 groups", tensor=4),
    Case("qwen2, 3 groups", tensor=4, sequence=True),
    *(Case("qwen2, 3 groups", tensor=2, data=2, distributed=whole) for whole in among((True, False), False)),
    *(
        Case(name, tensor=2, data=2, expert=2, sequence=True, options={"expert_tensor_parallel_size": 2})
        for name in among(("qwen3_moe", "glm4_moe"), "glm4_moe")
    ),
]


def strongest(cases: list[Case]) -> list[Case]:
    """Without those of which another compares the same and more."""
    covered = [replace(case, whole=False, reference=False) for case in cases if case.whole or case.reference]
    return [case for case in cases if case not in covered]


CASES = strongest([*ONE, *TWO, *FOUR])
DOUBLE = [
    *(Case(name, double=True) for name in FAMILIES),
    Case("qwen3, 3 groups", tensor=2, sequence=True, double=True),
    Case("glm4_moe_lite", tensor=2, expert=2, sequence=True, double=True),
    Case("gemma2", pipeline=2, options=stages("gemma2"), double=True),
    Case("qwen3_moe", context=2, double=True),
]
"""In float64, in which nothing is left of a difference but faults."""

Results = Callable[[Case], tuple[Truth, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """Gives for a case what transformers computes, and what every rank found."""
    folder = tmp_path_factory.mktemp("equality")
    launches: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for case in (*CASES, *DOUBLE):
        prepare(case, folder)

    def of(case: Case) -> tuple[Truth, list[dict[str, Any]]]:
        if case.ranks not in launches:
            launches[case.ranks] = run_cases([c for c in (*CASES, *DOUBLE) if c.ranks == case.ranks], folder, TIMEOUT_S)
        return Truth.read(folder / case.truth), launches[case.ranks][str(case)]

    yield of
    if path := os.environ.get("SLIME_MEGATRON_RESULTS"):
        import json

        Path(path).write_text(json.dumps(launches))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_is_what_transformers_and_adamw_do(results: Results, case: Case) -> None:
    truth, found = results(case)
    assert len(found) == case.ranks, found[0].get("error")
    for number, rank in enumerate(found):
        assert "error" not in rank, f"rank {number}: {rank['error']}"
        assert differences(truth, rank) == {}, f"rank {number}"
        assert rank["weights"].keys() == truth.weights.keys() - tied(case)
        assert (rank["losses"], rank["norms"]) == (found[0]["losses"], found[0]["norms"]), "the very same numbers"
    assert any(rank["entropies"] is not None for rank in found) == (case.loss == "policy")
    assert any(norm > 1 for norm in truth.norms), "a gradient was clipped"


@pytest.mark.slow
@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_in_float64_log_probs_and_gradients_are_those_of_transformers_to_thirteen_digits(
    results: Results, case: Case
) -> None:
    _, found = results(case)
    for number, rank in enumerate(found):
        assert "error" not in rank, f"rank {number}: {rank['error']}"
        assert max(rank["loss"], rank["log_probs"], *rank["gradients"].values()) < 1e-13, f"rank {number}: {rank}"


def tied(case: Case) -> set[str]:
    """The name, in a checkpoint, of an output layer that is the embedding."""
    return {"lm_head.weight"} if MODELS[case.model].get("tie_word_embeddings") else set()


def test_no_parameter_is_left_out_of_the_comparison(results: Results) -> None:
    """The ranks together compare the gradients of all parameters that transformers' model has."""
    for case in CASES:
        truth, found = results(case)
        reader = ConfigReader(make_config(case.model).to_dict(), "tiny")
        names = Names(KNOWN[reader.model_type](reader, lambda size: size).rules)
        own = {name for rank in found for name in rank["gradients"]}
        own -= {"output_layer.weight"} if tied(case) else set()
        assert {file for name in own for file in names.of(name)[1]} == truth.gradients.keys(), str(case)
