"""A run that was killed at any moment and started again ends like the unbroken one, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.run_state import differences, numbers

ROOT = Path(__file__).parents[2]
ROLLOUTS = 15  # three epochs of twenty rows, four rows a rollout


def command(mode: str, model: Path, data: Path, folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "slime_core", mode),
        *("--hf-checkpoint", str(model), "--prompt-data", str(data), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss"),
        *("--rollout-shuffle", "--num-epoch", "3", "--rollout-batch-size", "4", "--global-batch-size", "2"),
        *("--lr", "1e-3", "--lr-decay-style", "cosine", "--lr-warmup-iters", "2", "--weight-decay", "0.1"),
        *("--eval-prompt-data", "held", f"{data}@[0:4]", "--eval-interval", "4"),
        *("--save", str(folder), "--load", str(folder), "--save-interval", "1"),
        *more,
    ]


def start(words: list[str]) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(words: list[str]) -> str:
    process = start(words)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return err


def kill_when(words: list[str], moment: Callable[[], bool]) -> bool:
    """Start, SIGKILL at the moment, True if it was still running then."""
    process = start(words)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and not moment():
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        alive = process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return alive


@pytest.fixture(scope="module")
def unbroken(tiny_model, chat_rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish(command("train", tiny_model, chat_rows, folder))
    return folder


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "train-async"])
def test_a_killed_run_ends_like_the_unbroken_one(mode, unbroken, tiny_model, chat_rows, tmp_path):
    words = command(mode, tiny_model, chat_rows, tmp_path)
    moments = {
        "in the middle of a save": lambda: any(tmp_path.glob(".saving_*/trainer/*")),
        "at an epoch boundary": lambda: (tmp_path / "iter_0000009").exists() or lines(tmp_path) >= 13,
        "in the middle of training": lambda: lines(tmp_path) >= 15,
    }
    for name, moment in moments.items():
        assert kill_when(words, moment), f"the run ended before it could be killed {name}"
    finish(words)
    assert not differences(unbroken, tmp_path)


@pytest.mark.slow
def test_runs_of_other_kinds_killed_at_random_moments_end_like_unbroken_ones():
    kinds = ["partial", "early stopping", "async save"]
    words = [sys.executable, "-m", "benchmarks.kills", "--quick", "--warm", "--kinds", *kinds]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        line.split("|")[1:-1]
        for line in done.stdout.splitlines()
        if line.startswith(tuple(f"| {kind} |" for kind in kinds))
    ]
    assert [(row[0].strip(), row[1].strip(), row[-2].strip()) for row in rows] == [(kind, "2", "0") for kind in kinds]


def test_sync_and_async_give_the_same_weights_and_metrics(unbroken, tiny_model, chat_rows, tmp_path):
    finish(command("train-async", tiny_model, chat_rows, tmp_path))
    assert not differences(unbroken, tmp_path)


def test_the_comparison_notices_a_difference(unbroken, tiny_model, chat_rows, tmp_path):
    finish(command("train", tiny_model, chat_rows, tmp_path, "--rollout-seed", "43"))
    found = differences(unbroken, tmp_path)
    last = f"iter_{ROLLOUTS - 1:07d}"
    for what in (
        "metrics: train/loss",
        f"{last}/trainer/model.",
        f"{last}/trainer/optimizer.",
        f"{last}/state.json/arguments/rollout_seed",
    ):
        assert any(difference.startswith(what) for difference in found), what


def test_a_finished_run_says_that_it_is_done(unbroken, tiny_model, chat_rows):
    before = numbers(unbroken)
    assert f"{ROLLOUTS} of {ROLLOUTS} rollouts are done" in finish(command("train", tiny_model, chat_rows, unbroken))
    assert numbers(unbroken) == before


def refused(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_changed_arguments_and_data_are_named(unbroken, tiny_model, chat_rows, tmp_path):
    words = command("train", tiny_model, chat_rows, unbroken, "--lr", "0.5")
    assert "--lr was 0.001 and is 0.5" in refused(words)
    original = chat_rows.read_bytes()
    try:
        chat_rows.write_bytes(original.replace(b"What is 7 ", b"What is 8 "))
        assert f"the data file {chat_rows} has changed" in refused(command("train", tiny_model, chat_rows, unbroken))
    finally:
        chat_rows.write_bytes(original)


def test_a_new_run_does_not_overwrite_an_earlier_one(unbroken, tiny_model, chat_rows):
    words = command("train", tiny_model, chat_rows, unbroken)
    position = words.index("--load")
    del words[position : position + 2]
    message = refused(words)
    assert "holds a checkpoint of an earlier run" in message
    assert f"Add --load {unbroken}" in message
