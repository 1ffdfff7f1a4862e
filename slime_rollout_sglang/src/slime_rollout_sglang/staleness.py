"""Bounded staleness: how many groups may be in progress, and which of them must be returned now. Pure functions.

Rollout n is trained by the weights of version n. A group that was started with version v is *due* in rollout v + bound: in
a later one its oldest tokens would be too old. Two rules keep every group on time, however long it takes:

* Admission (AReaL, arXiv 2505.24298): up to version v, at most (v + bound + 1) rollouts' worth of groups are started. So
  there is a place for each of them in the rollouts up to the one in which it is due.
* Return: a rollout takes finished groups, those first that are due first. It may take one in place of a group that is not
  finished as long as all groups that are left can still be on time; else it waits for the slow one. Admission alone does
  not bound anything, since finished groups could overtake a slow one for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import TypeVar

from slime_core.sample import Sample
from slime_core.token_arrays import versions

Key = TypeVar("Key", bound=Hashable)


def room(version: int, bound: int, rollout_id: int, batch_size: int, last: int | None) -> int:
    """Return how many groups may be in progress at a time, finished ones that wait to be returned included.

    Args:
        version: the version of the weights that generate.
        bound: `--max-staleness`.
        rollout_id: the rollout that is returned next.
        batch_size: groups per rollout.
        last: how many rollouts the run has, None if nobody knows. Groups that none of them needs are not started.
    """
    end = version + bound + 1
    return batch_size * ((end if last is None else min(end, last)) - rollout_id)


def on_time(due: Iterable[int], rollout_id: int, batch_size: int) -> bool:
    """Return whether all groups can be returned in time.

    Args:
        due: for each group, the last rollout in which it may be returned.
        rollout_id: the rollout that is filled next.
        batch_size: groups per rollout.
    """
    return all(rollout_id + place // batch_size <= last for place, last in enumerate(sorted(due)))


def batch(due: Mapping[Key, int], finished: Collection[Key], rollout_id: int, batch_size: int) -> list[Key] | None:
    """Return the groups of rollout `rollout_id`, or None while it must wait.

    Args:
        due: all groups in progress, in the order in which they were started, and the last rollouts in which they may be
            returned.
        finished: the groups among them that can be returned now.
        rollout_id: the rollout that is filled next.
        batch_size: groups per rollout.
    """
    chosen = sorted((group for group in due if group in finished), key=due.__getitem__)[:batch_size]
    taken = set(chosen)
    left = [last for group, last in due.items() if group not in taken]
    return chosen if len(chosen) == batch_size and on_time(left, rollout_id + 1, batch_size) else None


def oldest_version(samples: Iterable[Sample]) -> int | None:
    """Return the oldest weight version among the generated tokens of these samples, None if there is no such token."""
    return min((int(version) for sample in samples for version in versions(sample)), default=None)
