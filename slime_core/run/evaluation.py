"""An evaluation: measured by the two workers, then metrics, answers that are written and shown, somebody's own logging. Called
by the run, and by `slime eval` for the part that measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.output import writing
from slime_core.plugins import Selected
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.tracking import Tracking, call_own_log, prefixed
from slime_core.run.weight_sync import WeightSync
from slime_core.runtime.handles import Handle, wait
from slime_core.sample import RolloutOutput, Sample, Status
from slime_core.training.worker import TrainWorker
from slime_core.trajectories import means_of_trajectories


def measure(
    rollout_id: int,
    version: int,
    rollouts: Handle[RolloutWorker],
    trainer: Handle[TrainWorker] | None,
    weight_sync: WeightSync,
    generates: bool,
) -> tuple[RolloutOutput, dict[str, float]]:
    """Let the rollout function evaluate with the present weights, and return what it says and the losses of its groups.

    Args:
        rollout_id: the rollout after which this is; -1 before the first one.
        version: of the trainer's weights.
        generates: an engine may be asked, so it gets them.
    """
    if generates:
        weight_sync.update(version)
        weight_sync.have_memory("engine")
    output = wait(rollouts.call(RolloutWorker.evaluate, rollout_id), "the evaluation samples")
    weight_sync.have_memory("trainer")
    measured: dict[str, float] = {}
    if output.groups and trainer is not None:
        measured = wait(trainer.call(TrainWorker.evaluate, output.groups), "the evaluation loss")
    return output, measured


def metrics_of(output: RolloutOutput, measured: Mapping[str, float]) -> dict[str, float]:
    """All metrics of an evaluation under their full names, `eval/SET/…`."""
    metrics = {f"eval/{name}": value for name, value in {**measured, **_rewards(output.generations)}.items()}
    return metrics | prefixed("eval", output.metrics)


def log_evaluation(
    args: RunArguments,
    rollout_id: int,
    output: RolloutOutput,
    measured: Mapping[str, float],
    tracking: Tracking,
    own_log: Selected[bool | None] | None,
) -> dict[str, float]:
    """Log an evaluation, and return all its metrics under their full names.

    Args:
        rollout_id: the rollout after which it was made; -1 before the first one.
        output: of the rollout function.
        measured: the losses of its groups.
        own_log: `--custom-eval-rollout-log-function-path`, if it is chosen.
    """
    generations = output.generations
    metrics = metrics_of(output, measured)
    if own_log is not None:
        itself, left = call_own_log(own_log, "eval", rollout_id, args, _by_set(generations), output.metrics)
        metrics |= prefixed("eval", left)
        if itself:
            return metrics
    tracking.log(metrics, rollout_id)
    tracking.console.evaluation(rollout_id, metrics)
    for sample in generations[:1]:
        if not sample.asked:  # it is a reward alone
            continue
        tracking.console.say(f"  asked:    {_one_line(_question(sample))}\n  answered: {_one_line(sample.response)}")
    return metrics


def write_generations(run_dir: Path, rollout_id: int, generations: list[Sample]) -> None:
    """Write the answers of an evaluation, if there are any, as one JSON line each."""
    write_answers(run_dir / "eval" / f"rollout_{rollout_id:07d}.jsonl", generations)


def drop_later_generations(run_dir: Path, last_rollout: int) -> None:
    """Remove the answers of evaluations after a later rollout than this one, as a run that goes on from there drops their metrics."""
    for path in (run_dir / "eval").glob("rollout_*.jsonl"):
        number = path.stem.removeprefix("rollout_")
        if number.removeprefix("-").isdecimal() and int(number) > last_rollout:
            path.unlink()


def write_answers(path: Path, generations: list[Sample]) -> None:
    """The same into this file."""
    if generations:
        with writing("The answers of the evaluation", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(sample.to_dict()) + "\n" for sample in generations)


def _by_set(generations: list[Sample]) -> dict[str, dict[str, Any]]:
    """What `slime_core.contracts.rollout.eval_rollout_log` is given."""
    found: dict[str, dict[str, Any]] = {}
    for sample in generations:
        data = found.setdefault(str(sample.dataset), {"rewards": [], "truncated": [], "samples": []})
        data["rewards"].append(sample.reward)
        data["truncated"].append(sample.status is Status.TRUNCATED)
        data["samples"].append(sample)
    return found


def _rewards(generations: list[Sample]) -> dict[str, float]:
    """The mean reward of the trajectories of each set."""
    by_set: dict[str, tuple[list[Sample], list[float]]] = {}
    for sample in generations:
        if isinstance(sample.reward, (int, float)):
            samples, rewards = by_set.setdefault(str(sample.dataset), ([], []))
            samples.append(sample)
            rewards.append(float(sample.reward))
    means = {name: means_of_trajectories(*found) for name, found in by_set.items()}
    return {f"{name}/reward": sum(rewards) / len(rewards) for name, rewards in means.items()}


def _question(sample: Sample) -> str:
    asked = sample.asked
    if isinstance(asked, str):
        return asked
    return next((str(m.get("content")) for m in reversed(asked) if m.get("role") == "user"), "")


def _one_line(text: str, width: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
