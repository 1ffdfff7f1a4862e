"""`Run`: the workers of a run, and what happens around each rollout: logging, evaluation, saving."""

from __future__ import annotations

import inspect
import json
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slime_core.early_stopping import EarlyStopping
from slime_core.plugins import Plugins, Selected
from slime_core.reward import reward_of
from slime_core.rollout_worker import RolloutResult
from slime_core.runtime import Handle, wait
from slime_core.sample import Sample, Status
from slime_core.saving import Checkpoints
from slime_core.tracking import Tracking


@dataclass
class Run:
    """Everything that the loop needs.

    Attributes:
        rollouts, trainer: handles of the two workers; no trainer under `--debug-rollout-only`.
        identity: what every checkpoint stores about the run: arguments, data files, plugins.
        engine_use: when an engine generates, and so needs the newest weights; see `engine_use`.
        takes_turns: trainer and engine take turns with the devices' memory (`--offload`). At first the trainer has it.
        early_stopping: None unless asked for.
        rollout_log, eval_log: somebody's own logging, if chosen.
        trained: rollouts that have been trained on; the version of the weights.
        prefetched: in a resumed run, the rollout that waited to be trained when the checkpoint was written.
    """

    args: Any
    plugins: Plugins
    run_dir: Path
    rollouts: Handle
    trainer: Handle | None
    tracking: Tracking
    identity: dict[str, Any]
    engine_use: EngineUse = "never"
    takes_turns: bool = False
    early_stopping: EarlyStopping | None = None
    rollout_log: Selected | None = None
    eval_log: Selected | None = None
    trained: int = 0
    prefetched: RolloutResult | None = None
    _engine_version: int | None = field(default=None, init=False)
    _sends: bool = field(default=False, init=False)  # the trainer has the engine's own weight sender
    _updating_s: float = field(default=0.0, init=False)  # in `generate`, since a rollout was logged
    _in_memory: set[str] = field(default_factory=lambda: {"trainer"}, init=False)
    _checkpoints: Checkpoints | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.trainer is not None and self.args.save:
            self._checkpoints = Checkpoints(self.args, self.plugins, self.trainer, self.tracking.console)

    def generate(self, rollout_id: int) -> Future[RolloutResult]:
        """Start making the samples of a rollout, with the newest weights. Call it only when none are being made."""
        if self.prefetched is not None:
            ready: Future[RolloutResult] = Future()
            ready.set_result(self.prefetched)
            self.prefetched = None
            return ready
        if self.engine_use == "always":
            started = time.perf_counter()
            self.sync_weights()
            self._updating_s += time.perf_counter() - started
            self._have_memory("engine")
        return self.rollouts.call("generate", rollout_id)

    def train(self, rollout_id: int, result: RolloutResult, waited: float) -> None:
        """Train on a rollout and log it. `waited` are the seconds before it in which the trainer did not train: there were
        no samples, or the engine took its weights."""
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        if self.trainer is not None:
            self._have_memory("trainer")
            groups = result.output.groups
            metrics = wait(self.trainer.call("train", rollout_id, groups), f"training on rollout {rollout_id + 1}")
        self.trained = rollout_id + 1
        training = time.perf_counter() - started
        seconds = training + waited
        samples = result.output.samples
        tokens = metrics.get("num_tokens") or sum(len(sample.tokens) for sample in samples)
        logged = {
            **_prefixed("train", metrics),
            **_prefixed("rollout", {**raw_rewards(samples, self.args), **result.output.metrics}),
            **self._timings(),
            "perf/rollout_time": seconds,
            "perf/generate_time": result.seconds,
            "perf/train_time": training,
            "perf/data_wait_time": waited,
            "perf/data_wait_share": waited / seconds,
            "perf/tokens_per_second": tokens / seconds,
        }
        if self.engine_use == "always" and self.trainer is not None:
            logged["perf/update_weights_time"], self._updating_s = self._updating_s, 0.0
        if self.rollout_log is not None and self.rollout_log(
            rollout_id, self.args, samples, result.output.metrics, result.seconds
        ):
            logged = {name: value for name, value in logged.items() if not name.startswith("rollout/")}
        self.tracking.log(logged, rollout_id)
        self.tracking.console.rollout(rollout_id, logged)

    def evaluate_if_due(self, rollout_id: int, pending: Future[RolloutResult] | None = None) -> bool:
        """Evaluate when the interval says so (-1: before the first rollout). True when the run should stop early.

        Args:
            pending: the next rollout, if it is being made already. The evaluation waits for it, so that the engine has the
                same weights for all of it.
        """
        args = self.args
        if not args.eval_prompt_data:
            return False
        before_first = rollout_id < 0
        due = not args.skip_eval_before_train if before_first else (rollout_id + 1) % args.eval_interval == 0
        if due and pending is not None:
            wait(pending, f"the samples of rollout {rollout_id + 2}")
        return self.evaluate(rollout_id) if due else False

    def evaluate(self, rollout_id: int) -> bool:
        """Measure the evaluation sets now. True when the run should stop early."""
        if self.engine_use != "never":
            self.sync_weights()
            self._have_memory("engine")
        output = wait(self.rollouts.call("evaluate", rollout_id), "the evaluation samples")
        self._have_memory("trainer")
        measured = {}
        if output.groups and self.trainer is not None:
            measured = wait(self.trainer.call("evaluate", output.groups), "the evaluation loss")
        metrics = {f"eval/{name}": value for name, value in {**measured, **_rewards(output.generations)}.items()}
        metrics |= _prefixed("eval", output.metrics)
        self._write_generations(rollout_id, output.generations)
        if self.eval_log is None or not self.eval_log(
            rollout_id, self.args, _by_set(output.generations), output.metrics
        ):
            self.tracking.log(metrics, rollout_id)
            self.tracking.console.evaluation(rollout_id, metrics)
            for sample in output.generations[:1]:
                self.tracking.console.say(
                    f"  asked:    {_one_line(_question(sample))}\n  answered: {_one_line(sample.response)}"
                )
        self.plugins.notify("slime_eval_finished", args=self.args, rollout_id=rollout_id, metrics=metrics)
        return self.early_stopping is not None and self.early_stopping.update(metrics)

    def sync_weights(self) -> None:
        """Hand the trainer's weights to the engine, if it has others."""
        if self.trainer is None or self._engine_version == self.trained:
            return
        started = time.perf_counter()
        self._have_memory("trainer", "engine")
        if self._engine_version is None and (sender := wait(self.rollouts.call("weight_sender"), "the engine")):
            wait(self.trainer.call("set_weight_sender", sender), "the trainer's way to the engine")
            self._sends = True
        if self._sends:
            wait(self.trainer.call("send_weights", self.trained), "the engine's weight update")
        else:
            weights = wait(self.trainer.keep("weights"), "the trainer's weights")
            wait(self.rollouts.call("update_weights", weights, self.trained), "the engine's weight update")
        self._engine_version = self.trained
        seconds = time.perf_counter() - started
        self.plugins.notify("slime_weights_updated", args=self.args, version=self.trained, seconds=seconds)

    def save_if_due(
        self, rollout_id: int, result: RolloutResult, pending: Future[RolloutResult] | None, last: bool
    ) -> None:
        """Write a checkpoint when the interval says so, or this is the last rollout; export if asked for.

        Args:
            result: of this rollout.
            pending: the next one, if it is being made already. Where it depends on the weights, a resumed run could not
                make it again, so the checkpoint waits for it and holds it.
        """
        args = self.args
        if self._checkpoints is not None:
            self._checkpoints.advance(to_the_end=False)
        due = last or (args.save_interval is not None and (rollout_id + 1) % args.save_interval == 0)
        if self.trainer is None or not due:
            return
        if self._checkpoints is not None:
            prefetched = None
            if pending is not None and self.engine_use == "always":
                prefetched = wait(pending, f"the samples of rollout {rollout_id + 2}")
            state = {
                "rollout_id": rollout_id,
                "data_source": (prefetched or result).data_state,
                "prefetched": prefetched.to_dict() if prefetched else None,
                "early_stopping": self.early_stopping.state_dict() if self.early_stopping else None,
                **self.identity,
            }
            self._checkpoints.save(rollout_id, state)
            if last:
                self._checkpoints.advance(to_the_end=True)
        if args.save_hf and (last or "{rollout_id}" in args.save_hf):
            self.export(rollout_id)

    def export(self, rollout_id: int) -> None:
        """Write the Hugging Face checkpoint that `--save-hf` asks for."""
        if self.trainer is None:
            return
        folder = Path(self.args.save_hf.replace("{rollout_id}", str(rollout_id)))
        wait(self.trainer.call("export", folder), "the export")
        self.tracking.console.say(f"exported model: {folder}")

    def _have_memory(self, *who: str) -> None:
        """Let these two, or one of them, have the devices' memory, if they take turns."""
        handles = {"trainer": self.trainer, "engine": self.rollouts}
        if not self.takes_turns:
            return
        for name in self._in_memory.difference(who):
            wait(handles[name].call("offload"), f"the {name} to give back its memory")  # type: ignore[union-attr]
        for name in set(who) - self._in_memory:
            wait(handles[name].call("onload"), f"the {name} to take its memory")  # type: ignore[union-attr]
        self._in_memory = set(who)

    def _timings(self) -> dict[str, float]:
        """How long plugins took since the last time, over all processes."""
        total: Counter[str] = Counter()
        for source in (self.plugins, self.rollouts, self.trainer):
            if source is not None:
                total.update(source.take_timings())  # type: ignore[arg-type]  # a Counter of floats
        return {name: float(value) for name, value in total.items()}

    def _write_generations(self, rollout_id: int, generations: list[Sample]) -> None:
        if generations:
            path = self.run_dir / "eval" / f"rollout_{rollout_id:07d}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(s.to_dict()) + "\n" for s in generations), encoding="utf-8")


EngineUse = Literal["always", "evaluation", "never"]


def engine_use(rollout: Selected) -> EngineUse:
    """When a rollout function generates with the engine: one that names the parameter `engine` always, one that is
    marked `slime_engine_use = "evaluation"` only there, any other never."""
    declared = getattr(rollout.target, "slime_engine_use", None)
    return declared or ("always" if "engine" in inspect.signature(rollout.target).parameters else "never")


def works_in_background(rollout: Selected) -> bool:
    """Whether a rollout function goes on generating between its calls; see `slime_core.background`."""
    return "background" in inspect.signature(rollout.target).parameters


def raw_rewards(samples: list[Sample], args: Any) -> dict[str, float]:
    """The mean reward of a rollout, where samples have one to train on."""
    if args.disable_compute_advantages_and_returns or not samples:
        return {}
    return {"raw_reward": sum(reward_of(sample, args.reward_key) for sample in samples) / len(samples)}


def _by_set(generations: list[Sample]) -> dict[str, dict[str, Any]]:
    """What `contracts.eval_rollout_log` is given."""
    found: dict[str, dict[str, Any]] = {}
    for sample in generations:
        data = found.setdefault(str(sample.metadata["dataset"]), {"rewards": [], "truncated": [], "samples": []})
        data["rewards"].append(sample.reward)
        data["truncated"].append(sample.status is Status.TRUNCATED)
        data["samples"].append(sample)
    return found


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
