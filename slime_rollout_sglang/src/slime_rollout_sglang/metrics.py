"""The numbers of a rollout: what was sampled, and what became of every response token. Pure functions.

Response tokens are conserved, which `token_counts` makes visible:

    generated + taken from the buffer + inserted = returned + put back + discarded

where "inserted" are tokens that a generate function adds itself, such as the results of tools; 0 for a single turn.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slime_core.contracts.results import is_finite_number
from slime_core.sample import Group, Sample, Status, reward_of
from slime_rollout_sglang.partial import FINISHED
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
        **reward_numbers([sample.reward for sample in samples]),
        **_group_metrics(sampled),
        **_staleness(samples, trained_version),
        **token_counts(sampled, returned),
    }


def response_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the lengths of responses in tokens, and how many were cut off or empty."""
    lengths = [sample.response_length for sample in samples]
    found = {
        "response_len/mean": statistics.fmean(lengths),
        "response_len/min": float(min(lengths)),
        "response_len/max": float(max(lengths)),
        "truncated_ratio": sum(s.status is Status.TRUNCATED for s in samples) / len(samples),
    }
    empty = lengths.count(0)
    return {**found, **({"empty_responses": float(empty)} if empty else {})}


def reward_numbers(rewards: Sequence[Any]) -> dict[str, float]:
    """Return the mean of every number that rewards which are dicts have, as "reward/KEY", over those that have it."""
    found: dict[str, list[float]] = {}
    for reward in rewards:
        for key, value in reward.items() if isinstance(reward, dict) else ():
            if is_finite_number(value):
                found.setdefault(key, []).append(value)
    return {f"reward/{key}": float(statistics.mean(values)) for key, values in sorted(found.items())}


def token_counts(sampled: Sampled, returned: Sequence[Group]) -> dict[str, float]:
    """Return what became of response tokens, by the equation at the top of this module.

    "aborted_tokens_discarded" are the tokens of groups that were stopped and start afresh, "discarded_tokens" all tokens
    that are neither returned nor put back, those included.
    """
    taken = generated = inserted = rejected = 0
    for group in sampled.started:
        before, held = _length(group.given), _length(group.samples)
        taken += before
        generated += group.generated_tokens
        if group.lost:
            rejected += before + group.generated_tokens
            continue
        inserted += max(0, held - before - group.generated_tokens)
        rejected += max(0, before + group.generated_tokens - held)  # of attempts that failed and were made again
    rejected += sum(_length(group.samples) for group in sampled.rejected)
    aborted = sum(_length(group.samples) - _length(back) for group, back in zip(sampled.stopped, returned, strict=True))
    counts = {
        "generated_tokens": generated,
        "buffered_tokens_taken": taken,
        "inserted_tokens": inserted,
        "returned_tokens": sum(_length(group.samples) for group in sampled.kept),
        "buffered_tokens_put_back": sum(map(_length, returned)),
        "aborted_tokens_discarded": aborted,
        "discarded_tokens": rejected + aborted,
    }
    return {name: float(count) for name, count in counts.items()}


def _reward_metrics(groups: Sequence[Group], key: str | None) -> dict[str, float]:
    """Return mean and spread of the rewards, and how many groups have equal ones."""
    rewards = [[reward_of(sample, key) for sample in group] for group in groups]
    every = [reward for group in rewards for reward in group]
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
    taken = [sample for group in started for sample in group.given]
    lost = Counter(group.lost for group in sampled.lost)
    return {
        "sampling/rounds": float(sampled.rounds),
        "sampling/groups_started": float(len(started)),
        "sampling/groups_filtered": float(sum(sampled.reasons.values())),
        "sampling/groups_stopped": float(len(sampled.stopped)),
        "sampling/groups_made_up": float(sampled.made_up),
        "sampling/samples_continued": float(sum(s.response_length > 0 and s.status not in FINISHED for s in taken)),
        "sampling/samples_reused": float(sum(s.status in FINISHED for s in taken)),
        **{f"dynamic_filter/drop_{reason}": float(count) for reason, count in sorted(sampled.reasons.items())},
        **{f"sampling/groups_lost_{why}": float(count) for why, count in sorted(lost.items())},
    }


def _staleness(samples: Sequence[Sample], trained_version: int | None) -> dict[str, float]:
    """Return by how many versions tokens are behind the weights that they train, and the share of those that are."""
    versions = [int(version) for sample in samples for version in sample.weight_versions]
    if trained_version is None or not versions:
        return {}
    return {
        "staleness/max": float(trained_version - min(versions)),
        "staleness/mean": trained_version - statistics.fmean(versions),
        "staleness/older_share": sum(version < trained_version for version in versions) / len(versions),
    }


def _length(group: Sequence[Sample]) -> int:
    """Return the number of response tokens of a group."""
    return sum(sample.response_length for sample in group)
