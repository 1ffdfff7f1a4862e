"""Whole RL runs through real SGLang servers, on a CPU: the recipes, with a tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sglang_cases as cases
import yaml

from slime_core.cli import main
from slime_core.tracking import read_metrics

pytest.importorskip("sglang", reason="needs SGLang; scripts/test-sglang.sh makes an environment with it")
pytest.importorskip("sglang_router")

pytestmark = pytest.mark.timeout(900)

RECIPES = Path(__file__).parents[2] / "recipes"
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _hooks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def small(tiny_model, chat_rows) -> list[str]:
    """What makes a run of a recipe small."""
    return [
        *(
            "--hf-checkpoint",
            str(tiny_model),
            "--prompt-data",
            str(chat_rows),
            "--custom-rm-path",
            "sglang_cases.even_tokens",
        ),
        *(
            "--rollout-batch-size",
            "4",
            "--n-samples-per-prompt",
            "4",
            "--rollout-max-response-len",
            "24",
            "--lr",
            "1e-3",
        ),
    ]


def recipe(name: str, tmp_path: Path) -> str:
    """A recipe without what belongs to its own model and data."""
    options = yaml.safe_load((RECIPES / name).read_text())
    for option in ("rm_type", "label_key", "eval_prompt_data", "eval_interval", "eval_temperature"):
        options.pop(option, None)
    path = tmp_path / name
    path.write_text(yaml.safe_dump(options))
    return str(path)


def test_grpo_runs_through_two_servers_and_trains_on_the_log_probs_that_they_say(small, tmp_path):
    words = ["--num-rollout", "3", "--rollout-num-gpus", "2", "--run-dir", str(tmp_path / "run")]
    assert main(["train", recipe("sglang-grpo.yaml", tmp_path), *small, *words]) == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(lines) == 3
    for line in lines:
        print({name: line[name] for name in sorted(line) if "abs_diff" in name or "cache_hit" in name})
        assert 0 <= line["train/train_rollout_logprob_abs_diff"] < TOLERANCE
        assert line["train/grad_norm"] > 0
        assert line["rollout/engine_server_restarts"] == 0
    logs = list((tmp_path / "run" / "sglang").glob("*.log"))
    assert sorted(log.name for log in logs) == ["router.log", "server-0.log", "server-1.log"]
    cases.until(lambda: all(cases.is_gone(cases.running_pid(log)) for log in logs), 60)


def test_dapo_with_partial_rollouts_continues_what_was_aborted(small, tmp_path):
    dump = tmp_path / "dump"
    words = [
        *("--num-rollout", "4", "--run-dir", str(tmp_path / "run"), "--over-sampling-batch-size", "10"),
        *("--dynamic-sampling-filter-path", "sglang_cases.mostly_even", "--update-weight-transport", "disk"),
        *("--save-debug-rollout-data", str(dump / "{rollout_id}.jsonl"), "--rollout-max-response-len", "100"),
    ]
    assert main(["train", recipe("sglang-dapo.yaml", tmp_path), *small, *words]) == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for line in lines:
        print({name: line[name] for name in sorted(line) if "abs_diff" in name or "token" in name})
        assert line["train/train_rollout_logprob_abs_diff"] < TOLERANCE or line["rollout/buffered_tokens_taken"] > 0
    assert sum(line.get("rollout/buffered_tokens_taken", 0) for line in lines) > 0, "nothing was continued"
    assert lines[0]["train/train_rollout_logprob_abs_diff"] < TOLERANCE


def test_servers_end_when_the_run_is_killed(small, tmp_path):
    command = [sys.executable, "-m", "slime_core", "train", recipe("sglang-grpo.yaml", tmp_path), *small]
    command += ["--num-rollout", "1", "--run-dir", str(tmp_path / "run")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen(command, env=env, cwd=tmp_path)
    logs = [tmp_path / "run" / "sglang" / name for name in ("server-0.log", "router.log")]
    try:
        pids = cases.until(lambda: [cases.running_pid(log) for log in logs] if all(map(_started, logs)) else None)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    cases.until(lambda: all(map(cases.is_gone, pids)), 60)


def _started(log: Path) -> bool:
    return log.exists() and "slime: process " in log.read_text(errors="replace")
