"""Whole runs of reinforcement learning whose prompts have images: real engine, real trainer, a tiny random model."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from slime_core.cli import main
from slime_core.run.tracking import read_metrics

SGD = ("--optimizer", "sgd", "--lr", "0.05", "--lr-decay-style", "constant")


def flags(shown: Path, *more: str) -> list[str]:
    return [
        *(
            "train",
            "--hf-checkpoint",
            str(shown),
            "--prompt-data",
            str(shown / "rows.jsonl"),
            "--input-key",
            "messages",
        ),
        *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "image_hooks.sees_images"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "3", "--rollout-max-response-len", "6"),
        *("--num-rollout", "2", "--use-dynamic-batch-size", "--max-tokens-per-gpu", "600", *SGD, *more),
    ]


def run(folder: Path, words: list[str], *more: str) -> list[dict]:
    assert main([*words, *more, "--run-dir", str(folder), "--save-hf", str(folder / "hf")]) == 0
    return [line for line in read_metrics(folder / "metrics.jsonl") if "train/grad_norm" in line]


def difference(one: Path, other: Path) -> float:
    mine, theirs = (load_file(folder / "hf" / "model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    return max((mine[name] - theirs[name]).abs().max().item() for name in mine)


def test_grpo_with_images_is_on_policy_and_sharing_prompts_changes_nothing(shown, tmp_path):
    lines = run(tmp_path / "shared", flags(shown), "--use-kl-loss", "--kl-loss-type", "k3")
    for line in lines:
        assert line["train/ratio"] == pytest.approx(1.0, abs=1e-6)
        assert 0.0 <= line["train/train_rollout_logprob_abs_diff"] < 1e-5
        assert line["train/grad_norm"] > 0
    run(tmp_path / "alone", flags(shown), "--use-kl-loss", "--kl-loss-type", "k3", "--no-share-prompts")
    assert difference(tmp_path / "shared", tmp_path / "alone") <= 1e-6
    before = load_file(shown / "model.safetensors")
    after = load_file(tmp_path / "shared" / "hf" / "model.safetensors")
    assert any((before[name] != after[name]).any() for name in before if "visual." in name)


def test_partial_rollouts_with_images_resume_bit_for_bit(shown, tmp_path):
    partial = ("--partial-rollout", "--over-sampling-batch-size", "8", "--num-rollout", "4")
    words = flags(shown, *partial, "--rollout-max-response-len", "24", "--save-interval", "1")
    words += ["--rollout-stop-token-ids", *map(str, range(0, 256, 12))]  # responses are of all lengths
    evaluated = ("--eval-prompt-data", "held", str(shown / "rows.jsonl@[0:3]"), "--eval-interval", "2")
    words += [*evaluated, "--save-debug-rollout-data", str(tmp_path / "dump_{rollout_id}")]
    lines = run(tmp_path / "whole", words, "--save", str(tmp_path / "kept"))
    taken = [line["rollout/buffered_tokens_taken"] for line in lines]
    assert taken[0] == 0
    assert taken[2] > 0, "no response was continued behind the checkpoint"
    run(tmp_path / "rest", words, "--load", str(tmp_path / "kept"), "--ckpt-step", "1")
    assert difference(tmp_path / "whole", tmp_path / "rest") == 0.0


def test_generate_functions_and_rewards_see_images_and_may_ask_without(shown, tmp_path):
    more = ("--dump-details", str(tmp_path / "details"), "--image-max-pixels", "7000")
    lines = run(tmp_path / "run", flags(shown), "--custom-generate-function-path", "image_hooks.in_two_turns", *more)
    assert all(0.0 <= line["train/train_rollout_logprob_abs_diff"] < 1e-5 for line in lines)
    kept, own = (
        AutoImageProcessor.from_pretrained(f, backend="pil") for f in (tmp_path / "details" / "processor", shown)
    )
    assert kept.size["longest_edge"] == 7000 < own.size["longest_edge"]
    assert kept.merge_size == own.merge_size


def test_an_engine_that_takes_no_images_is_refused_before_the_run(shown, tmp_path, capsys):
    words = [*flags(shown), "--rollout-engine", "image_hooks.BlindEngine", "--run-dir", str(tmp_path / "run")]
    assert main(words) != 0
    assert "cannot be shown them: it takes none" in capsys.readouterr().err
