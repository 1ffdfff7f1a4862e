"""LoRA on megatron-core: adapters start, train and are written as those of transformers with peft, in every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_cases import Case, differences, prepare, run_cases
from megatron_lora_runs import ALL, EXPORTED, FIRST, WAYS
from megatron_models import make_arguments
from megatron_ranks import launch
from megatron_truth import Truth
from safetensors.torch import load_file

from slime_core.run.tracking import read_metrics
from slime_megatron.refusals import refused

pytest.importorskip("megatron.core")

TIMEOUT_S = 400
pytestmark = [
    pytest.mark.timeout(TIMEOUT_S + 60),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),  # in peft
]

RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
ONE = [
    Case("qwen3", lora=ALL, reference=True),
    Case("glm4_moe_lite", lora=ALL, options=RECOMPUTED),
]
TWO = [
    Case("qwen3", tensor=2, lora=ALL, reference=True),
    Case("qwen3", tensor=2, sequence=True, lora=ALL),
    Case("qwen3", tensor=2, sequence=True, lora=ALL, options=RECOMPUTED),
    Case("qwen3", tensor=2, lora=("down_proj", "gate_proj", "k_proj")),
    Case("qwen3", pipeline=2, lora=ALL, options=FIRST),
    Case("qwen3", context=2, lora=ALL),
    Case("qwen3", data=2, lora=ALL),
    Case("qwen3, 3 groups", tensor=2, lora=ALL),
    Case("glm4", tensor=2, lora=ALL),
    Case("glm4", tensor=2, sequence=True, lora=ALL, reference=True),
    Case("qwen2", tensor=2, lora=ALL),
    Case("qwen2", pipeline=2, lora=ALL),
    Case("gemma2", tensor=2, sequence=True, lora=ALL, reference=True),
    Case("glm4_moe_lite", tensor=2, expert=2, sequence=True, lora=ALL, reference=True),
    Case("glm4_moe_lite", data=2, expert=2, lora=ALL),
    Case("glm4_moe_lite, 5 heads", tensor=2, expert=2, sequence=True, lora=ALL),
    Case("glm4_moe_lite, dense", tensor=2, lora=ALL, fault="megatron_faults:no_experts_in_the_layout"),
    Case("qwen3_moe", pipeline=2, lora=("gate_proj", "o_proj"), options=FIRST),
]
FAULTS = [
    Case("qwen3", tensor=2, sequence=True, lora=ALL, fault="megatron_lora_runs:adapters_not_marked"),
    Case("qwen3", tensor=2, lora=ALL, fault="megatron_lora_runs:products_with_a_not_summed"),
]
Found = Callable[[Case], tuple[Truth, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the checkpoints, and what transformers and peft compute."""
    path = tmp_path_factory.mktemp("lora")
    for case in (*ONE, *TWO, *FAULTS, *EXPORTED, *(case for pair in WAYS.values() for case in pair)):
        prepare(case, path)
    return path


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What two ranks found."""
    cases = sorted([*TWO, *FAULTS], key=lambda case: (case.layout, bool(case.fault)))
    return launch("megatron_lora_runs:probe", (cases, folder), 2, folder, TIMEOUT_S)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What a single process found."""
    return run_cases(ONE, folder, TIMEOUT_S)


@pytest.fixture(scope="module")
def found(folder: Path, request: pytest.FixtureRequest) -> Found:
    """What transformers with peft computes for a case, and what its ranks found."""

    def of(case: Case) -> tuple[Truth, list[dict[str, Any]]]:
        truth = Truth.read(folder / case.truth)
        if case.ranks == 1:
            return truth, request.getfixturevalue("alone")[str(case)]
        both = request.getfixturevalue("ranks")
        return truth, [rank.get(str(case), {"error": rank.get("error")}) for rank in both]

    return of


@pytest.mark.parametrize("case", [*ONE, *TWO], ids=str)
def test_adapters_start_and_train_as_those_of_peft(found: Found, case: Case) -> None:
    truth, results = found(case)
    for number, rank in enumerate(results):
        assert "error" not in rank, f"rank {number}: {rank['error']}"
        assert differences(truth, rank) == {}, f"rank {number}"
        assert rank["weights"].keys() == truth.weights.keys() - tied(case)
    trained = {name for rank in results for name in rank["gradients"]}
    assert all("_lora." in name for name in trained)
    assert len(trained) == len(truth.given) > 0
    assert all(truth.gradients[name].any() for name in truth.given)


def tied(case: Case) -> set[str]:
    """The name, in transformers, of an output layer that is the embedding."""
    return {"lm_head.weight"} if case.model.startswith(("qwen2", "gemma2")) else set()


@pytest.mark.parametrize("case", FAULTS, ids=str)
def test_a_planted_fault_is_seen(found: Found, case: Case) -> None:
    truth, results = found(case)
    for rank in results:
        off = differences(truth, rank)
        assert "gradients" in off
        assert not {"log_probs", "loaded", "loss"} & off.keys()


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_peft_and_transformers_load_what_is_exported(ranks: Any, folder: Path, case: Case) -> None:
    from megatron_adapters import as_exported
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def load(path: Path) -> Any:
        options: dict[str, Any] = {"experts_implementation": "eager"} if "moe" in case.model else {}
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()

    path, ids = folder / f"exported {case.model}", torch.arange(24)[None] * 7 % 251
    truth = Truth.read(folder / case.truth)
    with torch.no_grad():
        base = load(folder / case.model)(ids).logits
        expected = as_exported(case.model, truth)(ids).logits
        merged = load(path)(ids).logits
        read = PeftModel.from_pretrained(load(folder / case.model), path / "adapter").eval()(ids).logits
    spread = (expected - base).abs().max()
    assert spread > 0.1
    assert (merged - expected).abs().max() < 2e-5 * spread
    assert (read - expected).abs().max() < 2e-5 * spread
    stored, adapter = load_file(path / "model.safetensors"), load_file(path / "adapter" / "adapter_model.safetensors")
    assert stored.keys() == load_file(folder / case.model / "model.safetensors").keys()
    assert {name.removeprefix("base_model.model."): t.tolist() for name, t in adapter.items()} == {
        name: t.tolist() for name, t in truth.given.items()
    }


@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on_from_a_state_that_holds_adapters_alone(ranks: Any, way: str) -> None:
    for rank in ranks:
        resumed = rank["resumed"][way]
        assert resumed["weights"]
        assert resumed["stored"] == ["lora_A", "lora_B"]
        exact = WAYS[way][0] == WAYS[way][1]
        assert resumed["losses"] == (resumed["expected"] if exact else pytest.approx(resumed["expected"], abs=2e-6))
        assert len(resumed["messages"]) == (2 if exact else 0)
        assert all("--lora-rank and --target-modules" in message for message in resumed["messages"])
        assert not exact or "a run with LoRA, which holds adapters alone" in resumed["start"]


def test_a_state_on_disk_exports_what_its_model_does(ranks: Any) -> None:
    assert [*ranks[0]["exported"], *(ranks[0]["resumed"][way]["exported"] for way in WAYS)] == [True] * 5


def test_names_of_layers_that_are_not_there_are_refused_with_those_that_are(ranks: Any) -> None:
    unknown, _ = ranks[0]["refused"]
    assert unknown == (
        "--target-modules q_proj names no linear layer in the blocks of a glm4_moe_lite model. It has: down_proj, gate_proj, "
        "kv_a_proj_with_mqa, kv_b_proj, o_proj, q_a_proj, q_b_proj, up_proj; all-linear means all of them."
    )


def test_a_pipeline_stage_without_adapters_is_refused(ranks: Any) -> None:
    for rank in ranks:
        assert "--target-modules gate_proj: no layer of pipeline stage 1 gets an adapter" in rank["refused"][1]


def test_a_critic_trains_its_head_whole_and_the_rest_by_adapters(ranks: Any) -> None:
    assert [rank["critic"]["trained"] for rank in ranks] == [[], ["value_head.weight"]]
    losses = ranks[0]["critic"]["losses"]
    assert losses == ranks[1]["critic"]["losses"]
    assert losses[2] < losses[1] < losses[0]


def test_dropout_is_refused_where_there_are_adapters() -> None:
    (message,) = refused(make_arguments(lora_rank=8, lora_dropout=0.1))
    assert message.startswith("--lora-dropout is 0.1: this backend trains without dropout")
    assert refused(make_arguments(lora_rank=0, lora_dropout=0.1)) == refused(make_arguments(lora_rank=8)) == []


def test_a_run_follows_that_of_the_torch_backend(tiny_model: Path, chat_rows: Path, tmp_path: Path) -> None:
    words = [
        *("train", "--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *(
            "--rollout-function-path",
            "sft",
            "--loss-type",
            "sft_loss",
            "--rollout-batch-size",
            "4",
            "--num-rollout",
            "4",
        ),
        *("--eval-prompt-data", "held", f"{chat_rows}@[0:6]", "--eval-interval", "2", "--lr", "0.02", "--seed", "7"),
        *("--lora-rank", "8", "--adam-eps", "1e-4"),
    ]
    curves = {}
    for backend in ("megatron", "torch"):
        run = tmp_path / backend
        run.mkdir()
        own = [*words, "--train-backend", backend, "--run-dir", str(run)]
        (rank,) = launch("megatron_lora_runs:command", (own,), 1, run, TIMEOUT_S)
        assert rank == {"code": 0}, rank.get("error")
        lines = read_metrics(run / "metrics.jsonl")
        curves[backend] = [
            line[name] for line in lines for name in ("train/loss", "train/grad_norm", "eval/held/loss") if name in line
        ]
    assert len(curves["torch"]) == 2 * 4 + 3
    assert max(curves["torch"][-3:]) < curves["torch"][0] - 0.1, "adapters learn"
    assert curves["megatron"] == pytest.approx(curves["torch"], abs=1e-4)


def test_layers_of_transformer_engine_get_no_adapters_and_that_is_said() -> None:
    found = refused(make_arguments(lora_rank=8, transformer_impl="transformer_engine"))
    assert any(message.startswith("--lora-rank: adapters are made for megatron-core's own") for message in found)
