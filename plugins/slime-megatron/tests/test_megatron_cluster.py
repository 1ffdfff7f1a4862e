"""Whole runs on Ray whose models megatron-core cuts over two ranks: SFT as in one process with the torch backend, and GRPO with
the embedded engine on models with experts, where the engine's log-probs are those of the trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_models import make_model, save
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.run.tracking import read_metrics
from slime_core.testing import chat_tokenizer
from slime_report.reading.samples import read_samples

pytest.importorskip("megatron.core")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MEGATRON = ("--train-backend", "megatron", "--actor-num-gpus-per-node", "2", "--make-vocab-size-divisible-by", "8")
TENSOR = (*MEGATRON, "--tensor-model-parallel-size", "2")
EXPERTS = (*TENSOR, "--sequence-parallel", "--expert-model-parallel-size", "2")
PIPELINE = (*MEGATRON, "--pipeline-model-parallel-size", "2")

Model = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Writes one of `megatron_models.MODELS` with a tokenizer that can write conversations."""

    def make(name: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        rows = len(chat_tokenizer()) + 1  # Qwen2's class of tokenizers adds a token
        save(make_model(name, vocab_size=rows, **changes), folder)
        return folder

    return make


def run(folder: Path, *flags: str, command: str = "train") -> list[dict[str, Any]]:
    """Run a command, and return its metrics."""
    assert main([command, *flags, "--run-dir", str(folder), "--save-hf", str(folder / "hf")]) == 0
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")} for line in lines]


def kept_samples(folder: Path) -> dict[str, list[float]]:
    """The samples that all ranks of a run have recorded together, with the log-probs of their trained tokens."""
    rows, _ = read_samples(folder / "record", 10**7)
    return {row.id: [value for value in row.log_prob or () if value is not None] for row in rows}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run ended with."""
    return load_file(folder / "hf" / "model.safetensors")


def test_sft_on_two_ranks_is_that_of_the_torch_backend_in_one_process(
    cluster: Any, model: Model, chat_rows: Path, tmp_path: Path
) -> None:
    flags = (
        *("--hf-checkpoint", str(model("qwen2, 3 groups")), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss"),
        *("--rollout-batch-size", "4", "--lr", "1e-3", "--num-rollout", "3", "--rollout-shuffle", "--adam-eps", "1e-3"),
        *("--eval-prompt-data", f"{chat_rows}@[0:6]", "--eval-interval", "2", "--debug-train-only"),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "80"),  # several micro-batches
    )
    expected = run(tmp_path / "torch", *flags, "--train-backend", "torch")
    for name, layout in {"tensor": TENSOR, "pipeline": PIPELINE}.items():
        found = run(tmp_path / name, *flags, *layout)
        assert len(found) == len(expected)
        for line, wanted in zip(found, expected, strict=True):
            assert line == pytest.approx(wanted, rel=1e-5, abs=1e-6), name
        kept, alone = kept_samples(tmp_path / name), kept_samples(tmp_path / "torch")
        assert kept.keys() == alone.keys()
        assert all(kept[n] == pytest.approx(alone[n], abs=2e-3) and kept[n] for n in alone), (
            "by the ranks that had the loss"
        )
        trained, ours = weights(tmp_path / "torch"), weights(tmp_path / name)
        assert ours.keys() == trained.keys() - {"lm_head.weight"}
        assert max((ours[n] - trained[n]).abs().max().item() for n in ours) < 1e-6, name


@pytest.mark.parametrize(
    ("name", "command", "lr"),
    [
        ("glm4_moe_lite", "train", "1e-2"),
        ("qwen3_moe", "train-async", "1e-8"),  # the engine is a step behind: all but the same weights
    ],
)
def test_the_engine_has_the_log_probs_of_experts_that_are_cut_over_ranks(
    cluster: Any, model: Model, chat_rows: Path, tmp_path: Path, name: str, command: str, lr: str
) -> None:
    flags = (
        *("--hf-checkpoint", str(model(name)), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "local", "--rm-type", "random", "--num-rollout", "3"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "3", "--rollout-max-response-len", "8"),
        *("--rollout-temperature", "0.8", "--lr", lr, "--lr-decay-style", "constant"),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "400"),
    )
    lines = run(tmp_path / "run", *flags, *EXPERTS, command=command)
    assert len(lines) == 3
    for number, line in enumerate(lines):
        assert line["train/ratio"] == pytest.approx(1.0, abs=1e-6)
        assert line["train/ppo_kl"] == pytest.approx(0.0, abs=1e-6)
        assert line["train/train_rollout_logprob_abs_diff"] < 1e-5, f"after {number} steps"
        assert line["train/grad_norm"] > 0
    before, after = load_file(Path(flags[1]) / "model.safetensors"), weights(tmp_path / "run")
    assert max((after[n] - before[n]).abs().max().item() for n in after) > float(lr), "the weights have moved"
