"""How a batch of samples comes about: rollout functions, and the hooks around them.

A rollout function that goes on working between its calls names the parameter `background`; see `Background`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from slime_core.contracts.data import state_of
from slime_core.contracts.kind import FailurePolicy, Kind
from slime_core.contracts.results import is_a, is_finite_number, is_none, is_truth, shown
from slime_core.contracts.rollout_outputs import as_rollout_output
from slime_core.plain import plain
from slime_core.sample import Group, RolloutOutput, Sample

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments
    from slime_core.contracts.data import DataSource

EngineUse = Literal["always", "evaluation", "never"]

Function = TypeVar("Function", bound=Callable[..., RolloutOutput])


def generate_rollout(
    args: RunArguments, rollout_id: int, data_source: DataSource, evaluation: bool = False
) -> RolloutOutput:
    """Produce the samples of one rollout, or with `evaluation=True` the samples of all evaluation sets.

    What slime's rollout functions return is read too: a list of groups or an object with `samples` and `metrics`, and for an
    evaluation {set: {"rewards": [...], "samples": [...]}} or an object with that as `data`, and `metrics`.

    A function may name further parameters:

        engine: the run's `InferenceEngine`, None without one. Who names it generates in every rollout, so the engine is
            given the newest weights before each call; see `uses_engine` for a function that does so in evaluations alone.
        background: a `Background`, to keep work in that goes on between the calls.
        components: the run's further components (`slime_core.rollout.components.RolloutComponents`): its reward, its filters.
        plugins: the process's `Plugins`.
        at_end: a `contextlib.ExitStack` that is closed when the run ends, however it ends: for what is kept from call to call.
    """
    raise NotImplementedError


def uses_engine(when: EngineUse) -> Callable[[Function], Function]:
    """Decorator of rollout functions that name the parameter `engine`: when they generate with it, if not always."""

    def mark(function: Function) -> Function:
        function.slime_engine_use = when  # type: ignore[attr-defined]  # read by `slime_core.run.components`
        return function

    return mark


class Work(Protocol):
    """What a rollout function does between its calls.

    Attributes:
        data_state: the state of the data source when the last rollout was returned, with what was in flight; see
            `slime_core.rollout.in_flight`. The work alone calls the data source, so it alone can say.
    """

    data_state: dict[str, Any]

    def close(self) -> None:
        """The run is over: end all threads and requests. Must not raise."""


@dataclass
class Background:
    """Where a rollout function leaves its work; None before its first call.

    The same object is given to every call, evaluation included. The rollout worker asks it for the state that a checkpoint
    shall hold, and closes it when the run ends, however it ends. A function that names the parameter `background` is
    started with `slime train-async`, and is asked for a rollout when the one before has been trained, right after the engine
    was given the new weights.
    """

    work: Work | None = None

    def data_state(self, source: DataSource) -> dict[str, Any]:
        """What a checkpoint of the rollout that was returned last holds of the data source."""
        return state_of(source) if self.work is None else self.work.data_state

    def close(self) -> None:
        """End the work, if there is any."""
        if self.work is not None:
            self.work.close()


async def generate(args: RunArguments, sample: Sample, sampling_params: dict[str, Any]) -> Sample | list[Sample]:
    """Complete one sample, with as many calls of the engine as it takes. May return several samples: the segments of
    one trajectory, which get the `rollout_id` of the given one where they have none, and share its weight.

    Args:
        sample: `prompt` is the text that the model reads, `tokens` its token ids, followed by what an
            aborted call has generated already (`response_length` of them). The function appends to `tokens`, `response`,
            `response_length`, `rollout_log_probs`, `weight_versions` and, for tokens that the model did not produce (tool
            results), a `loss_mask` of 0; and sets `status`: completed, truncated or, when the engine was aborted, aborted.
        sampling_params: for the engine, its `seed` and `max_new_tokens` included. The latter is what is left for the rest of the
            response; to a function that names no `engine` it is, as in slime, the longest response, from which the function itself
            takes what is there already.

    With `--partial-rollout` a trajectory that was stopped is continued by one further call, with the first of its segments that is
    not finished. What that returns takes the place of the segment; finished ones stay as they are and need not be returned
    (`slime_core.trajectories.finished_segments` lists them), and others that are not finished are dropped.

    A function that calls the engine names one more parameter, `engine` (`slime_core.contracts.engine.Generates`). One that names
    `evaluation` is told there whether it answers an evaluation set.
    """
    raise NotImplementedError


async def sample_hook(args: RunArguments, sample: Sample) -> Sample | None:
    """Look at a generated sample before it is scored, or change it: in place, or by returning another one. May also be a plain
    function. Several are called one after the other; each is given what the one before left.

    One that names `rollout_id` or `evaluation` is told there which rollout it is, and whether it answers an evaluation set.
    """
    raise NotImplementedError


def dynamic_filter(args: RunArguments, samples: list[Sample], **kwargs: Any) -> bool | tuple[bool, str]:
    """Keep this finished group for training? A reason may come with the answer; reasons are counted."""
    raise NotImplementedError


def sample_filter(args: RunArguments, groups: list[Group]) -> None:
    """Set `remove_sample` on those samples of a finished rollout that shall not be trained."""
    raise NotImplementedError


def all_samples_process(args: RunArguments, all_samples: list[Group], data_source: DataSource) -> None:
    """Look at (or give back to the data source) all finished groups of a rollout, those that a filter dropped included."""
    raise NotImplementedError


def rollout_log(
    rollout_id: int,
    args: RunArguments,
    samples: list[Sample],
    rollout_extra_metrics: dict[str, float],
    rollout_time: float,
) -> bool | None:
    """Log a rollout oneself. True: slime shall not log its own metrics of it; else it logs what is left in
    `rollout_extra_metrics`, to which numbers may be added."""
    raise NotImplementedError


def eval_rollout_log(
    rollout_id: int, args: RunArguments, data: dict[str, dict[str, Any]], extra_metrics: dict[str, float]
) -> bool | None:
    """Log an evaluation oneself: per set {"rewards": [...], "truncated": [...], "samples": [...]}. True: slime shall not
    log its own metrics of it; else it logs the numbers that were put into `extra_metrics`, too."""
    raise NotImplementedError


def convert_samples(args: RunArguments, samples: list[Sample]) -> dict[str, list[Any]]:
    """The training data of a rollout, one entry per sample in every list, in their order: "tokens", "response_lengths", "rewards",
    "loss_masks", "rollout_log_probs", "rollout_ids", "sample_indices", "truncated" (0 or 1) and, for the metrics alone,
    "raw_reward". What it leaves out stays as the samples have it.

    Rewards that it returns are final: they are trained with as they are, and neither the estimator nor
    `--custom-reward-post-process-path` normalises them.
    """
    raise NotImplementedError


def rollout_data_postprocess(args: RunArguments, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    """Change what a rollout is trained with, after log-probs and advantages have been computed and before the first optimizer
    step: masks above all. Called in every training rank with the whole rollout, so it must do the same in each; that is checked.

    Args:
        rollout_data: lists with one entry for each sample: "tokens", "response_lengths", "total_lengths", "rewards" (normalised in their
            groups as slime does), "raw_reward", "sample_indices", "rollout_ids", "truncated", which must stay as they are; "loss_masks"
            and, where they have been computed, "log_probs" (the trainer's), "ref_log_probs", "rollout_log_probs" (the engine's, which
            the ratio is taken from under --use-rollout-logprobs), "values", "advantages" and "returns": tensors of response_length
            numbers, to be changed in place or replaced. A mask may train a token that was not trained where none of these but the
            engine's "rollout_log_probs", "advantages" and "returns" is there: others are computed for trained tokens alone. A
            further list of one number for each sample is logged, as its mean.
    """
    raise NotImplementedError


def _check_hooked(result: Any, args: tuple[Any, ...]) -> str | None:
    return None if result is None or isinstance(result, Sample) else f"{shown(result)}; expected a Sample, or None"


def _check_verdict(result: Any, args: tuple[Any, ...]) -> str | None:
    keep = result[0] if isinstance(result, tuple) and len(result) == 2 else getattr(result, "keep", result)
    # A truth value of any library will do, such as the 0-d tensor of slime's own filters, and a number, as a sum of conditions is.
    if isinstance(keep, (bool, int, float)) or (hasattr(keep, "dtype") and math.prod(keep.shape) == 1):
        return None
    return f"{shown(result)}; expected True or False, or a pair of that and a reason"


def _check_generated(result: Any, args: tuple[Any, ...]) -> str | None:
    samples = result if isinstance(result, list) else [result]
    if samples and all(isinstance(sample, Sample) for sample in samples):
        return None
    return f"{shown(result)}; expected a Sample or a list of at least one"


def _check_train_data(result: Any, args: tuple[Any, ...]) -> str | None:
    samples: Sequence[Sample] = args[1]
    if not isinstance(result, dict):
        return f"{shown(result)}; expected a dict of lists"
    for name in result:
        if not isinstance(result[name], (list, tuple)) or len(result[name]) != len(samples):
            return (
                f"{shown(result[name])} as {name!r}; expected a list with one entry for each of {len(samples)} samples"
            )
    lengths = result.get("response_lengths", [sample.response_length for sample in samples])
    for index, length in enumerate(lengths):
        for name in result.keys() & {"loss_masks", "rollout_log_probs"}:
            entry = result[name][index]
            if entry is not None and len(entry) != length:
                return f"{len(entry)} {name} for sample {index}; expected {length}, as its response_length is {length}"
        if "tokens" in result and len(result["tokens"][index]) < length:
            return f"{len(result['tokens'][index])} tokens for sample {index}, whose response_length is {length}"
        if "rewards" in result and not is_finite_number(result["rewards"][index]):
            return f"{shown(result['rewards'][index])} as reward of sample {index}; expected a finite number"
    return None


KINDS = (
    Kind(
        "rollout",
        "slime_rollouts",
        generate_rollout,
        ("--rollout-function-path", "--eval-function-path"),
        extras=("plugins", "components", "engine", "background", "at_end"),
        marks=("slime_engine_use",),
        normalise=as_rollout_output,
        check=is_a(RolloutOutput),
    ),
    Kind(
        "generator",
        "slime_generators",
        generate,
        ("--custom-generate-function-path",),
        extras=("engine", "evaluation"),
        check=_check_generated,
        policy=FailurePolicy(timeout=3600.0, on_failure="drop", abort_after=20),
    ),
    Kind(
        "sample_hook",
        "slime_sample_hooks",
        sample_hook,
        ("--rollout-sample-hook-path",),
        extras=("rollout_id", "evaluation"),
        check=_check_hooked,
        policy=FailurePolicy(),
    ),
    Kind(
        "dynamic_filter",
        "slime_dynamic_filters",
        dynamic_filter,
        ("--dynamic-sampling-filter-path",),
        check=_check_verdict,
        policy=FailurePolicy(),
    ),
    Kind(
        "sample_filter",
        "slime_sample_filters",
        sample_filter,
        ("--rollout-sample-filter-path",),
        check=is_none("it sets remove_sample on the samples"),
        policy=FailurePolicy(),
    ),
    Kind(
        "all_samples_process",
        "slime_all_samples_processes",
        all_samples_process,
        ("--rollout-all-samples-process-path",),
        check=is_none("it looks at the groups, or hands them to the data source"),
        policy=FailurePolicy(),
    ),
    Kind(
        "rollout_log",
        "slime_rollout_logs",
        rollout_log,
        ("--custom-rollout-log-function-path",),
        check=is_truth,
    ),
    Kind(
        "eval_rollout_log",
        "slime_eval_rollout_logs",
        eval_rollout_log,
        ("--custom-eval-rollout-log-function-path",),
        check=is_truth,
    ),
    Kind(
        "sample_converter",
        "slime_sample_converters",
        convert_samples,
        ("--custom-convert-samples-to-train-data-path",),
        normalise=lambda result: plain(dict(result), "the training data") if isinstance(result, Mapping) else result,
        check=_check_train_data,
    ),
    Kind(
        "rollout_data_postprocess",
        "slime_rollout_data_postprocesses",
        rollout_data_postprocess,
        ("--rollout-data-postprocess-path",),
        check=is_none("it changes rollout_data in place"),
    ),
)
