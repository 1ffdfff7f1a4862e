"""A whole RL run on a Ray cluster of this machine's CPUs: two training ranks, and beside them two real SGLang servers
in Ray actors. Both servers are lost on the way: one by the end of its process, the other by the end of its actor.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sglang_cases as cases

from slime_core.cli import main
from slime_core.run.tracking import read_metrics

pytest.importorskip("sglang", reason="needs SGLang; scripts/test-sglang.sh makes an environment with it")
pytest.importorskip("sglang_router")

pytestmark = pytest.mark.timeout(900)

TOLERANCE = 1e-4


def test_grpo_on_ray_trains_on_the_log_probs_of_servers_in_actors_and_survives_their_loss(
    cluster, tiny_model, chat_rows, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    folder = tmp_path / "run"
    words = [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "sglang", "--custom-rm-path", "sglang_cases.lose_both_servers"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4", "--rollout-max-response-len", "24"),
        *("--lr", "1e-3", "--num-rollout", "3", "--run-dir", str(folder), "--colocate"),
        *("--actor-num-gpus-per-node", "2", "--check-weight-update-equal", "--sglang-log-level", "warning"),
        *("--failure-policy", "reward:timeout=600"),  # the reward waits for the servers
    ]
    assert main(["train", *words]) == 0
    lines = read_metrics(folder / "metrics.jsonl")
    for line in lines:
        print({name: line[name] for name in sorted(line) if "abs_diff" in name or "restarts" in name})
        assert 0 <= line["train/train_rollout_logprob_abs_diff"] < TOLERANCE
        assert line["train/grad_norm"] > 0
    assert sum(line["rollout/engine_server_restarts"] for line in lines) == 2
    logs = [folder / "sglang" / name for name in ("server-0.log", "server-1.log", "router.log")]
    versions = [[command.split("--weight-version ")[1].split()[0] for command in cases.starts(log)] for log in logs[:2]]
    assert versions == [["0", "1"]] * 2, "a lost server did not come back with the newest weights"
    before = json.loads((folder / "processes.json").read_text())
    assert all(server["title"].startswith("ray::ServerActor") for server in before), before
    assert len({server["actor"] for server in before}) == 2
    pids = [*map(cases.running_pid, logs), *(server[name] for server in before for name in ("pid", "guard", "actor"))]
    cases.until(lambda: all(map(cases.is_gone, pids)), 60)
