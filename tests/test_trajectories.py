"""Which samples are segments of one trajectory, and what each of them counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slime_core.contracts.rollout_outputs import as_rollout_output
from slime_core.errors import DataError, SampleError
from slime_core.rollout.train_data import converted
from slime_core.sample import RolloutOutput, Sample, check_rollout
from slime_core.trajectories import (
    as_one_trajectory,
    gather_trajectories,
    in_trajectories,
    means_of_trajectories,
    number_of,
    trajectory_numbers,
)


def sample(index: int | None = None, rollout_id: int | None = None, **fields) -> Sample:
    return Sample(**{"group_index": 0, "index": index, "rollout_id": rollout_id, **fields})


def test_without_a_rollout_id_the_index_is_the_trajectory():
    assert [number_of(s) for s in (sample(4), sample(4, 9), sample(), sample(None, 2))] == [4, 9, None, 2]


def test_samples_without_any_number_are_trajectories_of_their_own():
    assert trajectory_numbers([sample(), sample(3), sample(), sample(5, 3), sample(0)]) == [0, 1, 2, 1, 3]


def test_a_trajectory_has_one_value_however_many_segments_it_has():
    samples = [sample(0, 0), sample(0, 0), sample(0, 0), sample(1), sample(2, 2), sample(2, 2)]
    assert means_of_trajectories(samples, [1.0, 2.0, 6.0, 0.5, 0.1, 0.1]) == [3.0, 0.5, 0.1]
    assert [len(one) for one in in_trajectories(samples)] == [3, 1, 2]
    assert means_of_trajectories([], []) == []


def test_what_was_made_of_a_sample_becomes_its_trajectory():
    given = sample(6, group_index=2)
    made = as_one_trajectory(given, [replace(given, response="a"), Sample(response="b"), replace(given, rollout_id=6)])
    assert [(s.index, s.group_index, s.rollout_id) for s in made] == [(6, 2, 6)] * 3
    assert as_one_trajectory(given, [Sample(response="a")]) == [sample(6, group_index=2, response="a")]


@pytest.mark.parametrize("metadata", [{}, {"mine": 1}, {"slime": None}, {"slime": {"asked": "other"}, "mine": 1}])
def test_what_is_noted_of_a_sample_outlives_a_hook_that_replaces_its_metadata(metadata):
    given = sample(6)
    given.note(source="rows:3", dataset="math", asked="what")
    (made,) = as_one_trajectory(given, [Sample(metadata=metadata)])
    assert (made.source, made.dataset) == ("rows:3", "math")
    assert made.asked == ("other" if "asked" in str(metadata) else "what")
    assert [key for key in made.metadata if key != "slime"] == [key for key in metadata if key != "slime"]
    assert as_one_trajectory(sample(6), [Sample(metadata=metadata)])[0].metadata is metadata


def test_a_number_that_one_segment_has_is_that_of_all():
    made = as_one_trajectory(sample(6), [sample(6, 40), sample(6), sample(7)])
    assert [(s.index, s.rollout_id) for s in made] == [(6, 40), (6, 40), (7, 40)]


def test_a_continued_trajectory_keeps_its_number():
    given = sample(6, 40)
    assert [s.rollout_id for s in as_one_trajectory(given, [sample(6)])] == [40]
    assert [s.rollout_id for s in as_one_trajectory(given, [sample(6, 41)])] == [40]
    assert [s.rollout_id for s in as_one_trajectory(given, [sample(6), sample(6)])] == [40, 40]


def test_siblings_that_disagree_are_an_error():
    with pytest.raises(
        SampleError, match=r"2 samples that were made of sample 6 have the rollout_ids 6, 7; .* = 6 in each"
    ):
        as_one_trajectory(sample(6), [sample(6, 6), sample(6, 7)])


def test_segments_become_neighbours_and_all_else_keeps_its_order():
    group = [sample(0, 0), sample(1), sample(0, 0), sample(3), sample(2, 1)]
    gather_trajectories([group])
    assert [(s.index, s.rollout_id) for s in group] == [(0, 0), (0, 0), (1, None), (2, 1), (3, None)]


def test_a_trajectory_in_two_groups_is_an_error():
    with pytest.raises(SampleError, match="sample 0 of group 0 and sample 7 of group 1 as parts of the trajectory 0"):
        gather_trajectories([[sample(0)], [sample(7, 0, group_index=1)]])


def test_two_samples_with_one_index_must_say_whether_they_are_segments():
    with pytest.raises(SampleError, match="two samples with the index 3 and no rollout_id"):
        gather_trajectories([[sample(3), sample(3)]])
    with pytest.raises(SampleError, match="two samples with the index 3 and no rollout_id"):
        gather_trajectories([[sample(3)] * 2])  # the very object
    gather_trajectories([[sample(3), sample(3, 4)], [sample(None), sample(None)]])


@pytest.mark.parametrize("wrong", ["a", 1.5, True])
def test_a_rollout_id_that_is_no_number_is_named(wrong):
    with pytest.raises(SampleError, match=r"rollout_id is .* expected an int"):
        check_rollout([[sample(0, wrong, tokens=[1, 2], response_length=1, reward=0.0)]], need_reward=True)


def test_a_sample_keeps_its_trajectory_in_storage():
    assert Sample.from_dict(sample(1, 5).to_dict()) == sample(1, 5)
    assert Sample.from_dict({"index": 1}).rollout_id is None  # written before there were trajectories


def test_lists_within_a_group_of_a_slime_rollout_are_segments_of_one_trajectory():
    made = [[sample(0), [sample(1), sample(1)]], [[[sample(2), sample(2, 8)], [sample(3)]]]]
    output = as_rollout_output(made)
    numbers = [[(s.index, s.rollout_id) for s in group] for group in output.groups]
    assert numbers == [[(0, None), (1, 1), (1, 1)], [(2, 8), (2, 8), (3, None)]]
    with pytest.raises(DataError, match="have the rollout_ids 5, 6"):
        as_rollout_output([[[sample(1, 5), sample(1, 6)]]])
    with pytest.raises(DataError, match="sample 1: metadata is None, expected an object"):
        as_rollout_output([[[sample(1, metadata={"slime": {"source": "a:1"}}), sample(1, metadata=None)]]])


def test_what_a_train_data_converter_says_of_trajectories_is_taken():
    groups = [[sample(0, 0, reward=1.0), sample(0, 0, reward=1.0), sample(1, reward=0.0)]]
    output = converted(RolloutOutput(groups), {"rewards": [0.5, 0.5, -0.5]})
    assert output.metrics["raw_reward"] == 0.5  # of two trajectories
    output = converted(RolloutOutput(groups), {"rollout_ids": [4, 5, 5]})
    assert [s.rollout_id for s in output.samples] == [4, 5, 5]
