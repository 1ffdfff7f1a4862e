"""slime's training flags on Ray, where the trainer is two ranks that each have a part of every weight."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.run.tracking import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_copies_of_weights_are_kept_by_all_ranks_and_a_stopped_run_goes_on_bit_for_bit(
    cluster: Any, tiny_model: Path, chat_rows: Path, tmp_path: Path
) -> None:
    flags = [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "rl_hooks.even_tokens"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "3", "--rollout-max-response-len", "6"),
        *("--rollout-temperature", "0.8", "--lr", "1e-2", "--num-rollout", "4", "--lr-decay-style", "constant"),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "300", "--actor-num-gpus-per-node", "2"),
        *("--use-kl-loss", "--kl-loss-coef", "0.1", "--kl-loss-type", "k3", "--ref-update-interval", "2"),
        *("--update-weights-interval", "2", "--keep-old-actor", "--reset-optimizer-states"),
        *("--freeze-params-name-list", "embed_tokens", "--use-unbiased-kl"),
    ]

    def run(name: str, *more: str) -> list[dict[str, Any]]:
        folder = tmp_path / name
        assert main(["train", *flags, *more, "--run-dir", str(folder), "--save-hf", str(folder / "hf")]) == 0
        return [line for line in read_metrics(folder / "metrics.jsonl") if "train/loss" in line]

    lines = run("whole", "--save", str(tmp_path / "save"), "--save-interval", "1")
    # Sums over two ranks come in another order than those of one.
    assert [abs(line["train/ratio"] - 1.0) > 1e-6 for line in lines] == [False, True, False, True]
    assert [line["train/kl_loss"] > 1e-9 for line in lines] == [False, True, False, True]
    assert all(line["train/train_rollout_logprob_abs_diff"] < 1e-5 for line in lines)
    before, after = (
        load_file(tiny_model / "model.safetensors"),
        load_file(tmp_path / "whole" / "hf" / "model.safetensors"),
    )
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert changed
    assert not any("embed_tokens" in name for name in changed)
    for newer in (1, 2, 3):
        shutil.rmtree(tmp_path / "save" / f"iter_{newer:07d}")
    run("rest", "--load", str(tmp_path / "save"))
    rest = load_file(tmp_path / "rest" / "hf" / "model.safetensors")
    assert all(weight.equal(rest[name]) for name, weight in after.items())
