"""`--only-train-params-name-list`, `--freeze-params-name-list`: megatron-core trains what is left as transformers and torch's AdamW do
with the same parameters frozen, in every layout; the others stay bit for bit what they were. What cannot be frozen is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron_cases import Case, differences, prepare, run_cases
from megatron_models import MODELS, make_config
from megatron_ranks import launch
from megatron_truth import Truth

from slime_megatron.families import FAMILIES
from slime_megatron.names import Names
from slime_megatron.spec import ConfigReader

pytest.importorskip("megatron.core")

TIMEOUT_S = 300
pytestmark = [pytest.mark.timeout(TIMEOUT_S + 60), pytest.mark.slow]


def only(*patterns: str, **options: Any) -> dict[str, Any]:
    return {**options, "only_train_params_name_list": list(patterns)}


def but(*patterns: str, **options: Any) -> dict[str, Any]:
    return {**options, "freeze_params_name_list": list(patterns)}


RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
ONE = [
    Case("qwen3", options=but("embed_tokens", "lm_head"), reference=True, whole=True),
    Case("qwen2", options=only(r"layers\.1\."), reference=True),
    Case("qwen3_moe", options=only("experts"), loss="sft"),
    Case("glm4", options=but("norm")),
]
TWO = [
    Case("qwen3", tensor=2, sequence=True, options=but("embed_tokens", "self_attn"), reference=True),
    Case("qwen3", tensor=2, options=only("mlp", **RECOMPUTED)),
    Case("qwen3, tied, 4 layers", pipeline=2, options=but("embed_tokens")),
    Case("qwen3, tied, 4 layers", pipeline=2, options=only("o_proj", "embed")),
    Case("llama", context=2, options=only("down_proj")),
    Case("glm4_moe", data=2, expert=2, options=but("experts"), whole=True),
    Case("glm4_moe", data=2, expert=2, options=only("experts")),
    *(Case("qwen3", data=2, distributed=cut, options=but("layers.0", "norm")) for cut in (True, False)),
]
CASES = [*ONE, *TWO]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("frozen")
    for case in CASES:
        prepare(case, made)
    return made


Results = Callable[[Case], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    launches: dict[int, dict[str, list[dict[str, Any]]]] = {}

    def of(case: Case) -> list[dict[str, Any]]:
        if case.ranks not in launches:
            launches[case.ranks] = run_cases([c for c in CASES if c.ranks == case.ranks], folder, TIMEOUT_S)
        return launches[case.ranks][str(case)]

    return of


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_left_is_trained_as_transformers_and_adamw_do(results: Results, folder: Path, case: Case) -> None:
    truth, found = Truth.read(folder / case.truth), results(case)
    for number, rank in enumerate(found):
        assert "error" not in rank, f"rank {number}: {rank['error']}"
        assert differences(truth, rank) == {}, f"rank {number}"
    reader = ConfigReader(make_config(case.model).to_dict(), "tiny")
    names = Names(FAMILIES[reader.model_type](reader, lambda size: size).rules)
    own = {name for rank in found for name in rank["gradients"]}
    own -= {"output_layer.weight"} if MODELS[case.model].get("tie_word_embeddings") else set()
    assert {file for name in own for file in names.of(name)[1]} == truth.gradients.keys()
    frozen = truth.weights.keys() - truth.gradients.keys()
    assert {rank["weights"][name] for rank in found for name in frozen & rank["weights"].keys()} == {0.0}


def test_what_cannot_be_frozen_is_refused_with_what_to_do(folder: Path) -> None:
    (found,) = launch("megatron_frozen_cases:refusals", (folder,), 1, folder, TIMEOUT_S)
    assert "q_proj.weight would be trained" in found["a part of one weight"]
    assert "they are one weight" in found["a part of one weight"]
    assert "linear_fc1 is gate_proj and up_proj" in found["a name of Megatron's"]
    assert "Name all experts of a layer or none" in found["some experts"]
    both = launch("megatron_frozen_cases:empty_stage", (folder,), 2, folder, TIMEOUT_S)
    assert all("pipeline stage 0 would train nothing" in rank["said"] for rank in both)


GOING_ON = [
    Case("qwen3", data=2, options=but("embed_tokens", "layers.0")),
    Case("qwen3", data=2, distributed=False, options=only("mlp")),
    Case("qwen3, tied, 4 layers", pipeline=2, options=only("down_proj")),
    Case("glm4_moe", data=2, expert=2, options=but("self_attn")),
]


def test_a_stopped_run_goes_on_bit_for_bit_and_an_optimizer_that_forgets_takes_the_steps_of_a_new_one(
    folder: Path,
) -> None:
    both = launch("megatron_frozen_cases:goes_on", (GOING_ON, folder), 2, folder, TIMEOUT_S)
    for rank in both:
        for case in GOING_ON:
            found = rank.get(str(case), rank)
            assert "error" not in found, found["error"]
            assert (found["resumed"], found["reset"], found["differs"]) == (True, True, True), str(case)
