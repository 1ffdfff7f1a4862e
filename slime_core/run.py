"""`Run`: the workers of a run, and what happens around each rollout: logging, evaluation, saving."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_core.early_stopping import EarlyStopping
from slime_core.plugins import Plugins
from slime_core.runtime import LocalHandle, wait
from slime_core.sample import Sample
from slime_core.tracking import Tracking
from slime_core.workers import RolloutResult


@dataclass
class Run:
    """Everything that the loop needs.

    Attributes:
        rollouts, trainer: handles of the two workers.
        has_engine: whether weights are handed to an engine before it generates.
        identity: what every checkpoint stores about the run: arguments, data files, plugins.
        early_stopping: None unless asked for.
    """

    args: Any
    plugins: Plugins
    run_dir: Path
    rollouts: LocalHandle
    trainer: LocalHandle
    tracking: Tracking
    has_engine: bool
    identity: dict[str, Any]
    early_stopping: EarlyStopping | None = None
    last_saved: int | None = field(default=None, init=False)

    def rollout_trained(
        self, rollout_id: int, result: RolloutResult, metrics: dict[str, float], seconds: float, waited: float
    ) -> None:
        """Log one rollout. `seconds` is its whole time, `waited` the part in which the trainer had nothing to train."""
        logged = {
            **{f"train/{name}": value for name, value in metrics.items()},
            **_prefixed("rollout", result.output.metrics),
            "perf/rollout_time": seconds,
            "perf/generate_time": result.seconds,
            "perf/data_wait_time": waited,
            "perf/data_wait_share": waited / seconds,
            "perf/tokens_per_second": metrics["num_tokens"] / seconds,
        }
        self.tracking.log(logged, rollout_id)
        self.tracking.console.rollout(rollout_id, logged)

    def evaluate_if_due(self, rollout_id: int) -> bool:
        """Evaluate when the interval says so (-1: before the first rollout). True when the run should stop early."""
        args = self.args
        if not args.eval_prompt_data:
            return False
        before_first = rollout_id < 0
        due = not args.skip_eval_before_train if before_first else (rollout_id + 1) % args.eval_interval == 0
        return self.evaluate(rollout_id) if due else False

    def evaluate(self, rollout_id: int) -> bool:
        """Measure the evaluation sets now. True when the run should stop early."""
        self.sync_weights(rollout_id + 1)
        output = wait(self.rollouts.call("evaluate", rollout_id), "the evaluation samples")
        measured = wait(self.trainer.call("evaluate", output.groups), "the evaluation loss")
        metrics = {f"eval/{name}": value for name, value in {**measured, **_rewards(output.generations)}.items()}
        metrics |= _prefixed("eval", output.metrics)
        self._write_generations(rollout_id, output.generations)
        self.tracking.log(metrics, rollout_id)
        self.tracking.console.evaluation(rollout_id, metrics)
        for sample in output.generations[:1]:
            self.tracking.console.say(
                f"  asked:    {_one_line(_question(sample))}\n  answered: {_one_line(sample.response)}"
            )
        self.plugins.notify("slime_eval_finished", args=self.args, rollout_id=rollout_id, metrics=metrics)
        return self.early_stopping is not None and self.early_stopping.update(metrics)

    def sync_weights(self, version: int) -> None:
        """Hand the trainer's weights to the engine, if there is one."""
        if self.has_engine:
            weights = wait(self.trainer.call("weights"), "the trainer's weights")
            wait(self.rollouts.call("update_weights", weights, version), "the engine's weight update")

    def save_if_due(self, rollout_id: int, data_state: dict[str, Any], last: bool) -> None:
        """Write a checkpoint when the interval says so, or this is the last rollout; export if asked for."""
        args = self.args
        due = last or (args.save_interval is not None and (rollout_id + 1) % args.save_interval == 0)
        if due and args.save:
            state = {
                "rollout_id": rollout_id,
                "data_source": data_state,
                "early_stopping": self.early_stopping.state_dict() if self.early_stopping else None,
                **self.identity,
            }
            saving = self.trainer.call("save", Path(args.save), rollout_id, state, args.save_total_limit)
            path = wait(saving, f"the checkpoint after rollout {rollout_id + 1}")
            self.tracking.console.say(f"checkpoint: {path}")
            self.plugins.notify("slime_checkpoint_saved", args=args, rollout_id=rollout_id, path=path)
        if due and args.save_hf and (last or "{rollout_id}" in args.save_hf):
            self.export(rollout_id)

    def export(self, rollout_id: int) -> None:
        """Write the Hugging Face checkpoint that `--save-hf` asks for."""
        folder = Path(self.args.save_hf.replace("{rollout_id}", str(rollout_id)))
        wait(self.trainer.call("export", folder), "the export")
        self.tracking.console.say(f"exported model: {folder}")

    def _write_generations(self, rollout_id: int, generations: list[Sample]) -> None:
        if generations:
            path = self.run_dir / "eval" / f"rollout_{rollout_id:07d}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(s.to_dict()) + "\n" for s in generations), encoding="utf-8")


def _prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    """Names under `prefix/`, what depends on the clock under `perf/`."""
    return {name if name.startswith("perf/") else f"{prefix}/{name}": value for name, value in metrics.items()}


def _rewards(generations: list[Sample]) -> dict[str, float]:
    by_set: dict[str, list[float]] = {}
    for sample in generations:
        if isinstance(sample.reward, (int, float)):
            by_set.setdefault(str(sample.metadata.get("dataset", "eval")), []).append(float(sample.reward))
    return {f"{name}/reward": sum(rewards) / len(rewards) for name, rewards in by_set.items()}


def _question(sample: Sample) -> str:
    if isinstance(sample.prompt, str):
        return sample.prompt
    return next((str(m.get("content")) for m in reversed(sample.prompt) if m.get("role") == "user"), "")


def _one_line(text: str, width: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
