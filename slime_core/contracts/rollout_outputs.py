"""Reads what a rollout function returned in slime's forms as a `RolloutOutput`. Called for every rollout. Pure, but for a warning."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from slime_core.contracts.results import shown
from slime_core.errors import DataError, SampleError
from slime_core.plain import plain
from slime_core.sample import Group, RolloutOutput, Sample, Status
from slime_core.trajectories import as_one_trajectory

logger = logging.getLogger(__name__)

_told: set[str] = set()  # metrics that are texts, each of which is told of once


def as_rollout_output(result: Any) -> Any:
    """Return a `RolloutOutput` for the forms in which slime's rollout functions answer; what is none of them as it is.

    For training those are a list of groups, or an object with `samples`, which is one, and `metrics`. For evaluation, a dict
    with {"rewards": [...], "truncated": [...], "samples": [...]} of every set, or an object with `data`, which is one, and `metrics`.
    Of a set rewards or samples suffice; what "truncated" says goes into the samples' status. A group may hold lists of samples: the
    segments of one trajectory, which get one `rollout_id` where they have none.

    Raises:
        DataError: segments of one trajectory have different `rollout_id`s, or an evaluation set has neither rewards nor samples, or not one reward
            for each sample; or a metric is neither a number nor a text, or something stands where a group or a sample belongs.
    """
    output = _read(result)
    if isinstance(output, RolloutOutput):
        _require_groups(output)
    return output


def _require_groups(output: RolloutOutput) -> None:
    if not isinstance(output.groups, (list, tuple)):
        raise DataError(f"its groups are {shown(output.groups)}, expected a list of groups, one for each prompt")
    for group in output.groups:
        if not _are_samples(group):
            raise DataError(
                f"{shown(group)} stands where a group belongs, expected a list of samples, those of one prompt"
            )
    if not _are_samples(output.generations):
        raise DataError(f"its generations are {shown(output.generations)}, expected a list of samples")


def _are_samples(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(sample, Sample) for sample in value)


def _read(result: Any) -> Any:
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
    """Yield the answers to one evaluation set, each with its reward, whether it was cut off, and the name of the set. Rewards that come
    without samples get samples of which nothing else is known."""
    given = found if isinstance(found, Mapping) else {}
    columns = {key: _list(name, key, given[key]) for key in ("rewards", "truncated") if key in given}
    samples = _flat(given.get("samples") or [])
    samples = samples or [Sample(index=n, status=Status.COMPLETED) for n in range(len(columns.get("rewards", [])))]
    if not samples:
        raise DataError(f'the evaluation set {name!r} has neither "rewards" nor "samples"')
    for key, values in columns.items():
        if len(values) != len(samples):
            raise DataError(f"the evaluation set {name!r} has {len(values)} {key} for {len(samples)} samples")
    for number, sample in enumerate(samples):
        sample.note(dataset=name)
        if "rewards" in columns:
            sample.reward = columns["rewards"][number]
        if "truncated" in columns and bool(columns["truncated"][number]) != (sample.status == Status.TRUNCATED):
            sample.status = Status.TRUNCATED if columns["truncated"][number] else Status.COMPLETED
        yield sample


def _list(name: str, key: str, values: Any) -> list[Any]:
    made = plain(values, f"the {key} of {name!r}")
    if not isinstance(made, list):
        raise DataError(f"the {key} of the evaluation set {name!r} are {shown(made)}, expected a list")
    return made


def metric_numbers(metrics: Any) -> dict[str, float]:
    """Return metrics as plain numbers, which numbers of numpy and torch become. Texts, which slime's functions may return, are left out,
    with one warning for each name.

    Raises:
        DataError: one is neither a number nor a text; names it.
    """
    values = plain(metrics, "the metrics")
    if not isinstance(values, dict):
        raise DataError(f"the metrics are {shown(metrics)}, expected a dict of numbers")
    texts = {name for name, value in values.items() if isinstance(value, str)}
    for name in sorted(texts - _told):
        _told.add(name)
        logger.warning(
            "The metric %r is the text %s; metrics are numbers, so it is not logged", name, shown(values[name])
        )
    for name, value in values.items():
        if name not in texts and not isinstance(value, (int, float)):
            raise DataError(f"the metric {name!r} is {shown(value)}, expected a number")
    return {
        name: float(value) if isinstance(value, bool) else value for name, value in values.items() if name not in texts
    }


def _below(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    """Metrics of a function of slime, which gives them their full names, as a `RolloutOutput` has them."""
    return {name.removeprefix(prefix): value for name, value in metrics.items()}
