"""`--offload`: between its calls a model gives back all memory, and goes on bit for bit as if it had kept it. On CPUs, where what is
given back is host memory; a run says that this is of no use there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron_cases import Case, prepare
from megatron_ranks import launch

pytest.importorskip("megatron.core")

TIMEOUT_S = 400
pytestmark = [pytest.mark.timeout(TIMEOUT_S + 60), pytest.mark.slow]

BF16 = {"bf16": True}
WHOLE = {"use_distributed_optimizer": False}
ONE = [
    *((Case("qwen3", options=options), "actor") for options in ({}, BF16, BF16 | WHOLE, WHOLE | {"optimizer": "sgd"})),
    (Case("qwen3_moe", options=BF16), "actor"),
    (Case("qwen2"), "critic"),
    (Case("qwen3"), "critic"),
    (Case("qwen3"), "reference"),
]
TWO = [
    (Case("qwen3", tensor=2, sequence=True), "actor"),
    (Case("qwen2", pipeline=2, options=BF16), "actor"),
    (Case("glm4_moe_lite", data=2, expert=2), "actor"),
    (Case("qwen3", data=2, options={"overlap_grad_reduce": True}), "actor"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("offload")
    for case, _ in ONE + TWO:
        prepare(case, made)
    return made


Results = Callable[[Case], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """Gives for a case what every rank of its launch found."""
    launches: dict[int, list[dict[str, Any]]] = {}

    def of(case: Case) -> list[dict[str, Any]]:
        if case.ranks not in launches:
            arguments = (ONE if case.ranks == 1 else TWO, folder)
            launches[case.ranks] = launch("megatron_offload_cases:work", arguments, case.ranks, folder, TIMEOUT_S)
        return launches[case.ranks]

    return of


@pytest.mark.parametrize(("case", "role"), ONE + TWO, ids=str)
def test_memory_is_given_back_between_steps_and_training_does_not_change(
    results: Results, case: Case, role: str
) -> None:
    for number, rank in enumerate(results(case)):
        found = rank.get(f"{case}, {role}", rank)
        assert "error" not in found, f"rank {number}: {found['error']}"
        assert found["same"], "losses, norms, log-probs or values differ"
        assert found["weights"], "weights differ"
        for before, left in zip(found["before"], found["left"], strict=True):
            assert left < 0.03 * before, f"of {before} bytes {left} were left"


def test_without_a_gpu_it_is_refused_where_it_would_act(folder: Path) -> None:
    (found,) = launch("megatron_offload_cases:say", (folder,), 1, folder, TIMEOUT_S)
    for role in ("actor", "reference"):
        assert "--offload needs a GPU: this process trains on the CPU" in found[f"{role}, True"]
        assert found[f"{role}, False"] == "", "it has no effect without --colocate"
