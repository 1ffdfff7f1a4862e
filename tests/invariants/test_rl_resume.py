"""An RL run that is killed in the middle of a rollout and started again ends like the unbroken one, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import rl_hooks
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from slime_core.run.tracking import read_metrics

HOOKS = Path(rl_hooks.__file__).parent


def command(mode: str, model: Path, data: Path, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "slime_core", mode, "--hf-checkpoint", str(model), "--prompt-data", str(data)),
        *("--input-key", "messages", "--apply-chat-template", "--rollout-engine", "local", "--rollout-shuffle"),
        *("--custom-rm-path", "rl_hooks.even_tokens", "--rollout-batch-size", "3", "--n-samples-per-prompt", "3"),
        *("--partial-rollout", "--over-sampling-batch-size", "5", "--rollout-stop", "e", "a"),
        *("--dynamic-sampling-filter-path", "rl_hooks.in_half_of_the_groups", "--rollout-max-response-len", "12"),
        *("--num-rollout", "8", "--lr", "1e-3", "--num-steps-per-rollout", "3"),
        *("--save", str(folder), "--load", str(folder), "--save-interval", "2"),
    ]


def start(words: list[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (str(HOOKS), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(words: list[str]) -> None:
    process = start(words)
    _, err = process.communicate(timeout=250)
    assert process.returncode == 0, err


def result(folder: Path) -> tuple[dict, dict[str, torch.Tensor], list[dict]]:
    last = folder / "iter_0000007"
    state = json.loads((last / "state.json").read_text())
    dcp_to_torch_save(last / "trainer", folder / "state.pt")
    trainer = torch.load(folder / "state.pt", weights_only=True)
    numbers = [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")}
        for line in read_metrics(folder / "metrics.jsonl")
    ]
    return state, {name: t for name, t in trainer.items() if name.startswith("model.")}, numbers


def test_a_run_killed_in_a_rollout_ends_like_the_unbroken_one(tiny_model, chat_rows, tmp_path):
    mode = "train-async"  # in which a checkpoint holds the rollout that waits as well
    finish(command(mode, tiny_model, chat_rows, tmp_path / "whole"))
    words = command(mode, tiny_model, chat_rows, tmp_path / "killed")
    process = start(words)
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "killed" / "iter_0000003").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.02)  # into the next rollout
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(words)
    (state, weights, numbers), (expected, reference, metrics) = (result(tmp_path / n) for n in ("killed", "whole"))
    assert state == expected
    assert numbers == metrics
    assert all(torch.equal(tensor, reference[name]) for name, tensor in weights.items())
    assert any(line["rollout/buffered_tokens_put_back"] for line in metrics)
