"""Bounded staleness: how many groups may be on their way, and which must be returned now. Pure.

Rollout n is trained by the weights of version n. A group that was begun with version v is *due* in rollout v + bound: in a
later one its oldest tokens would be too old. Two rules keep every group on time, however long it takes:

* Admission (AReaL, arXiv 2505.24298): up to version v, at most (v + bound + 1) rollouts' worth of groups are begun. So
  there is a place for each of them in the rollouts up to the one in which it is due.
* Return: a rollout takes those that are due first and, of those, what is finished. It may take another in place of one
  that is still on its way as long as all that are left can be on time; else it waits for the slow one. Admission alone
  does not bound anything, since finished groups could overtake a slow one for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import TypeVar

from slime_core.sample import Sample

Key = TypeVar("Key", bound=Hashable)


def room(version: int, bound: int, rollout_id: int, batch_size: int, last: int | None) -> int:
    """How many groups may be on their way.

    Args:
        version: of the weights that generate.
        bound: `--max-staleness`.
        rollout_id: the rollout that is returned next.
        last: how many rollouts the run has; what none of them needs is not begun.
    """
    end = version + bound + 1
    return batch_size * ((end if last is None else min(end, last)) - rollout_id)


def on_time(due: Iterable[int], rollout_id: int, batch_size: int) -> bool:
    """Whether groups that are due in these rollouts can all be, if `rollout_id` is the next one that is filled."""
    return all(rollout_id + place // batch_size <= last for place, last in enumerate(sorted(due)))


def batch(due: Mapping[Key, int], finished: Collection[Key], rollout_id: int, batch_size: int) -> list[Key] | None:
    """The groups of rollout `rollout_id`, or None while it must wait.

    Args:
        due: of all groups that are on their way, in the order in which they were begun.
        finished: those of them that can be returned.
    """
    chosen = sorted((group for group in due if group in finished), key=due.__getitem__)[:batch_size]
    taken = set(chosen)
    left = [last for group, last in due.items() if group not in taken]
    return chosen if len(chosen) == batch_size and on_time(left, rollout_id + 1, batch_size) else None


def oldest_version(samples: Iterable[Sample]) -> int | None:
    """Of the weights that generated tokens of these samples; None where nothing was."""
    return min((int(version) for sample in samples for version in sample.weight_versions), default=None)
