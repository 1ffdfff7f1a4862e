"""The two rules of bounded staleness, played through with groups that take any number of turns."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.sample import Sample
from slime_rollout_sglang.staleness import batch, oldest_version, on_time, room

ROLLOUTS = 8


def play(bound: int, size: int, turns: list[int], passing: list[bool], wait_for_the_slow: bool = True) -> list[int]:
    """The age at which each group is returned, in a run whose n-th group takes `turns[n]` turns and passes the filter or
    not. The trainer takes two turns for a rollout, in which groups go on."""
    due: dict[int, int] = {}
    left: dict[int, int] = {}
    begun: dict[int, int] = {}
    ages: list[int] = []
    numbers = itertools.count()

    def begin(version: int, rollout_id: int) -> None:
        while len(due) < room(version, bound, rollout_id, size, ROLLOUTS):
            group = next(numbers)
            due[group], left[group], begun[group] = version + bound, turns[group % len(turns)], version

    def turn(version: int, rollout_id: int) -> None:
        for group in [group for group in due if left[group] > 0]:
            left[group] -= 1
            if not left[group] and not passing[group % len(passing)]:
                del due[group]
        begin(version, rollout_id)

    for rollout_id in range(ROLLOUTS):
        begin(rollout_id, rollout_id)
        for _ in range(1000):
            finished = {group for group in due if not left[group]}
            chosen = batch(due, finished, rollout_id, size)
            if chosen is None and not wait_for_the_slow and len(finished) >= size:
                chosen = sorted(finished)[:size]
            if chosen is not None:
                break
            turn(rollout_id, rollout_id)
        else:
            raise AssertionError("the rollout is never filled")
        for group in chosen:
            ages.append(rollout_id - begun[group])
            del due[group]
        begin(rollout_id, rollout_id + 1)
        turn(rollout_id, rollout_id + 1)
        turn(rollout_id, rollout_id + 1)
    assert not due  # nothing was begun that no rollout needs
    return ages


@settings(max_examples=80)
@given(
    st.integers(0, 3),
    st.integers(1, 4),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
    st.lists(st.booleans(), min_size=1, max_size=7).filter(any),
)
def test_no_group_is_ever_returned_late_and_every_rollout_is_filled(bound, size, turns, passing) -> None:
    ages = play(bound, size, turns, passing)
    assert len(ages) == ROLLOUTS * size
    assert max(ages) <= bound


def test_admission_alone_does_not_bound_the_age_of_a_slow_group() -> None:
    slow_first = ([30, *[1] * 200], [True])
    assert max(play(1, 2, *slow_first)) == 1
    assert max(play(1, 2, *slow_first, wait_for_the_slow=False)) > 1


def test_a_slow_group_is_overtaken_until_it_is_due() -> None:
    assert batch({"slow": 2, "a": 2, "b": 2}, {"a", "b"}, 0, 1) == ["a"]
    assert batch({"slow": 2, "c": 2}, {"c"}, 1, 1) == ["c"]
    assert batch({"slow": 2, "d": 3}, {"d"}, 2, 1) is None
    assert batch({"slow": 2, "d": 3}, {"d", "slow"}, 2, 1) == ["slow"]


def test_two_slow_groups_are_not_both_left_to_the_last_rollout_in_which_there_is_place_for_one() -> None:
    assert batch({"slow": 1, "slower": 1, "quick": 2}, {"quick"}, 0, 1) is None
    assert on_time([1, 1], 0, 1)
    assert not on_time([1, 1], 1, 1)


def test_the_oldest_version_counts_whatever_type_an_engine_gives_it() -> None:
    assert oldest_version([Sample(weight_versions=["12", "9"]), Sample(weight_versions=[10])]) == 9
    assert oldest_version([Sample()]) is None
