"""`RolloutWorker`: makes the samples of a rollout, and checks and dumps them. The loop drives it through a handle."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.background import Background
from slime_core.contracts import DataSource, InferenceEngine
from slime_core.errors import DataError, PluginError, SampleError
from slime_core.plugins import Plugins, Selected
from slime_core.sample import Group, RolloutOutput, Sample, check_rollout

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.weight_sender import WeightSender


@dataclass(frozen=True)
class RolloutResult:
    """A checked rollout, and the state of the data source right after it (which a checkpoint of this rollout stores,
    however far the next rollouts have been prefetched by then)."""

    output: RolloutOutput
    data_state: dict[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, for a checkpoint that is written while this rollout waits to be trained."""
        groups = [[sample.to_dict() for sample in group] for group in self.output.groups]
        return {
            "groups": groups,
            "metrics": self.output.metrics,
            "data_state": self.data_state,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RolloutResult:
        """The inverse of `to_dict`."""
        groups = [[Sample.from_dict(sample) for sample in group] for group in data["groups"]]
        return cls(RolloutOutput(groups, data["metrics"]), data["data_state"], data["seconds"])


class RolloutWorker:
    """Runs the rollout functions.

    Args:
        rollout, eval_rollout: the selected rollout functions.
        data_source: read by `rollout`.
        engine: handed to rollout functions that ask for it.
        convert: `--custom-convert-samples-to-train-data-path`.
    """

    def __init__(
        self,
        args: Any,
        plugins: Plugins,
        rollout: Selected,
        eval_rollout: Selected,
        data_source: DataSource,
        engine: InferenceEngine | None,
        convert: Selected | None = None,
    ) -> None:
        self._args, self._plugins, self._data_source, self._engine = args, plugins, data_source, engine
        self._background = Background()
        self._rollout = rollout.bind(plugins=plugins, engine=engine, background=self._background)
        self._eval_rollout = eval_rollout.bind(plugins=plugins, engine=engine, background=self._background)
        self._convert = convert

    def generate(self, rollout_id: int) -> RolloutResult:
        """Make and check the samples of one rollout."""
        started = time.perf_counter()
        args = self._args
        if args.load_debug_rollout_data:
            output = read_debug_data(Path(args.load_debug_rollout_data.replace("{rollout_id}", str(rollout_id))))
        else:
            output = self._rollout(args, rollout_id, self._data_source, evaluation=False)
            # What a data source says about its data sets; one of somebody's own may say nothing.
            output.metrics |= getattr(self._data_source, "metrics", dict)()
        if len(output.groups) != args.rollout_batch_size or not all(output.groups):
            raise SampleError(
                f"The {self._rollout.label} returned {len(output.groups)} groups ({len(output.samples)} samples) in rollout "
                f"{rollout_id}; expected --rollout-batch-size {args.rollout_batch_size} groups, none of them empty."
            )
        _check(output.groups, self._rollout, need_reward=True)
        if args.save_debug_rollout_data:
            write_debug_data(Path(args.save_debug_rollout_data.replace("{rollout_id}", str(rollout_id))), output)
        self._plugins.notify(
            "slime_rollout_finished", args=args, rollout_id=rollout_id, groups=output.groups, metrics=output.metrics
        )
        if self._convert is not None:
            output = RolloutOutput(converted(output.groups, self._convert(args, output.samples)), output.metrics)
            _check(output.groups, self._convert, need_reward=True)
        state = self._background.data_state(self._data_source)
        return RolloutResult(output, state, time.perf_counter() - started)

    def evaluate(self, rollout_id: int) -> RolloutOutput:
        """Make and check the samples of an evaluation."""
        output = self._eval_rollout(self._args, rollout_id, self._data_source, evaluation=True)
        _check([*output.groups, output.generations], self._eval_rollout, need_reward=False)
        return output

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Hand the trainer's weights to the engine."""
        if self._engine is not None:
            self._engine.update_weights(weights, version)

    def weight_sender(self) -> WeightSender | None:
        """What hands the weights to the engine from the training process, if the engine has such a thing."""
        offered = getattr(self._engine, "weight_sender", None)
        return offered() if offered else None

    def offload(self) -> None:
        """Let the engine give back the device's memory until `onload`."""
        self._engine.offload()  # type: ignore[union-attr]  # checked when the run was planned

    def onload(self) -> None:
        """The inverse of `offload`."""
        self._engine.onload()  # type: ignore[union-attr]

    def close(self) -> None:
        """End what rollout functions do in the background, and close the engine."""
        self._background.close()
        if self._engine is not None:
            self._engine.close()


def _check(groups: list[Group], rollout: Selected, need_reward: bool) -> None:
    try:
        check_rollout(groups, need_reward)
    except SampleError as error:
        error.add_note(f"returned by the {rollout.label}")
        raise


# What `--custom-convert-samples-to-train-data-path` calls its columns → the fields of a sample.
_TRAIN_DATA = {
    "tokens": "tokens",
    "response_lengths": "response_length",
    "rewards": "reward",
    "loss_masks": "loss_mask",
    "rollout_log_probs": "rollout_log_probs",
}


def converted(groups: list[Group], data: dict[str, list[Any]]) -> list[Group]:
    """The groups with the values of `contracts.convert_samples` in place of their own.

    Raises:
        PluginError: a column is unknown.
    """
    count = sum(len(group) for group in groups)
    if unknown := sorted(data.keys() - _TRAIN_DATA):
        raise PluginError(
            f"--custom-convert-samples-to-train-data-path returned {unknown[0]!r}, which training does not know; it knows "
            f"{', '.join(_TRAIN_DATA)}."
        )
    rows = iter([{_TRAIN_DATA[n]: values[i] for n, values in data.items()} for i in range(count)])
    return [[replace(s, **new) for s, new in zip(group, islice(rows, len(group)), strict=True)] for group in groups]


def write_debug_data(path: Path, output: RolloutOutput) -> None:
    """One line per sample, `group` being the number of its group in the rollout, after a line of metrics."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"metrics": output.metrics}]
    lines += [{"group": g, **sample.to_dict()} for g, group in enumerate(output.groups) for sample in group]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_debug_data(path: Path) -> RolloutOutput:
    """The inverse of `write_debug_data`.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    try:
        head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        groups: dict[int, Group] = {}
        for line in lines:
            groups.setdefault(line.pop("group"), []).append(Sample.from_dict(line))
        return RolloutOutput(list(groups.values()), head["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--load-debug-rollout-data: {path} cannot be read: {error}. Give the path that --save-debug-rollout-data wrote."
        ) from error
