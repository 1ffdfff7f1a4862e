"""Numbers of a rollout: what was sampled, and what became of every token. Pure.

Response tokens are conserved, which `token_counts` makes visible:

    generated + taken from the buffer + inserted = returned + put back + discarded

where "inserted" are tokens that a generator of one's own adds (tool results), 0 for a single turn.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from slime_core.sample import Group, Sample, Status, reward_of
from slime_rollout_sglang.partial import FINISHED
from slime_rollout_sglang.sampling import Sampled


def rollout_metrics(
    args: Any, sampled: Sampled, returned: Sequence[Group], trained_version: int | None
) -> dict[str, float]:
    """The metrics of one rollout, names as `rollout/…` of the run.

    Args:
        args: reads `reward_key`.
        sampled: how sampling ended.
        returned: per group of `sampled.stopped`, what went back to the data source.
        trained_version: of the weights that the rollout is trained with; None: it is not trained.
    """
    groups = [flight.samples for flight in sampled.kept]
    return {
        **response_metrics([sample for group in groups for sample in group]),
        **_reward_metrics(groups, args.reward_key),
        **_group_metrics(sampled),
        **_staleness([sample for group in groups for sample in group], trained_version),
        **token_counts(sampled, returned),
    }


def response_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Lengths in tokens, and how many responses were cut off or empty."""
    lengths = [sample.response_length for sample in samples]
    found = {
        "response_len/mean": statistics.fmean(lengths),
        "response_len/min": float(min(lengths)),
        "response_len/max": float(max(lengths)),
        "truncated_ratio": sum(s.status is Status.TRUNCATED for s in samples) / len(samples),
    }
    empty = lengths.count(0)
    return {**found, **({"empty_responses": float(empty)} if empty else {})}


def token_counts(sampled: Sampled, returned: Sequence[Group]) -> dict[str, float]:
    """What became of response tokens; see the module.

    "aborted_tokens_discarded" are those of groups that were stopped and start afresh, "discarded_tokens" all that are
    neither trained nor put back, those included.
    """
    taken = generated = inserted = rejected = 0
    for flight in sampled.flights:
        before, held = _length(flight.group), _length(flight.samples)
        taken += before
        generated += flight.generated
        if flight.lost:
            rejected += before + flight.generated
            continue
        inserted += max(0, held - before - flight.generated)
        rejected += max(0, before + flight.generated - held)  # generated in attempts that failed and were made again
    rejected += sum(_length(flight.samples) for flight in sampled.rejected)
    aborted = sum(
        _length(flight.samples) - _length(group) for flight, group in zip(sampled.stopped, returned, strict=True)
    )
    counts = {
        "generated_tokens": generated,
        "buffered_tokens_taken": taken,
        "inserted_tokens": inserted,
        "returned_tokens": sum(_length(flight.samples) for flight in sampled.kept),
        "buffered_tokens_put_back": sum(map(_length, returned)),
        "aborted_tokens_discarded": aborted,
        "discarded_tokens": rejected + aborted,
    }
    return {name: float(count) for name, count in counts.items()}


def _reward_metrics(groups: Sequence[Group], key: str | None) -> dict[str, float]:
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
    taken = [sample for flight in sampled.flights for sample in flight.group]
    lost = Counter(flight.lost for flight in sampled.lost)
    return {
        "sampling/rounds": float(sampled.rounds),
        "sampling/groups_started": float(len(sampled.flights)),
        "sampling/groups_filtered": float(sum(sampled.reasons.values())),
        "sampling/groups_stopped": float(len(sampled.stopped)),
        "sampling/groups_made_up": float(sampled.made_up),
        "sampling/samples_continued": float(sum(s.response_length > 0 and s.status not in FINISHED for s in taken)),
        "sampling/samples_reused": float(sum(s.status in FINISHED for s in taken)),
        **{f"dynamic_filter/drop_{reason}": float(count) for reason, count in sorted(sampled.reasons.items())},
        **{f"sampling/groups_lost_{why}": float(count) for why, count in sorted(lost.items())},
    }


def _staleness(samples: Sequence[Sample], trained_version: int | None) -> dict[str, float]:
    """By how many versions tokens are behind the weights that are trained, and the share of those that are."""
    versions = [int(version) for sample in samples for version in sample.weight_versions]
    if trained_version is None or not versions:
        return {}
    return {
        "staleness/max": float(trained_version - min(versions)),
        "staleness/mean": trained_version - statistics.fmean(versions),
        "staleness/older_share": sum(version < trained_version for version in versions) / len(versions),
    }


def _length(group: Sequence[Sample]) -> int:
    return sum(sample.response_length for sample in group)
