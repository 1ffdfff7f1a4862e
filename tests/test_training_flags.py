"""Whole RL runs with slime's training flags: what each does to the numbers, and that a run which is resumed equals one that was
never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slime_core.cli.main import main
from slime_core.run.tracking import read_metrics

REDUCER = ("--custom-pg-loss-reducer-function-path", "rl_hooks.over_three_tokens")


@pytest.fixture
def flags(tiny_model, chat_rows) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "rl_hooks.even_tokens"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "3", "--rollout-max-response-len", "6"),
        *("--rollout-temperature", "0.8", "--lr", "1e-3", "--num-rollout", "3", "--lr-decay-style", "constant"),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "300"),
    ]


def run(folder: Path, flags: list[str], *more: str, command: str = "train") -> list[dict]:
    assert main([command, *flags, *more, "--run-dir", str(folder), "--save-hf", str(folder / "hf")]) == 0
    return [line for line in read_metrics(folder / "metrics.jsonl") if "train/loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "hf" / "model.safetensors")


def furthest(one: Path, other: Path) -> float:
    """The largest difference between the weights that two runs ended with."""
    theirs = weights(other)
    return max((tensor - theirs[name]).abs().max().item() for name, tensor in weights(one).items())


def test_a_reducer_that_divides_by_a_constant_is_the_constant_length_loss(flags, tmp_path):
    sgd = ("--optimizer", "sgd", "--weight-decay", "0", "--clip-grad", "0")
    run(tmp_path / "constant", flags, *sgd, "--constant-length-loss", "--lr", "0.1")  # over 6 tokens
    run(tmp_path / "own", flags, *sgd, *REDUCER, "--lr", "0.05")  # over 3
    run(tmp_path / "fast", flags, *sgd, *REDUCER, "--lr", "0.1")
    assert furthest(tmp_path / "own", tmp_path / "constant") < 1e-6
    assert furthest(tmp_path / "fast", tmp_path / "constant") > 1e-5


def test_mismatch_metrics_change_no_weight_and_are_the_trainers_own(flags, tmp_path):
    several = ("--num-steps-per-rollout", "2", "--use-rollout-logprobs")
    run(tmp_path / "plain", flags, *several)
    lines = run(tmp_path / "measured", flags, *several, "--get-mismatch-metrics")
    assert furthest(tmp_path / "plain", tmp_path / "measured") == 0.0
    # The log-probs that are compared are those before the first step, on which engine and trainer agree but for rounding.
    assert all(line["train/tis_abs"] < 1e-5 < line["train/ratio"] for line in lines)
    assert all(line["train/train_rollout_logprob_abs_diff"] > 1e-5 for line in lines), (
        "this one is under present weights"
    )


def test_sequences_that_the_policy_has_left_are_masked(flags, tmp_path):
    more = ("--num-steps-per-rollout", "3", "--use-opsm", "--lr", "1e-2")
    lines = run(tmp_path / "run", flags, *more, "--num-rollout", "2")
    assert any(line["train/opsm_clipfrac"] > 0 for line in lines)
    run(tmp_path / "wide", flags, *more, "--num-rollout", "2", "--opsm-delta", "100")
    assert furthest(tmp_path / "run", tmp_path / "wide") > 0


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--reset-optimizer-states", "--num-steps-per-rollout", "2"], id="reset"),
        pytest.param(["--only-train-params-name-list", r"layers\.1\."], id="a part"),
        pytest.param(["--use-kl-loss", "--kl-loss-coef", "0.1", "--use-unbiased-kl", "--use-opsm"], id="loss"),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(flags, tmp_path, more):
    run(tmp_path / "whole", flags, *more)
    resumed(tmp_path, flags, *more)
    assert furthest(tmp_path / "rest", tmp_path / "whole") == 0.0
    run(tmp_path / "plain", flags)
    assert furthest(tmp_path / "plain", tmp_path / "whole") > 0, "the options act"


def resumed(folder: Path, flags: list[str], *more: str, after: int = 1, command: str = "train") -> None:
    """The same run, stopped after so many rollouts and gone on with; its folder is `rest`."""
    save = ("--save", str(folder / "save"), "--save-interval", "1")
    run(folder / "part", flags, *more, *save, command=command)
    for newer in (folder / "save").glob("iter_*"):
        if int(newer.name.removeprefix("iter_")) >= after:
            shutil.rmtree(newer)
    run(folder / "rest", flags, *more, "--load", str(folder / "save"), command=command)
