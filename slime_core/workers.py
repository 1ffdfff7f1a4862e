"""The two workers of a run: one makes samples, one trains on them. The loop drives both through handles."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core import checkpoint
from slime_core.batch import TrainBatch, make_train_batch
from slime_core.contracts import DataSource, InferenceEngine
from slime_core.errors import SampleError
from slime_core.plugins import Plugins, Selected
from slime_core.profiling import Profiler
from slime_core.sample import Group, RolloutOutput, Sample, check_rollout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RolloutResult:
    """A checked rollout, and the state of the data source right after it (which a checkpoint of this rollout stores,
    however far the next rollouts have been prefetched by then)."""

    output: RolloutOutput
    data_state: dict[str, Any]
    seconds: float


class RolloutWorker:
    """Runs the rollout functions.

    Args:
        rollout, eval_rollout: the selected rollout functions.
        data_source: read by `rollout`.
        engine: handed to rollout functions that ask for it.
    """

    def __init__(
        self,
        args: Any,
        plugins: Plugins,
        rollout: Selected,
        eval_rollout: Selected,
        data_source: DataSource,
        engine: InferenceEngine | None,
    ) -> None:
        self._args, self._plugins, self._data_source, self._engine = args, plugins, data_source, engine
        self._rollout = rollout.bind(plugins=plugins, engine=engine)
        self._eval_rollout = eval_rollout.bind(plugins=plugins, engine=engine)

    def generate(self, rollout_id: int) -> RolloutResult:
        """Make and check the samples of one rollout."""
        started = time.perf_counter()
        output = self._rollout(self._args, rollout_id, self._data_source, evaluation=False)
        expected = self._args.rollout_batch_size * self._args.n_samples_per_prompt
        if len(output.samples) != expected:
            raise SampleError(
                f"The {self._rollout.label} returned {len(output.samples)} samples in rollout {rollout_id}; expected "
                f"--rollout-batch-size × --n-samples-per-prompt = {expected}."
            )
        _check(output.groups, self._rollout, need_reward=True)
        self._plugins.notify(
            "slime_rollout_finished",
            args=self._args,
            rollout_id=rollout_id,
            groups=output.groups,
            metrics=output.metrics,
        )
        return RolloutResult(output, self._data_source.state_dict(), time.perf_counter() - started)

    def evaluate(self, rollout_id: int) -> RolloutOutput:
        """Make and check the samples of an evaluation."""
        output = self._eval_rollout(self._args, rollout_id, self._data_source, evaluation=True)
        _check([*output.groups, output.generations], self._eval_rollout, need_reward=False)
        return output

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Hand the trainer's weights to the engine."""
        if self._engine is not None:
            self._engine.update_weights(weights, version)


def _check(groups: list[Group], rollout: Selected, need_reward: bool) -> None:
    try:
        check_rollout(groups, need_reward)
    except SampleError as error:
        error.add_note(f"returned by the {rollout.label}")
        raise


class TrainWorker:
    """Drives the train backend.

    Args:
        backend: the selected backend component.
        loss: the selected loss.
        total_rollouts: rollouts in the whole run, which sets the length of the learning-rate schedule.
    """

    def __init__(
        self, args: Any, plugins: Plugins, backend: Selected, loss: Selected, profiler: Profiler, total_rollouts: int
    ) -> None:
        self._args, self._plugins, self._loss, self._profiler = args, plugins, loss, profiler
        self._backend = backend(args)
        self._total_steps = total_rollouts * args.num_steps_per_rollout

    def setup(self) -> None:
        """Load the model."""
        self._backend.setup(self._loss, self._total_steps)

    def train(self, rollout_id: int, groups: list[Group]) -> dict[str, float]:
        """All optimizer steps of one rollout; the metrics are means over the steps, counts are sums."""
        self._profiler.step(rollout_id)
        samples = [sample for group in groups for sample in group]
        size, steps = self._args.global_batch_size, self._args.num_steps_per_rollout
        collected: list[dict[str, float]] = []
        for number in range(steps):
            batch = self._batch(samples[number * size : (number + 1) * size])
            metrics = self._backend.train_step(batch)
            collected.append(
                {**metrics, "num_tokens": batch.num_tokens, "num_trained_tokens": batch.num_trained_tokens}
            )
            self._plugins.notify(
                "slime_train_step_finished",
                args=self._args,
                rollout_id=rollout_id,
                step=rollout_id * steps + number,
                metrics=collected[-1],
            )
        return {
            name: sum(m[name] for m in collected) / (1 if name.startswith("num_") else len(collected))
            for name in collected[0]
        }

    def evaluate(self, groups: list[Group]) -> dict[str, float]:
        """Loss per evaluation set, as {"SET/loss": …}."""
        by_set: dict[str, list[Sample]] = {}
        for group in groups:
            for sample in group:
                by_set.setdefault(str(sample.metadata.get("dataset", "eval")), []).append(sample)
        found: dict[str, float] = {}
        for name, samples in by_set.items():
            found |= {
                f"{name}/{metric}": value for metric, value in self._backend.evaluate(self._batch(samples)).items()
            }
        return found

    def weights(self) -> list[tuple[str, Tensor]]:
        """All weights under their Hugging Face names; views, not copies."""
        return list(self._backend.weights())

    def save(self, folder: Path, rollout_id: int, state: dict[str, Any], keep: int | None) -> Path:
        """Write a checkpoint."""
        return checkpoint.save(folder, rollout_id, self._backend.save_state, state, keep)

    def load(self, folder: Path) -> None:
        """Restore the backend from a checkpoint whose files have been verified."""
        self._backend.load_state(folder / "trainer")

    def export(self, folder: Path) -> None:
        """Write a Hugging Face checkpoint."""
        self._backend.export_hf(folder)

    def close(self) -> None:
        """Finish the profile, if one is being written."""
        self._profiler.close()

    def _batch(self, samples: list[Sample]) -> TrainBatch:
        max_tokens = self._args.max_tokens_per_gpu if self._args.use_dynamic_batch_size else None
        return make_train_batch(samples, micro_batch_size=self._args.micro_batch_size, max_tokens=max_tokens)
