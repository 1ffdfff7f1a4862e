"""`RolloutWorker`: makes the samples of a rollout, and checks and dumps them. The loop drives it through a handle."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from slime_core.arguments import RunArguments
from slime_core.arguments.groups.evaluation import eval_sets
from slime_core.arguments.rollout_paths import path_of_rollout
from slime_core.contracts.data import Closes, DataSource, FollowsRollouts, HasMetrics
from slime_core.contracts.engine import GivesUpWeights, InferenceEngine, Offloads, SendsWeights, WeightSender
from slime_core.contracts.rollout import Background
from slime_core.contracts.rollout_outputs import metric_numbers
from slime_core.errors import DataError, PluginError, SampleError
from slime_core.output import writing
from slime_core.plugins import Plugins, Selected
from slime_core.rollout.components import RolloutComponents
from slime_core.rollout.debug_data import read_debug_data, write_debug_data
from slime_core.rollout.result import RolloutFacts, RolloutResult
from slime_core.rollout.train_data import converted, post_processed
from slime_core.rollout.weight_intake import WeightIntake
from slime_core.sample import Group, RolloutOutput, check_rollout, number_groups
from slime_core.start_up import collecting_old_seldom
from slime_core.token_arrays import compact
from slime_core.trajectories import gather_trajectories

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class RolloutWorker:
    """Runs the rollout functions.

    Args:
        data_source: read by the rollout function.
        engine: handed to rollout functions that ask for it.
        closes_data: the data source is closed with the worker, as nobody else has it.
    """

    def __init__(
        self,
        args: RunArguments,
        plugins: Plugins,
        components: RolloutComponents,
        data_source: DataSource,
        engine: InferenceEngine | None,
        closes_data: bool = True,
    ) -> None:
        self._args, self._plugins, self._data_source, self._engine = args, plugins, data_source, engine
        self._closes_data = closes_data
        self._intake: WeightIntake | None = None
        self._background = Background()
        self._at_end = ExitStack()
        extras: dict[str, Any] = {"plugins": plugins, "components": components, "engine": engine}
        extras |= {"background": self._background, "at_end": self._at_end}
        self._rollout = components.rollout.bind(**extras)
        self._eval_rollout = components.eval_rollout.bind(**extras)
        self._convert, self._post_process = components.sample_converter, components.reward_post_process
        self._told_final = False
        self._groups: dict[int, list[Group]] = {}  # of rollouts that have been made, until they are taken
        self._data_states: dict[int, dict[str, Any]] = {}

    def make(self, rollout_id: int) -> RolloutFacts:
        """Make the samples of a rollout, keep them and the state of the data source until they are taken, and return what is logged of them."""
        result = self.generate(rollout_id)
        facts = result.facts(self._args)
        self._groups[rollout_id], self._data_states[rollout_id] = result.output.groups, result.data_state
        return facts

    def take_groups(self, rollout_id: int) -> list[Group]:
        """Give away the samples that `make` has made."""
        return self._groups.pop(rollout_id)

    def take_data_state(self, rollout_id: int) -> dict[str, Any]:
        """Give away the state of the data source right after `make`."""
        return self._data_states.pop(rollout_id)

    def generate(self, rollout_id: int) -> RolloutResult:
        """Make and check the samples of one rollout."""
        started = time.perf_counter()
        args = self._args
        if args.load_debug_rollout_data:
            output = read_debug_data(path_of_rollout(args.load_debug_rollout_data, rollout_id))
        else:
            if isinstance(self._data_source, FollowsRollouts):
                self._data_source.rollout_started(rollout_id)
            with collecting_old_seldom():
                output = self._rollout(args, rollout_id, self._data_source, evaluation=False)
            if isinstance(self._data_source, HasMetrics):
                output.metrics |= _metrics_of(self._data_source)
        if len(output.groups) != args.rollout_batch_size or not all(output.groups):
            raise SampleError(
                f"The {self._rollout.label} returned {len(output.groups)} groups ({len(output.samples)} samples) in rollout "
                f"{rollout_id}; expected --rollout-batch-size {args.rollout_batch_size} groups, none of them empty."
            )
        _check(output.groups, self._rollout, need_reward=True)
        if args.save_debug_rollout_data:
            path = path_of_rollout(args.save_debug_rollout_data, rollout_id)
            option = "--dump-details" if args.dump_details else "--save-debug-rollout-data"
            with writing(f"The samples of rollout {rollout_id}, for {option},", path):
                write_debug_data(path, output)
        self._plugins.notify(
            "slime_rollout_finished", args=args, rollout_id=rollout_id, groups=output.groups, metrics=output.metrics
        )
        if self._convert is not None:
            output = converted(output, self._convert(args, output.samples))
            _check(output.groups, self._convert, need_reward=True)
        if self._post_process is not None and not args.debug_rollout_only:  # which trains on nothing
            output = self._with_final_rewards(output, self._post_process)
        state = self._background.data_state(self._data_source)
        return RolloutResult(output, state, time.perf_counter() - started)

    def _with_final_rewards(
        self, output: RolloutOutput, post_process: Selected[tuple[list[float], list[float]]]
    ) -> RolloutOutput:
        """The rollout with what the post-processing makes of its rewards, unless the converter has made them."""
        samples = output.samples
        if all(sample.final_reward is not None for sample in samples):
            if not self._told_final:
                self._told_final = True
                logger.warning(
                    "The %s is not called: --custom-convert-samples-to-train-data-path returned rewards, which are final.",
                    post_process.label,
                )
            return output
        raw, rewards = post_process(self._args, samples)
        compact(samples)  # of what it has read
        return post_processed(output, raw, rewards, self._args.reward_key)

    def evaluate(self, rollout_id: int) -> RolloutOutput:
        """Make and check the samples of an evaluation."""
        with collecting_old_seldom():
            output = self._eval_rollout(self._args, rollout_id, self._data_source, evaluation=True)
        _check(output.groups, self._eval_rollout, need_reward=False)
        _check([output.generations], self._eval_rollout, need_reward=False, is_read=False)
        _require_dataset(output, self._eval_rollout)
        if self._args.eval_prompt_data and not (output.groups or output.generations or output.metrics):
            sets = ", ".join(name for name, _ in eval_sets(self._args))
            logger.warning(
                "The evaluation measures nothing: %s returned neither samples nor metrics for %s.",
                self._eval_rollout.label,
                sets,
            )
        return output

    def take_weights(self, bucket: list[tuple[str, Tensor]] | None, version: int) -> bool:
        """Hand the engine the next of the trainer's weights of this version, and return when it has read them.

        Args:
            bucket: None after the last one. Then this returns when all of them are in use.

        Returns:
            whether there is an engine that wants more.
        """
        if self._engine is None:
            return False
        if self._intake is None:
            self._intake = WeightIntake(self._engine, version)
        if bucket is not None and self._intake.take(bucket):
            return True
        intake, self._intake = self._intake, None
        intake.end()
        return False

    def drop_weights(self) -> None:
        """Let an update fail whose weights have not all been taken; does nothing if there is none."""
        if self._intake is not None:
            self._intake.drop()
            self._intake = None

    def weight_sender(self) -> WeightSender | None:
        """What hands the weights to the engine from the training process, if the engine has such a thing."""
        return self._engine.weight_sender() if isinstance(self._engine, SendsWeights) else None

    def offload(self) -> None:
        """Let the engine give back the device's memory until `onload`."""
        if isinstance(self._engine, Offloads):
            self._engine.offload()

    def give_up_weights(self) -> None:
        """Let the engine free weights that are replaced before it is asked for anything."""
        if isinstance(self._engine, GivesUpWeights):
            self._engine.give_up_weights()

    def onload(self) -> None:
        """Let the engine take the device's memory again."""
        if isinstance(self._engine, Offloads):
            self._engine.onload()

    def close(self) -> None:
        """End what rollout functions do in the background, and close the engine and, if it is the worker's own, the data
        source."""
        self.drop_weights()  # the engine may be waiting for them
        with ExitStack() as stack:  # each of these, also if the one before fails
            if self._closes_data and isinstance(self._data_source, Closes):
                stack.callback(self._data_source.close)
            if self._engine is not None:
                stack.callback(self._engine.close)
            stack.callback(self._at_end.close)
            stack.callback(self._background.close)


def _require_dataset(output: RolloutOutput, rollout: Selected[RolloutOutput]) -> None:
    """Raise `SampleError` for a sample of an evaluation that does not say which set it belongs to."""
    for sample in (*output.samples, *output.generations):
        if sample.dataset is None:
            error = SampleError(
                f"The evaluation returned {sample.name}, which does not say which set it belongs to; keep the metadata of the "
                "set's samples, or set it with sample.note(dataset=NAME)."
            )
            error.add_note(f"returned by the {rollout.label}")
            raise error


def _metrics_of(source: HasMetrics) -> dict[str, float]:
    try:
        return metric_numbers(source.metrics())
    except DataError as error:
        raise PluginError(
            f"What metrics() of the data source {type(source).__name__} returned cannot be logged: {error}."
        ) from None


def _check(groups: list[Group], rollout: Selected[Any], need_reward: bool, is_read: bool = True) -> None:
    try:
        for group in groups:
            compact(group)
        check_rollout(groups, need_reward, is_read)
        if need_reward:  # it is trained on
            number_groups(groups)
            gather_trajectories(groups)
    except SampleError as error:
        error.add_note(f"returned by the {rollout.label}")
        raise
