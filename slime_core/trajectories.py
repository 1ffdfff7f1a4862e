"""Trajectories: what losses, baselines and means count as one. Pure functions.

A generate function may return several samples for one: the turns of a conversation whose context is rewritten in between, or
the answers of several agents. They are the *segments* of one trajectory and share its weight, however many they are. The
number of a trajectory is the `rollout_id` of its samples or, where that is None, their `index`. Without such generate
functions every sample is a trajectory of its own, and nothing here has any effect.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import chain

from slime_core.errors import SampleError
from slime_core.sample import RESERVED, Group, Sample, notes_of, reward_of

_FINISHED = "finished_segments"


def number_of(sample: Sample) -> int | None:
    """The number of the trajectory of a sample; None for one without `rollout_id` and `index`, which is one of its own."""
    return sample.index if sample.rollout_id is None else sample.rollout_id


def trajectory_numbers(samples: Iterable[Sample]) -> list[int]:
    """For each sample the place of its trajectory, 0 … R-1, in the order in which they first occur."""
    places: dict[int | tuple[int], int] = {}
    found = []
    for position, sample in enumerate(samples):
        number = number_of(sample)
        found.append(places.setdefault((position,) if number is None else number, len(places)))
    return found


def in_trajectories(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The samples of each trajectory, in the order in which trajectories first occur."""
    found: dict[int, list[Sample]] = {}
    for place, sample in zip(trajectory_numbers(samples), samples, strict=True):
        found.setdefault(place, []).append(sample)
    return list(found.values())


def means_of_trajectories(samples: Sequence[Sample], values: Sequence[float]) -> list[float]:
    """For each trajectory the mean of its segments' values, in the order in which trajectories first occur.

    Args:
        values: one for each sample.
    """
    found: dict[int, list[float]] = {}
    for place, value in zip(trajectory_numbers(samples), values, strict=True):
        found.setdefault(place, []).append(value)
    return [own[0] if len(own) == 1 else statistics.mean(own) for own in found.values()]


def trajectory_rewards(samples: Sequence[Sample], key: str | None) -> list[float]:
    """The reward of each trajectory: the mean of those of its segments.

    Args:
        key: which number of a reward that is a dict counts.

    Raises:
        SampleError: a sample has no such number.
    """
    return means_of_trajectories(samples, [reward_of(sample, key) for sample in samples])


def trajectory_worths(samples: Sequence[Sample], key: str | None) -> list[float]:
    """What each trajectory was worth, which is logged: like `trajectory_rewards`, but of a sample in whose metadata a hook has noted a
    number as "raw_reward", as in slime, that number."""
    return means_of_trajectories(samples, [worth(sample, key) for sample in samples])


def worth(sample: Sample, key: str | None) -> float:
    """What a sample was worth: what a hook has noted, or its reward."""
    noted = noted_worth(sample)
    return reward_of(sample, key) if noted is None else noted


def noted_worth(sample: Sample) -> float | None:
    """The number that a hook has noted as "raw_reward" in the metadata of a sample, or that a post-processing of rewards called raw; None
    where there is none."""
    noted = sample.metadata.get("raw_reward")
    if isinstance(noted, (int, float)) and not isinstance(noted, bool) and math.isfinite(noted):
        return float(noted)
    raw: float | None = notes_of(sample).get("worth")
    return raw


def worth_metrics(groups: Sequence[Group], worths: Sequence[float | None]) -> dict[str, float]:
    """What is logged of the worths of a rollout: "raw_reward", their mean over trajectories, and "passrate/pass@k".

    Args:
        worths: one for each sample; None where it is not known, which leaves the sample out.
    """
    rest = iter(worths)
    known = [[(sample, one) for sample, one in zip(group, rest, strict=False) if one is not None] for group in groups]
    of_groups = [means_of_trajectories(*zip(*pairs, strict=True)) for pairs in known if pairs]
    if not of_groups:
        return {}
    rates = {f"passrate/{name}": rate for name, rate in pass_rates(of_groups).items()}
    return {"raw_reward": float(statistics.mean(chain(*of_groups))), **rates}


def pass_rates(groups: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return "pass@k" for k = 1, 2, 4, … up to the trajectories of the smallest group.

    It is the mean over the groups of `pass_at_k`. A trajectory is correct if its reward is 1, as in slime.

    Args:
        groups: the rewards of the trajectories of each prompt.
    """
    fewest = min(map(len, groups), default=0)
    return {
        f"pass@{k}": statistics.fmean(
            pass_at_k(len(group), sum(reward == 1 for reward in group), k) for group in groups
        )
        for k in (2**i for i in range(fewest.bit_length()))
    }


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Return the probability that at least one of k answers, drawn from n without replacement, is correct.

    That is 1 - C(n - correct, k) / C(n, k), where `correct` of the n answers are: the unbiased estimator of Chen et al. (arXiv
    2107.03374).
    """
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def finished_segments(sample: Sample) -> list[Sample]:
    """What a generate function that goes on with the segment `sample` need not make again: the segments of its trajectory that
    earlier rollouts have finished, in their order. They stay without being returned."""
    return [Sample.from_dict(one) for one in notes_of(sample).get(_FINISHED, ())]


def with_finished_segments(sample: Sample, finished: Sequence[Sample]) -> Sample:
    """The sample, with what `finished_segments` then returns."""
    noted = dict(notes_of(sample))
    noted.pop(_FINISHED, None)
    if finished:
        noted[_FINISHED] = [one.to_dict() for one in finished]
    metadata = {key: value for key, value in sample.metadata.items() if key != RESERVED}
    return sample.changed(metadata={**metadata, RESERVED: noted} if noted else metadata)


def as_one_trajectory(given: Sample, made: Sequence[Sample]) -> list[Sample]:
    """The samples that were made of `given` as the segments of its trajectory.

    Where they have no `index`, `group_index` or `rollout_id` they get those of `given`, whose own `rollout_id` wins, since it is
    that of a trajectory which goes on; a single one that has its `index` needs no `rollout_id`. They keep what slime has noted of
    `given`, such as its set, also where a hook has replaced the metadata.

    Raises:
        SampleError: they have different `rollout_id`s; names them.
    """
    chosen = {one.rollout_id for one in made if one.rollout_id is not None}
    if len(chosen) > 1:
        raise SampleError(
            f"The {len(made)} samples that were made of {given.name} have the rollout_ids "
            f"{', '.join(sorted(map(str, chosen)))}; the segments of one trajectory share one. Leave them out, or set "
            f"sample.rollout_id = {number_of(given)} in each."
        )
    number = chosen.pop() if chosen and given.rollout_id is None else number_of(given)
    segments = []
    for one in made:
        index = given.index if one.index is None else one.index
        group_index = given.group_index if one.group_index is None else one.group_index
        needs_none = len(made) == 1 and index == number
        segment = one.changed(index=index, group_index=group_index, rollout_id=one.rollout_id if needs_none else number)
        if lost := notes_of(given).keys() - notes_of(one).keys():
            segment.note(**{key: notes_of(given)[key] for key in sorted(lost)})
        segments.append(segment)
    return segments


def gather_trajectories(groups: Sequence[Group]) -> None:
    """Put the segments of a trajectory next to each other in their group, in place; all else keeps its order.

    Raises:
        SampleError: a trajectory has samples in two groups, or two samples have the same `index` and no `rollout_id`; names
            them.
    """
    owners: dict[int, tuple[int, Sample]] = {}
    for place, group in enumerate(groups):
        for sample in group:
            number = number_of(sample)
            if number is None:
                continue
            if number not in owners:
                owners[number] = place, sample
                continue
            owner, first = owners[number]
            if owner != place:
                raise SampleError(
                    f"The rollout returned {first.name} of group {first.group_index} and {sample.name} of group "
                    f"{sample.group_index} as parts of the trajectory {number} (their rollout_id or, without one, their index); "
                    "every trajectory belongs to one group."
                )
            if first.rollout_id is None and sample.rollout_id is None:
                raise SampleError(
                    f"The rollout returned two samples with the index {number} and no rollout_id. Give every sample an index of "
                    "its own or, if they are segments of one trajectory, set their rollout_id."
                )
        group[:] = [sample for segments in in_trajectories(group) for sample in segments]
