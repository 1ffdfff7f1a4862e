"""The numbers of a rollout: what was sampled, and what became of every response token. Pure functions.

Response tokens are conserved, which `token_counts` makes visible:

    generated + taken from the buffer + inserted = returned + put back + discarded

where "inserted" are tokens that a generate function adds itself, such as the results of tools; 0 for a single turn.

Means count trajectories: the segments of one share its weight (`slime_core.trajectories`).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slime_core.contracts.results import is_finite_number
from slime_core.sample import Group, Sample, Status, reward_of
from slime_core.token_arrays import versions
from slime_core.trajectories import in_trajectories, means_of_trajectories
from slime_rollout_sglang.partial import earlier_segments, segments_of, to_continue
from slime_rollout_sglang.sampling import Sampled

if TYPE_CHECKING:
    from slime_core.arguments.groups.training import TrainArguments


def rollout_metrics(
    args: TrainArguments, sampled: Sampled, returned: Sequence[Group], trained_version: int | None
) -> dict[str, float]:
    """Return the metrics of one rollout; the run logs each as `rollout/NAME`.

    Args:
        args: `reward_key` says which number of a reward that is a dict counts.
        sampled: how sampling ended.
        returned: for each group of `sampled.stopped`, what went back to the data source.
        trained_version: the version of the weights that the rollout trains; None if it is not trained.
    """
    groups = [group.samples for group in sampled.kept]
    samples = [sample for group in groups for sample in group]
    return {
        **response_metrics(samples),
        **_reward_metrics(groups, args.reward_key),
        **reward_numbers(samples, [sample.reward for sample in samples]),
        **_group_metrics(sampled),
        **_staleness(samples, trained_version),
        **token_counts(sampled, returned),
    }


def response_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the lengths of responses in tokens, how many were cut off or empty, and, where generate functions made several samples
    of one, how many. As in slime, lengths leave out what the loss mask does, such as tokens of tools."""
    lengths = [sample.effective_response_length for sample in samples]
    found = {
        "response_len/mean": statistics.fmean(means_of_trajectories(samples, lengths)),
        "response_len/min": float(min(lengths)),
        "response_len/max": float(max(lengths)),
        "truncated_ratio": statistics.fmean(
            means_of_trajectories(samples, [float(s.status is Status.TRUNCATED) for s in samples])
        ),
    }
    if empty := sum(not sample.response_length for sample in samples):
        found["empty_responses"] = float(empty)
    segments = [len(trajectory) for trajectory in in_trajectories(samples)]
    if len(segments) < len(samples):
        found |= {"segments/mean": statistics.fmean(segments), "segments/max": float(max(segments))}
    return found


def reward_numbers(samples: Sequence[Sample], rewards: Sequence[Any]) -> dict[str, float]:
    """Return the mean of every number that rewards which are dicts have, as "reward/KEY", over those that have it.

    Args:
        rewards: one for each sample.
    """
    found: dict[str, tuple[list[Sample], list[float]]] = {}
    for sample, reward in zip(samples, rewards, strict=True):
        for key, value in reward.items() if isinstance(reward, dict) else ():
            if is_finite_number(value):
                owners, values = found.setdefault(key, ([], []))
                owners.append(sample)
                values.append(value)
    return {
        f"reward/{key}": float(statistics.mean(means_of_trajectories(owners, values)))
        for key, (owners, values) in sorted(found.items())
    }


def token_counts(sampled: Sampled, returned: Sequence[Group]) -> dict[str, float]:
    """Return what became of response tokens, by the equation at the top of this module.

    "aborted_tokens_discarded" are the tokens of groups that were stopped and start afresh, "discarded_tokens" all tokens
    that are neither returned nor put back, those included.
    """
    taken = generated = inserted = rejected = 0
    for group in sampled.started:
        before, held = _length(earlier_segments(group.given)), _length(group.samples)
        taken += before
        generated += group.generated_tokens
        if group.lost:
            rejected += before + group.generated_tokens
            continue
        inserted += max(0, held - before - group.generated_tokens)
        rejected += max(0, before + group.generated_tokens - held)  # of attempts that failed and were made again
    rejected += sum(_length(group.samples) for group in sampled.rejected)
    put_back = [_length(earlier_segments(group)) for group in returned]
    aborted = sum(_length(group.samples) - back for group, back in zip(sampled.stopped, put_back, strict=True))
    counts = {
        "generated_tokens": generated,
        "buffered_tokens_taken": taken,
        "inserted_tokens": inserted,
        "returned_tokens": sum(_length(group.samples) for group in sampled.kept),
        "buffered_tokens_put_back": sum(put_back),
        "aborted_tokens_discarded": aborted,
        "discarded_tokens": rejected + aborted,
    }
    return {name: float(count) for name, count in counts.items()}


def _reward_metrics(groups: Sequence[Group], key: str | None) -> dict[str, float]:
    """Return mean and spread of the rewards of trajectories, and how many groups have equal ones."""
    rewards = [[reward_of(sample, key) for sample in group] for group in groups]
    every = [mean for group, own in zip(groups, rewards, strict=True) for mean in means_of_trajectories(group, own)]
    equal = Counter(f"{group[0]:.1f}" for group in rewards if len(set(group)) == 1)
    return {
        "raw_reward": float(statistics.mean(every)),  # `fmean` and squares overflow for huge rewards
        "reward_std": float(statistics.pstdev(every)),
        "zero_std/share": sum(equal.values()) / len(groups),
        **{f"zero_std/count_{value}": float(count) for value, count in sorted(equal.items())},
    }


def _group_metrics(sampled: Sampled) -> dict[str, float]:
    """Return how many groups were started, filtered out, stopped and lost."""
    started = sampled.started
    taken = [earlier for group in started for sample in group.given if (earlier := segments_of(sample))]
    lost = Counter(group.lost for group in sampled.lost)
    return {
        "sampling/rounds": float(sampled.rounds),
        "sampling/groups_started": float(len(started)),
        "sampling/groups_filtered": float(sum(sampled.reasons.values())),
        "sampling/groups_stopped": float(len(sampled.stopped)),
        "sampling/groups_made_up": float(sampled.made_up),
        "sampling/samples_continued": float(sum(to_continue(earlier) is not None for earlier in taken)),
        "sampling/samples_reused": float(sum(to_continue(earlier) is None for earlier in taken)),
        **{f"dynamic_filter/drop_{reason}": float(count) for reason, count in sorted(sampled.reasons.items())},
        **{f"sampling/groups_lost_{why}": float(count) for why, count in sorted(lost.items())},
    }


def _staleness(samples: Sequence[Sample], trained_version: int | None) -> dict[str, float]:
    """Return by how many versions tokens are behind the weights that they train, and the share of those that are."""
    counts: Counter[int] = Counter()
    for sample in samples:
        for version, count in versions(sample).items():
            counts[int(version)] += count
    if trained_version is None or not counts:
        return {}
    tokens = counts.total()
    return {
        "staleness/max": float(trained_version - min(counts)),
        "staleness/mean": trained_version - sum(version * count for version, count in counts.items()) / tokens,
        "staleness/older_share": sum(count for version, count in counts.items() if version < trained_version) / tokens,
    }


def _length(group: Sequence[Sample]) -> int:
    """Return the number of response tokens of a group."""
    return sum(sample.response_length for sample in group)
