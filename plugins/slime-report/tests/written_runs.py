"""Run directories that are written by hand, as a run would leave them: a healthy one, in which tests change what they are about."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

Line = dict[str, Any]
BEGAN = 1_700_000_000.0
ARGUMENTS = {
    "num_rollout": 40,
    "rollout_batch_size": 8,
    "n_samples_per_prompt": 6,
    "rollout_max_response_len": 64,
    "clip_grad": 1.0,
    "lr": 1e-6,
    "disable_compute_advantages_and_returns": False,
}
TIMES = {
    "perf/rollout_time": 10.0,
    "perf/train_time": 6.0,
    "perf/signals_time": 1.0,
    "perf/data_wait_time": 4.0,
    "perf/update_weights_time": 0.5,
    "perf/tokens_per_second": 100.0,
}


def healthy(step: int, of: int = 40) -> Line:
    """The line of a healthy rollout of reinforcement learning, counted from 0."""
    noise, done = random.Random(step).uniform(-0.05, 0.05), step / of
    return {
        "train/loss": noise / 10,
        "train/grad_norm": 0.8 + noise,
        "train/lr": 1e-6,
        "train/entropy_loss": 0.9 - 0.5 * done,
        "train/pg_clipfrac": 0.02,
        "train/ppo_kl": 0.001,
        "train/train_rollout_logprob_abs_diff": 0.01 + noise / 20,
        "train/num_tokens": 4800.0,
        "train/num_trained_tokens": 2400.0,
        "rollout/raw_reward": 0.3 + 0.3 * done + noise,
        "rollout/reward_std": 0.45,
        "rollout/zero_std/share": 0.25,
        "rollout/truncated_ratio": 0.05,
        "rollout/response_len/mean": 30 + 5 * done,
        "rollout/sampling/groups_started": 8.0,
        "rollout/sampling/groups_filtered": 0.0,
        **TIMES,
    }


def evaluation(step: int, of: int = 40) -> Line:
    """A healthy evaluation."""
    return {"eval/held/reward": 0.3 + 0.3 * step / of}


def tuned(step: int) -> Line:
    """The line of a healthy rollout of fine-tuning."""
    noise = random.Random(step).uniform(-0.05, 0.05)
    numbers = {"train/loss": 2.0 - 0.01 * step + noise, "train/grad_norm": 2.0 + noise, "train/lr": 1e-5}
    return {**numbers, "train/num_tokens": 4000.0, "train/num_trained_tokens": 2000.0, **TIMES}


def write_run(
    folder: Path,
    line: Callable[[int], Line] = healthy,
    rollouts: int = 40,
    *,
    arguments: Mapping[str, Any] | None = None,
    evaluate: Callable[[int], Line] | None = evaluation,
    every: int = 10,
    error: Mapping[str, str] | None = None,
    ended: bool = True,
    resume_after: int | None = None,
) -> Path:
    """Write a run directory.

    Args:
        line: what rollout n logs.
        evaluate: what the evaluation after n rollouts logs, every `every` of them and before the first.
        error: what ended the run.
        ended: whether the run has told its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = {**ARGUMENTS, "run_dir": str(folder), **(arguments or {})}
    provenance = {name: "command line" if name == "lr" else "default" for name in given}
    config = {"arguments": given, "provenance": provenance, "components": {"loss": "policy_loss of losses"}}
    config |= {"plugins": {"slime-core": "0.1.0"}, "resume_after": resume_after}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = [{"rollout_id": -1, "time": BEGAN, **evaluate(0)}] if evaluate else []
    for step in range(rollouts):
        lines.append({"rollout_id": step, "time": BEGAN + 12 * (step + 1), **line(step)})
        if evaluate and (step + 1) % every == 0:
            lines.append({"rollout_id": step, "time": BEGAN + 12 * (step + 1), **evaluate(step + 1)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    note(
        folder, {"event": "start", "at": BEGAN - 20, "command": "slime train recipe.yaml", "resume_after": resume_after}
    )
    if ended:
        note(folder, {"event": "end", "at": BEGAN + 12 * rollouts + 5, "error": error})
    return folder


def note(folder: Path, event: Line) -> None:
    """Add a start or an end to the events of a run."""
    path = folder / "record" / "events.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(event) + "\n")


def keep(folder: Path, rows: list[Line], name: str = "samples-rank0.jsonl") -> None:
    """Add rows to a file of the record."""
    path = folder / "record" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def sample(rollout: int, place: int, **changes: Any) -> Line:
    """The row of a recorded sample of three tokens prompt and two response."""
    row: Line = {
        "rollout": rollout,
        "place": place,
        "prompt": "p0",
        "source": "rows.jsonl:1",
        "group": 0,
        "index": place,
    }
    row |= {"reward": 1.0, "status": "completed", "length": 2, "label": "3", "why": ["random"], "prompt_tokens": 3}
    row |= {"pieces": ["1", "+", "2", " 3", "."], "mask": "11", "log_probs": [-0.5, -0.1], "difference": [0.01, -0.02]}
    return {**row, "advantages": [1, 1], "entropy": [0.4, 0.1], **changes}
