"""Reads what a rollout function returned in slime's forms as a `RolloutOutput`. Called for every rollout. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slime_core.contracts.results import shown
from slime_core.errors import DataError, SampleError
from slime_core.plain import plain
from slime_core.sample import Group, RolloutOutput, Sample
from slime_core.trajectories import as_one_trajectory


def as_rollout_output(result: Any) -> Any:
    """Return a `RolloutOutput` for the forms in which slime's rollout functions answer; what is none of them as it is.

    For training those are a list of groups, or an object with `samples`, which is one, and `metrics`. For evaluation, a dict
    with {"rewards": [...], "samples": [...]} of every set, or an object with `data`, which is one, and `metrics`. A group may hold
    lists of samples: the segments of one trajectory, which get one `rollout_id` where they have none.

    Raises:
        DataError: segments of one trajectory have different `rollout_id`s, or an evaluation has no samples, or rewards for others than it has;
            or a metric is no number.
    """
    if isinstance(result, RolloutOutput):
        result.metrics = metric_numbers(result.metrics)
        return result
    if isinstance(result, Sample) or result is None:
        return result
    metrics = metric_numbers(getattr(result, "metrics", None) or {})
    data = getattr(result, "data", result)
    if isinstance(data, Mapping):
        generations = [sample for name in data for sample in _answers(str(name), data[name])]
        return RolloutOutput([], _below("eval/", metrics), generations)
    groups = getattr(result, "samples", result)
    if isinstance(groups, list) and groups and all(isinstance(group, list) for group in groups):
        return RolloutOutput([_flat(group) for group in groups], _below("rollout/", metrics))
    return result


def _flat(group: list[Any]) -> Group:
    """The samples of a group whose members are samples or, at any depth, lists of segments."""

    def samples(members: list[Any]) -> Iterator[Sample]:
        for member in members:
            if not isinstance(member, list):
                yield member
            elif member and all(isinstance(one, Sample) for one in member):
                yield from _one_trajectory(member)
            else:
                yield from samples(member)

    return list(samples(group))


def _one_trajectory(segments: list[Sample]) -> list[Sample]:
    try:
        return as_one_trajectory(segments[0], segments)
    except SampleError as error:
        raise DataError(str(error).rstrip(".")) from None


def _answers(name: str, found: Any) -> Iterator[Sample]:
    """Yield the answers to one evaluation set, each with its reward and the name of the set."""
    samples = _flat(found.get("samples") or []) if isinstance(found, Mapping) else []
    if not samples:
        raise DataError(f'the evaluation set {name!r} has no "samples", which are written and counted')
    rewards = plain(found.get("rewards", [sample.reward for sample in samples]), f"the rewards of {name!r}")
    if len(rewards) != len(samples):
        raise DataError(f"the evaluation set {name!r} has {len(rewards)} rewards for {len(samples)} samples")
    for sample, reward in zip(samples, rewards, strict=True):
        sample.note(dataset=name)
        sample.reward = reward
        yield sample


def metric_numbers(metrics: Any) -> dict[str, float]:
    """Return metrics as plain numbers, which numbers of numpy and torch become.

    Raises:
        DataError: one is no number; names it.
    """
    values = plain(metrics, "the metrics")
    if not isinstance(values, dict):
        raise DataError(f"the metrics are {shown(metrics)}, expected a dict of numbers")
    for name, value in values.items():
        if not isinstance(value, (int, float)):
            raise DataError(f"the metric {name!r} is {shown(value)}, expected a number")
    return {name: float(value) if isinstance(value, bool) else value for name, value in values.items()}


def _below(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    """Metrics of a function of slime, which gives them their full names, as a `RolloutOutput` has them."""
    return {name.removeprefix(prefix): value for name, value in metrics.items()}
