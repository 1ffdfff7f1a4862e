"""What a run does besides training: evaluation, early stopping, export, and what it leaves on disk."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from slime_core.cli import main
from slime_core.errors import ArgumentError
from slime_core.run.early_stopping import EarlyStopping
from slime_core.run.launch import _early_stopping
from slime_core.run.stored_run import find_run
from slime_core.run.tracking import JsonlTracker, read_metrics
from slime_core.runtime import handles as runtime
from slime_core.runtime.handles import LocalHandle, wait


@pytest.fixture
def flags(tiny_model, chat_rows, tmp_path) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss"),
        *("--rollout-batch-size", "4", "--lr", "1e-2", "--run-dir", str(tmp_path / "run")),
        *("--eval-prompt-data", "held", f"{chat_rows}@[0:6]", "short", f"{chat_rows}@[0:2]"),
    ]


def held_out(lines: list[dict]) -> dict[int, float]:
    return {line["rollout_id"]: line["eval/held/loss"] for line in lines if "eval/held/loss" in line}


def test_evaluation_runs_before_training_and_at_its_interval_and_the_loss_falls(flags, tmp_path):
    assert main(["train-async", *flags, "--num-rollout", "6", "--eval-interval", "2"]) == 0
    losses = held_out(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert list(losses) == [-1, 1, 3, 5]
    assert losses[5] < losses[-1]


def reference_loss(model_dir: Path, rows: list[dict]) -> float:
    """Mean negative log-likelihood of the answers and their end-of-turn tokens, with plain transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    total, count = 0.0, 0
    for row in rows:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        prompt = tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
        start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        stop = len(ids) - 1  # the newline after the end of the turn is not trained
        with torch.no_grad():
            log_probs = model(ids[None]).logits[0].log_softmax(-1)
        total -= log_probs[torch.arange(start - 1, stop - 1), ids[start:stop]].sum().item()
        count += stop - start
    return total / count


def test_the_exported_model_has_the_loss_that_the_run_reported(flags, tiny_model, chat_rows, tmp_path):
    words = [*flags, "--num-rollout", "4", "--eval-interval", "4", "--save-hf", str(tmp_path / "model")]
    assert main(["train", *words]) == 0
    losses = held_out(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    rows = [json.loads(line) for line in chat_rows.read_text().splitlines()[:6]]
    assert losses[-1] == pytest.approx(reference_loss(tiny_model, rows), rel=1e-5)
    assert losses[3] == pytest.approx(reference_loss(tmp_path / "model", rows), rel=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template


def test_a_checkpoint_can_be_evaluated_without_training(flags, tmp_path):
    words = [*flags, "--num-rollout", "4", "--eval-interval", "4", "--save", str(tmp_path / "save")]
    assert main(["train", *words]) == 0
    trained = held_out(read_metrics(tmp_path / "run" / "metrics.jsonl"))[3]
    only = [*flags, "--num-rollout", "0", "--load", str(tmp_path / "save"), "--run-dir", str(tmp_path / "only")]
    assert main(["train", *only]) == 0
    lines = read_metrics(tmp_path / "only" / "metrics.jsonl")
    assert len(lines) == 1
    assert lines[0]["eval/held/loss"] == trained


def test_who_looks_at_an_earlier_checkpoint_loses_no_metrics(flags, tmp_path):
    save = ["--save", str(tmp_path / "save"), "--save-interval", "1"]
    words = [*flags, *save, "--num-rollout", "3", "--eval-interval", "3"]
    assert main(["train", *words]) == 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = read_metrics(metrics)
    assert [line["rollout_id"] for line in before] == [-1, 0, 1, 2, 2]
    look = ["--load", str(tmp_path / "save"), "--ckpt-step", "0", "--num-rollout", "0"]
    assert main(["train", *words, *look]) == 0
    *kept, last = read_metrics(metrics)
    assert kept == before
    assert list(held_out([last])) == [0]


@pytest.mark.parametrize("more", [(), ("--skip-eval-before-train",)], ids=["", "of-a-recipe-that-skips-it"])
def test_the_initial_model_can_be_evaluated_without_training(flags, tmp_path, more):
    assert main(["train", *flags, "--num-rollout", "0", *more]) == 0
    assert list(held_out(read_metrics(tmp_path / "run" / "metrics.jsonl"))) == [-1]


def test_a_run_stops_early_when_nothing_is_gained(flags, tmp_path):
    words = [*flags, "--num-rollout", "50", "--eval-interval", "1", "--lr", "0", "--early-stopping-patience", "2"]
    assert main(["train-async", *words, "--save", str(tmp_path / "save")]) == 0
    losses = held_out(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert list(losses) == [-1, 0, 1]
    assert [p.name for p in (tmp_path / "save").glob("iter_*")] == ["iter_0000001"]


@pytest.mark.parametrize(
    ("path", "folders"),
    [
        ("hf-{rollout_id}", ["hf-1", "hf-3"]),
        ("{{[x]}}/{rollout_id:03d}/hf", ["{[x]}/001/hf", "{[x]}/003/hf"]),
    ],
)
def test_a_model_is_exported_with_every_checkpoint_when_the_path_says_so_and_found_again(
    path, folders, flags, tmp_path
):
    words = [*flags, "--num-rollout", "4", "--eval-interval", "4", "--save-hf", str(tmp_path / "run" / path)]
    assert main(["train", *words, "--save", str(tmp_path / "save"), "--save-interval", "2"]) == 0
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert sorted(p.parent for p in moved.rglob("config.json")) == [moved / folder for folder in folders]
    assert find_run(moved).exported() == [moved / folder for folder in folders]


def test_the_run_directory_says_how_the_run_came_about(flags, tmp_path):
    assert main(["train", *flags, "--num-rollout", "1", "--eval-interval", "1"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["provenance"]["lr"] == "command line"
    assert config["provenance"]["weight_decay"] == "default"
    assert config["components"]["loss"] == "sft_loss of losses (slime-losses 0.1.0)"
    assert config["plugins"]["slime-rollout-sft"] == "0.1.0"


@pytest.mark.parametrize(
    "batch", [["--micro-batch-size", "3"], ["--use-dynamic-batch-size", "--max-tokens-per-gpu", "40"]]
)
def test_the_result_does_not_depend_on_micro_batches(batch, flags, tmp_path):
    words = [*flags, "--num-rollout", "3", "--eval-interval", "3"]
    assert main(["train", *words, "--run-dir", str(tmp_path / "one")]) == 0
    assert main(["train", *words, *batch, "--run-dir", str(tmp_path / "other")]) == 0
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "other"))
    for a, b in zip(one, other, strict=True):
        assert {k: v for k, v in a.items() if "perf" not in k and k != "time"} == pytest.approx(
            {k: v for k, v in b.items() if "perf" not in k and k != "time"}, rel=2e-5
        )


# -------------------------------------------------------------------------------------------------------- the parts


def test_early_stopping_counts_only_evaluations_without_a_new_best():
    watch = EarlyStopping(patience=2, metric="loss")
    assert [watch.update({"eval/a/loss": x}, 0) for x in (3.0, 2.0, 2.5, 1.9, 1.9, 2.0)] == [False] * 5 + [True]
    other = EarlyStopping(patience=2, metric="loss")
    other.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert other == watch


def test_a_run_that_was_stopped_early_goes_on_with_more_patience():
    watch = EarlyStopping(patience=2, metric="loss")
    assert [watch.update({"eval/a/loss": x}, n) for n, x in enumerate((2.0, 3.0, 3.0))] == [False, False, True]
    other = EarlyStopping(patience=3, metric="loss")
    other.load_state_dict(watch.state_dict())
    assert not other.stopped
    assert other.update({"eval/a/loss": 2.5}, 3)


def test_what_another_metric_had_as_its_best_counts_for_nothing():
    args = SimpleNamespace(early_stopping_patience=1, early_stopping_metric="loss")
    rewards = EarlyStopping(1, "reward")
    rewards.update({"eval/a/reward": 0.5}, 0)
    state = {"early_stopping": rewards.state_dict(), "arguments": {"early_stopping_metric": "reward"}}
    assert _early_stopping(args, state) == EarlyStopping(1, "loss")
    state["arguments"] = {"early_stopping_metric": "loss"}
    assert _early_stopping(args, state).best == 0.5


def test_early_stopping_knows_which_way_is_up():
    assert EarlyStopping(1, "reward").update({"eval/a/reward": 1.0}, 0) is False
    rising = EarlyStopping(1, "-eval/a/score")
    assert [rising.update({"eval/a/score": x}, 0) for x in (1.0, 2.0, 1.5)] == [False, False, True]
    with pytest.raises(ArgumentError, match="the evaluation measured only: eval/a/loss"):
        EarlyStopping(1, "reward").update({"eval/a/loss": 1.0}, 0)


def test_metrics_after_the_checkpoint_and_a_line_cut_short_are_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    for rollout_id in (-1, 0, 1, 2):
        tracker.log({"x": 0.1 + rollout_id}, rollout_id)
    tracker.close()
    with path.open("a") as file:
        file.write('{"rollout_id": 3, "x"')
    JsonlTracker(path, resume_after=1).close()
    assert [line["rollout_id"] for line in read_metrics(path)] == [-1, 0, 1]
    JsonlTracker(path, None).close()
    assert read_metrics(path) == []


def test_of_an_evaluation_that_is_made_again_no_line_is_there_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    for rollout_id in (0, 1):
        tracker.log({"perf/rollout_time": 1.0}, rollout_id)
        tracker.log({"eval/held/loss": 2.0}, rollout_id)
    tracker.close()
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # as a full disk may leave it
    JsonlTracker(path, resume_after=1).close()
    assert path.read_bytes().endswith(b"}\n")
    JsonlTracker(path, resume_after=1, again=1).close()
    lines = read_metrics(path)
    assert [line["rollout_id"] for line in lines] == [0, 0, 1]
    assert "eval/held/loss" not in lines[-1]


def test_whoever_waits_says_for_what(monkeypatch, caplog):
    monkeypatch.setattr(runtime, "FIRST_NOTICE_S", 0.02)
    future: Future[int] = Future()
    threading.Timer(0.2, future.set_result, [7]).start()
    monkeypatch.setattr(runtime, "_took", {})
    with caplog.at_level(logging.INFO):
        assert wait(future, "machine 1") == 7
    notices = [r.getMessage() for r in caplog.records]
    assert notices
    assert all(text.startswith("waiting for machine 1 for") for text in notices)
    assert len(notices) <= 5, "it speaks less and less often"
    assert {r.levelno for r in caplog.records} == {logging.INFO}, "nothing is wrong"
    caplog.clear()
    again: Future[int] = Future()
    threading.Timer(0.2, again.set_result, [8]).start()
    with caplog.at_level(logging.INFO):
        assert wait(again, "machine 2") == 8
    assert not caplog.records, "the same took as long before"


def test_a_handle_runs_calls_in_order_and_hands_exceptions_on():
    class Worker:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def add(self, number: int) -> list[int]:
            self.seen.append(number)
            return list(self.seen)

        def fail(self) -> None:
            raise TimeoutError("its own")

    handle = LocalHandle(Worker(), "worker")
    futures = [handle.call(Worker.add, n) for n in range(5)]
    assert wait(futures[-1], "the last") == [0, 1, 2, 3, 4]
    with pytest.raises(TimeoutError, match="its own"):
        wait(handle.call(Worker.fail), "the failure")
    handle.close()
