"""`--use-routing-replay`: a rollout's optimizer steps send every token to the experts that were chosen before the first, with the
present router's weights, and every gradient is what transformers computes with routers that are told the experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron_cases import Case
from megatron_ranks import launch
from megatron_replay_cases import FLAG, prepare
from megatron_truth import Truth

pytest.importorskip("megatron.core")

TIMEOUT_S = 400
pytestmark = [pytest.mark.timeout(TIMEOUT_S + 60), pytest.mark.slow]

RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
BLOCK = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}
UNEVEN = ((0, 1), (2,), (3, 5, 4), (), (6, 7), ())
"""Six micro-batches of two ranks, of which the second has one that is not empty."""
STAGES = {"decoder_first_pipeline_num_layers": 2}
ONE = [
    Case("qwen3_moe", options=FLAG),
    Case("qwen3_moe"),
    Case("qwen3_moe", options=FLAG | RECOMPUTED),
    Case("glm4_moe_lite", options=FLAG),
    Case("glm4_moe_lite", options=FLAG | BLOCK),
]
TWO = [
    *(Case(name, tensor=2, expert=2, sequence=True, options=FLAG) for name in ("qwen3_moe", "glm4_moe_lite")),
    *(Case(name, pipeline=2, options=FLAG | RECOMPUTED | STAGES) for name in ("qwen3_moe", "glm4_moe_lite")),
    Case("glm4_moe_lite", pipeline=2, options=FLAG | STAGES),
    Case("glm4_moe_lite", context=2, options=FLAG),
    Case("qwen3_moe", data=2, expert=2, rows=UNEVEN, options=FLAG | RECOMPUTED),
]

Results = Callable[[Case], tuple[Truth, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


@pytest.fixture(scope="module")
def others(folder: Path) -> dict[str, float]:
    """{model: the share of experts that the weights in training would not have chosen}."""
    return {case.model: prepare(case, folder) for case in (ONE[0], ONE[3])}


@pytest.fixture(scope="module")
def results(folder: Path, others: dict[str, float]) -> Results:
    """Gives for a case what transformers computes, and what every rank found."""
    launches: dict[int, list[dict[str, Any]]] = {}

    def of(case: Case) -> tuple[Truth, list[dict[str, Any]]]:
        cases = ONE if case.ranks == 1 else TWO
        if case.ranks not in launches:
            ordered = sorted(cases, key=lambda case: case.layout)
            launches[case.ranks] = launch(
                "megatron_replay_cases:work", (ordered, folder), case.ranks, folder, TIMEOUT_S
            )
        return Truth.read(folder / case.truth), [rank.get(str(case), rank) for rank in launches[case.ranks]]

    return of


def test_the_weights_in_training_would_choose_other_experts(others: dict[str, float]) -> None:
    assert all(0.1 < share < 0.9 for share in others.values()), others


@pytest.mark.parametrize("case", [case for case in ONE + TWO if case.options], ids=str)
def test_steps_repeat_the_experts_that_were_chosen_before_them(results: Results, case: Case) -> None:
    truth, found = results(case)
    for number, rank in enumerate(found):
        assert "error" not in rank, f"rank {number}: {rank['error']}"
        assert rank["same"], "remembering gives the very log-probs that log_probs gives"
        assert rank["free"] > 1e-2, "what log_probs gives is of routers that choose"
        assert rank["losses"] == pytest.approx(truth.losses, abs=2e-6)
        assert rank["norms"] == pytest.approx(truth.norms, rel=5e-6)
        assert {name: by for name, by in rank["gradients"].items() if not by <= 5e-6} == {}
        assert {name: by for name, by in rank["weights"].items() if not by <= 2e-4} == {}
        assert rank["weights"].keys() == truth.weights.keys()
        assert rank["forgotten"], "afterwards routers choose again"


def test_without_the_option_the_router_chooses_in_every_step(results: Results) -> None:
    _, (rank,) = results(ONE[1])
    assert max(rank["gradients"].values()) > 0.05
    assert rank["forgotten"]
