"""Whole RL runs with real SGLang servers on a CPU: the recipes, with a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sglang_cases as cases
import torch
import yaml

from slime_core.cli import main
from slime_core.run.tracking import read_metrics

pytest.importorskip("sglang", reason="needs SGLang; scripts/test-sglang.sh makes an environment with it")
pytest.importorskip("sglang_router")

from slime_engine_sglang.server import Server

pytestmark = pytest.mark.timeout(900)

RECIPES = Path(__file__).parents[3] / "recipes"
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _hooks_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def small(tiny_model, chat_rows) -> list[str]:
    """The options that make a run of a recipe small."""
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows)),
        *("--custom-rm-path", "sglang_cases.even_tokens", "--rollout-batch-size", "4", "--n-samples-per-prompt", "4"),
        *("--rollout-max-response-len", "24", "--lr", "1e-3"),
    ]


def recipe(name: str, tmp_path: Path) -> str:
    """The path of a recipe without the options that belong to its own model and data."""
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


@pytest.fixture(scope="module")
def servers(tiny_model, tmp_path_factory):
    """The addresses of two servers, for runs that need not start any."""
    folder = tmp_path_factory.mktemp("servers")
    args = cases.arguments(tiny_model, folder)
    running = [Server(args, number, folder / f"server-{number}.log") for number in (0, 1)]
    try:
        for server in running:
            server.start(str(tiny_model), 0)
        cases.until(lambda: all(cases.is_healthy(server.url) for server in running))
        yield [server.url.removeprefix("http://") for server in running]
    finally:
        for server in running:
            server.close()


def test_dapo_with_partial_rollouts_continues_what_was_aborted(small, servers, tmp_path):
    dump = tmp_path / "dump"
    words = [
        *("--num-rollout", "4", "--run-dir", str(tmp_path / "run"), "--over-sampling-batch-size", "10"),
        *("--rollout-external-engine-addrs", *servers, "--sglang-api-key", str(cases.KEYS.server)),
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


def test_fully_async_trains_within_the_bound_on_what_each_version_says_and_loses_nothing(
    small, servers, tiny_model, tmp_path
):
    rollouts, bound, folder = 5, 2, tmp_path / "run"
    words = [
        *("--input-key", "messages", "--apply-chat-template", "--rollout-engine", "sglang", "--run-dir", str(folder)),
        *("--rollout-function-path", "fully_async", "--max-staleness", str(bound), "--partial-rollout", "--use-tis"),
        *("--num-rollout", str(rollouts), "--rollout-external-engine-addrs", *servers),
        *("--sglang-api-key", str(cases.KEYS.server)),
        # Few and long responses, so that some are still running when the weights change.
        *("--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--rollout-max-response-len", "400"),
        *("--pause-generation-mode", "retract"),
        *("--save-hf", str(folder / "hf" / "{rollout_id}"), "--save-interval", "1"),
        *("--save-debug-rollout-data", str(folder / "dump" / "{rollout_id}.jsonl")),
    ]
    assert main(["train-async", *small, *words]) == 0
    lines = read_metrics(folder / "metrics.jsonl")
    assert lines[0]["train/train_rollout_logprob_abs_diff"] < TOLERANCE
    models = [cases.Reference(path) for path in (tiny_model, *(folder / "hf" / str(n) for n in range(rollouts - 1)))]
    indices, oldest, mixed, worst = [], [], 0, 0.0
    for rollout_id in range(rollouts):
        for line in (folder / "dump" / f"{rollout_id}.jsonl").read_text().splitlines()[1:]:
            sample = json.loads(line)
            versions = sample["weight_versions"]
            assert rollout_id - bound <= versions[0] <= versions[-1] <= rollout_id
            indices.append(sample["index"])
            oldest.append(rollout_id - versions[0])
            mixed += versions[0] != versions[-1]
            worst = max(worst, _difference(models, sample))
    print(f"staleness: {oldest}; samples of several versions: {mixed}; largest difference: {worst:.2e}")
    assert sorted(indices) == list(range(rollouts * 2 * 2))
    assert max(oldest) > 0, "nothing was generated ahead"
    assert worst < TOLERANCE
    line = (folder / "dump" / "0.jsonl").read_text().splitlines()[1]
    assert _difference(models[-1:], json.loads(line)) > 10 * TOLERANCE, "the weights of all versions are alike"


def _difference(models: list[cases.Reference], sample: dict[str, Any]) -> float:
    """How far the log-probs of a sample are from what transformers says with the weights of each token's version. The
    first two tokens after a change may have been under way already; the keys and values of all others were computed
    anew."""
    start = len(sample["tokens"]) - sample["response_length"]
    prompt, answer, versions = sample["tokens"][:start], sample["tokens"][start:], sample["weight_versions"]
    worst = 0.0
    for version in sorted(set(versions)):
        first = versions.index(version)
        span = slice(first + 2 * (first > 0), first + versions.count(version))
        theirs = models[version].log_probs(prompt, answer)[span]
        ours = torch.tensor(sample["rollout_log_probs"][span])
        worst = max(worst, (theirs - ours).abs().max().item() if len(ours) else 0.0)
    return worst


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
