"""A critic on Megatron predicts, learns, is saved and exported as a head on the hidden states of transformers does and is, in
every layout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from megatron_cases import Case
from megatron_critic_cases import HEAD, prepare
from megatron_models import MODELS
from megatron_ranks import launch

from slime_core.run.tracking import read_metrics

pytest.importorskip("megatron.core")

TIMEOUT_S = 400
pytestmark = [pytest.mark.timeout(TIMEOUT_S + 60), pytest.mark.slow]

TIED = "qwen3, tied, 4 layers"
UNEVEN = ((0, 1), (2,), (3, 5, 4), (), (6, 7), ())
"""Six micro-batches of two ranks, of which the second has one that is not empty."""
STAGES = {"decoder_first_pipeline_num_layers": 2}
ONE = [Case("qwen3"), Case(TIED), Case("gemma2"), Case("qwen3_moe")]
TWO = [
    Case("qwen3", tensor=2),
    Case("gemma2", tensor=2),
    Case("qwen3", tensor=2, sequence=True),
    Case(TIED, tensor=2, sequence=True),
    Case("glm4_moe_lite", tensor=2, expert=2, sequence=True),
    Case("qwen3", pipeline=2, options=STAGES),
    Case(TIED, pipeline=2),
    Case("qwen3", context=2),
    Case(TIED, context=2),
    Case("qwen3", data=2, rows=UNEVEN),
    Case(TIED, data=2, distributed=False),
]

Results = Callable[[Case], tuple[dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Gives for a case what transformers computes, and what every rank found."""
    folder: Path = tmp_path_factory.mktemp("critics")
    launches: dict[int, list[dict[str, Any]]] = {}

    def of(case: Case) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        cases = ONE if case.ranks == 1 else TWO
        if case.ranks not in launches:
            for own in cases:
                prepare(own, folder)
            ordered = sorted(cases, key=lambda case: case.layout)
            launches[case.ranks] = launch(
                "megatron_critic_cases:work", (ordered, folder), case.ranks, folder, TIMEOUT_S
            )
        return prepare(case, folder), [rank.get(str(case), rank) for rank in launches[case.ranks]]

    return of


@pytest.mark.parametrize("case", [*ONE, *TWO], ids=str)
def test_a_critic_is_a_head_on_the_hidden_states_of_transformers(results: Results, case: Case) -> None:
    truth, found = results(case)
    assert 0 < truth["metrics"]["value_clipfrac"] < 1
    for number, rank in enumerate(found):
        assert "error" not in rank, f"rank {number}: {rank['error']}"
        assert rank["values"] <= 1e-6
        assert rank["again"], "the loss is given the very values that `values` returns"
        assert rank["loss"] == pytest.approx(truth["losses"][0], rel=1e-6)
        assert rank["metrics"] == pytest.approx(truth["metrics"], rel=2e-6)
        assert rank["losses"] == pytest.approx(truth["losses"], rel=2e-6)
        assert rank["norms"] == pytest.approx(truth["norms"], rel=5e-6)
        assert {name: by for name, by in rank["gradients"].items() if not by <= 5e-6} == {}
        assert {name: by for name, by in rank["weights"].items() if not by <= 2e-4} == {}
        tied = {"lm_head.weight"} if MODELS[case.model].get("tie_word_embeddings") else set()
        assert rank["weights"].keys() == truth["weights"].keys() - tied
        assert rank["frozen"] in ([], ["output_layer.weight"]) if not tied else rank["frozen"] == []
        assert rank["new"] == [0.0], "a new head predicts 0"
        assert rank["resumed"], "a state and an export give the same further numbers"
    assert any(HEAD in rank["gradients"] for rank in found)


def test_a_run_of_ppo_has_the_numbers_of_the_torch_backend(tiny_model: Path, chat_rows: Path, tmp_path: Path) -> None:
    words = [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *(
            "--apply-chat-template",
            "--rollout-engine",
            "local",
            "--custom-rm-path",
            "megatron_critic_cases.even_tokens",
        ),
        *("--advantage-estimator", "ppo", "--kl-coef", "0.05", "--num-steps-per-rollout", "2", "--critic-lr", "1e-2"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "2", "--rollout-max-response-len", "6"),
        *("--lr", "1e-3", "--num-rollout", "2", "--use-dynamic-batch-size", "--max-tokens-per-gpu", "120"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    lines: dict[str, list[dict[str, Any]]] = {}
    for backend in ("torch", "megatron"):
        own = ["--train-backend", backend, "--run-dir", str(tmp_path / backend)]
        ended = subprocess.run(
            [sys.executable, "-m", "slime_core", "train", *words, *own], env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        lines[backend] = [
            {name: value for name, value in line.items() if name != "time" and not name.startswith("perf/")}
            for line in read_metrics(tmp_path / backend / "metrics.jsonl")
        ]
    assert len(lines["torch"]) == 2
    assert all(line["train/critic/grad_norm"] > 0 for line in lines["torch"])
    for ours, theirs in zip(lines["megatron"], lines["torch"], strict=True):
        assert ours == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in theirs.items()}
