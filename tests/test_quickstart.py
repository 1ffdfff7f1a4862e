"""The first quickstart: its data is what it says, its recipe runs, and what it prints at the end is what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from slime_core.cli import main
from slime_core.run.tracking import read_metrics

ROOT = Path(__file__).parent.parent


def written(folder: Path, seed: int) -> dict[str, list[tuple[str, str]]]:
    """The (request, call) pairs of each file that scripts/tool_calls.py writes."""
    command = [sys.executable, str(ROOT / "scripts" / "tool_calls.py"), "--seed", str(seed), "--folder", str(folder)]
    subprocess.run(command, check=True)
    found = {}
    for path in folder.glob("tool_calls_*.jsonl"):
        rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.stem.rpartition("_")[2]] = [(row[1]["content"], row[2]["content"]) for row in rows]
    return found


def test_requests_are_answered_by_calls_with_their_words_and_held_out_ones_are_not_trained(tmp_path):
    rows = written(tmp_path / "a", seed=1)
    assert rows == written(tmp_path / "b", seed=1)
    assert rows != written(tmp_path / "c", seed=2)
    trained, held_out = ({request for request, _ in rows[name]} for name in ("train", "heldout"))
    assert len(held_out) >= 50
    assert not trained & held_out
    words = [set(" ".join(request for request, _ in rows[name]).split()) for name in ("train", "heldout")]
    assert words[1] - words[0], "held-out requests have words of their own"
    for request, call in rows["train"] + rows["heldout"]:
        arguments = json.loads(call)
        assert arguments.pop("tool") in ("light", "timer", "event", "message")
        assert all(str(value) in request for value in arguments.values()), (request, call)


def test_what_is_printed_at_the_end_is_what_the_evaluations_measured(tiny_model, tmp_path):
    rows = written(tmp_path / "tasks", seed=1)
    run = tmp_path / "run"
    heldout = str(tmp_path / "tasks" / "tool_calls_heldout.jsonl")
    flags = [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(tmp_path / "tasks" / "tool_calls_train.jsonl")),
        *("--eval-prompt-data", "heldout", heldout, "--run-dir", str(run), "--eval-max-response-len", "4"),
        *("--num-rollout", "1", "--rollout-batch-size", "2", "--global-batch-size", "2", "--eval-interval", "1"),
        *("--lr-warmup-iters", "0"),
    ]
    assert main(["train-async", str(ROOT / "recipes" / "quickstart-sft.yaml"), *flags]) == 0
    measured = [
        line["eval/heldout/reward"] for line in read_metrics(run / "metrics.jsonl") if "eval/heldout/reward" in line
    ]
    right = [f"{round(share * 64)} ({share:.0%})" for share in measured]
    command = [sys.executable, str(ROOT / "scripts" / "before_after.py"), str(run)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"right answers to 64 held-out requests: before {right[0]}, after {right[1]}" in printed
    assert f"asked    {rows['heldout'][0][0]}" in printed
