"""Copies of weights that a model keeps (`--ref-update-interval`, `--keep-old-actor`, `--update-weights-interval`): in every layout the
model is with one what it was, bit for bit, also after it was saved and loaded, and training does not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from megatron_cases import Case, prepare
from megatron_ranks import launch

pytest.importorskip("megatron.core")

TIMEOUT_S = 300
pytestmark = [pytest.mark.timeout(TIMEOUT_S + 60), pytest.mark.slow]

BF16 = {"bf16": True}
ONE = [Case("qwen3", options=BF16), Case("qwen3_moe"), Case("qwen3", lora=("q_proj", "down_proj"))]
TWO = [
    Case("qwen3", data=2),
    Case("qwen3", data=2, distributed=False),
    Case("qwen3", tensor=2, sequence=True, options=BF16),
    Case("qwen3, tied, 4 layers", pipeline=2),
    Case("glm4_moe", data=2, expert=2, options={"freeze_params_name_list": ["self_attn"]}),
]
Results = Callable[[Case], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("kept")
    launches: dict[int, list[dict[str, Any]]] = {}
    for case in ONE + TWO:
        prepare(case, folder)

    def of(case: Case) -> list[dict[str, Any]]:
        if case.ranks not in launches:
            cases = [own for own in ONE + TWO if own.ranks == case.ranks]
            launches[case.ranks] = launch("megatron_kept_cases:work", (cases, folder), case.ranks, folder, TIMEOUT_S)
        return launches[case.ranks]

    return of


@pytest.mark.parametrize("case", ONE + TWO, ids=str)
def test_a_model_is_with_a_copy_what_it_was(results: Results, case: Case) -> None:
    for number, rank in enumerate(results(case)):
        found = rank.get(str(case), rank)
        assert "error" not in found, f"rank {number}: {found['error']}"
        assert [what for what, holds in found.items() if holds is not True and what != "seconds"] == []
