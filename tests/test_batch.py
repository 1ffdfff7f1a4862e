"""Micro-batches never lose, cut or repeat a sample, and the weights of tokens count the whole batch."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.contracts.train_backend import prompt_tokens, shared_runs
from slime_core.errors import ArgumentError, SampleError
from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch, token_weights
from slime_core.training.packing import pack_by_tokens
from slime_core.training.steps import Steps

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(lengths, st.integers(1, 80))
def test_packing_keeps_every_sequence_once_and_within_the_budget(lengths, budget):
    bins = pack_by_tokens(lengths, budget)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    for b in bins:
        assert b == sorted(b)
        assert len(b) == 1 or sum(lengths[i] for i in b) <= budget


def first_fit_decreasing(lengths: list[int], room: int) -> list[list[int]]:
    """Packing by its definition: every bin is looked at, in order."""
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = (own for own in bins if sum(lengths[i] for i in own) + lengths[index] <= room)
        found = next(fits, None)
        if found is None:
            bins.append(found := [])
        found.append(index)
    return sorted(map(sorted, bins))


@given(st.lists(st.integers(0, 90), max_size=70), st.integers(1, 80))
def test_packing_finds_the_bins_of_first_fit_decreasing(lengths, budget):
    assert pack_by_tokens(lengths, budget) == first_fit_decreasing(lengths, budget)


@given(lengths, st.integers(50, 80))
def test_packing_leaves_at_most_one_bin_half_empty(lengths, budget):
    loads = [sum(lengths[i] for i in b) for b in pack_by_tokens(lengths, budget)]
    assert sum(load * 2 <= budget for load in loads) <= 1


def sample(prompt: int, mask: list[int]) -> Sample:
    return Sample(tokens=[1] * (prompt + len(mask)), response_length=len(mask), loss_mask=mask)


SAMPLES = [sample(3, [1, 0, 1]), sample(2, [0]), sample(4, [1] * 5), sample(1, [1, 1])]


@given(st.integers(1, 7), st.one_of(st.none(), st.integers(1, 40)), st.sampled_from(["token", "sample", "constant"]))
def test_weights_do_not_depend_on_micro_batching(micro_batch_size, max_tokens, mean):
    batch = make_train_batch(SAMPLES, mean=mean, micro_batch_size=micro_batch_size, max_tokens=max_tokens)
    assert (batch.num_trained_tokens, batch.num_tokens) == (9, 21)
    assert sorted(i for m in batch.micro_batches for i in m) == [0, 1, 2, 3]
    assert batch.weights == batch.measured == make_train_batch(SAMPLES, mean=mean).weights


def test_the_three_means_are_those_of_their_definitions():
    assert token_weights(SAMPLES, "token") == [1 / 9, 0.0, 1 / 9, 1 / 9]
    assert token_weights(SAMPLES, "sample") == [1 / (4 * 2), 0.0, 1 / (4 * 5), 1 / (4 * 2)]
    assert token_weights(SAMPLES, "constant", 10) == [1 / 40, 0.0, 1 / 40, 1 / 40]


@st.composite
def trajectories(draw: st.DrawFn) -> list[list[list[int]]]:
    """Per trajectory the loss masks of its segments."""
    mask = st.lists(st.integers(0, 1), min_size=1, max_size=6)
    return draw(st.lists(st.lists(mask, min_size=1, max_size=4), min_size=1, max_size=6))


def segments(trajectories: list[list[list[int]]]) -> list[Sample]:
    return [
        replace(sample(2, mask), index=t, rollout_id=t if len(masks) > 1 else None)
        for t, masks in enumerate(trajectories)
        for mask in masks
    ]


@given(trajectories(), st.integers(0, 1000))
def test_the_means_count_trajectories_as_their_definitions_do(trajectories, seed):
    samples, draw = segments(trajectories), random.Random(seed)
    losses = [[draw.gauss(0, 1) for _ in s.loss_mask] for s in samples]
    rows = iter(losses)
    of_trajectories = [
        [loss for mask in masks for loss, m in zip(next(rows), mask, strict=True) if m] for masks in trajectories
    ]
    every = [loss for trained in of_trajectories for loss in trained]
    expected = {
        "sample": math.fsum(math.fsum(trained) / len(trained) for trained in of_trajectories if trained)
        / len(trajectories),
        "token": math.fsum(every) / max(1, len(every)),
        "constant": math.fsum(every) / 12 / len(trajectories),
    }
    for mean, wanted in expected.items():
        weights = token_weights(samples, mean, 12)
        found = [
            w * loss
            for w, row, s in zip(weights, losses, samples, strict=True)
            for loss, m in zip(row, s.trained_mask, strict=True)
            if m
        ]
        assert math.fsum(found) == pytest.approx(wanted, rel=1e-12, abs=1e-14)


@given(trajectories(), st.integers(1, 8))
def test_an_optimizer_step_has_whole_trajectories_and_steps_have_equally_many(trajectories, count):
    samples = segments(trajectories)
    steps = Steps(SimpleNamespace(num_steps_per_rollout=count), has_advantages=True, may_skip=False)
    if len(trajectories) < count:
        with pytest.raises(
            SampleError, match=f"{len(trajectories)} trajectories .* too few for {count} optimizer steps"
        ):
            steps.parts(samples)
        return
    parts = list(steps.parts(samples))
    assert [s for part in parts for s in samples[part]] == samples
    numbers = [{s.index for s in samples[part]} for part in parts]
    assert sum(map(len, numbers)) == len(trajectories)
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 1


def test_what_is_measured_counts_the_trajectories_that_are_computed():
    samples = segments([[[1, 1], [1]], [[1, 0], [0]], [[1]]])
    batch = make_train_batch(samples, skipped={1, 2, 3})
    assert batch.weights == [1 / 9, 1 / 9, 1 / 3, 0.0, 1 / 3]
    assert batch.measured == [1 / 4, 0.0, 0.0, 0.0, 1 / 2]


@given(st.sets(st.integers(0, 3)), st.sampled_from(["token", "sample"]))
def test_skipped_samples_count_in_weights_and_not_in_what_is_measured(skipped, mean):
    batch = make_train_batch(SAMPLES, mean=mean, micro_batch_size=2, skipped=skipped)
    computed = [i for i in range(4) if i not in skipped]
    assert sorted(i for m in batch.micro_batches for i in m) == computed
    assert all(batch.micro_batches)
    assert batch.weights == token_weights(SAMPLES, mean)
    assert [batch.measured[i] for i in computed] == token_weights([SAMPLES[i] for i in computed], mean)
    assert not any(batch.measured[i] for i in skipped)
    assert batch.num_trained_tokens == 9


def test_a_removed_sample_is_counted_but_not_trained():
    samples = [sample(3, [1, 1]), Sample(tokens=[1, 2, 3], response_length=2, remove_sample=True)]
    batch = make_train_batch(samples)
    assert batch.num_trained_tokens == 2
    assert batch.weights == [1 / 4, 0.0]


def test_a_batch_without_trained_tokens_has_none():
    batch = make_train_batch([sample(3, [0, 0])], mean="token")
    assert (batch.num_trained_tokens, batch.weights) == (0, [0.0])


def test_an_empty_batch_is_an_error():
    with pytest.raises(ArgumentError, match="at least one sample"):
        make_train_batch([])


def grouped(group_index: int | None, prompt: list[int], response: int) -> Sample:
    return Sample(group_index=group_index, tokens=[*prompt, *[9] * response], response_length=response)


def test_runs_are_neighbours_with_one_group_and_one_prompt():
    samples = [
        grouped(0, [1, 2], 3),
        grouped(0, [1, 2], 1),
        grouped(0, [1, 3], 1),
        grouped(1, [1, 3], 2),
        grouped(0, [1, 2], 2),
        grouped(0, [1, 2], 2),
    ]
    assert shared_runs(samples, range(6)) == [[0, 1], [2], [3], [4, 5]]
    assert shared_runs(samples, [0, 4, 5]) == [[0, 4, 5]]


shape = st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=5))


@given(st.lists(shape, min_size=1, max_size=6), st.integers(1, 40), st.sets(st.integers(0, 20)))
def test_with_shared_prompts_the_budget_counts_a_prompt_once_per_run(shapes, budget, skipped):
    samples = [grouped(g, [g] * length, n) for g, (length, responses) in enumerate(shapes) for n in responses]
    batch = make_train_batch(samples, max_tokens=budget, share_prompts=True, skipped=skipped)
    assert batch.share_prompts
    assert sorted(i for m in batch.micro_batches for i in m) == [i for i in range(len(samples)) if i not in skipped]
    for micro_batch in batch.micro_batches:
        assert list(micro_batch) == sorted(micro_batch)
        prompts = [len(prompt_tokens(samples[run[0]])) for run in shared_runs(samples, micro_batch)]
        tokens = sum(prompts) + sum(samples[i].response_length for i in micro_batch)
        assert len(micro_batch) == 1 or tokens <= budget


@pytest.mark.parametrize("place", [0, 63, 64, 199])
@pytest.mark.parametrize("is_trained", [True, False])
def test_a_sample_is_computed_when_one_trained_token_has_an_advantage(place, is_trained):
    advantages = [float(other == place) for other in range(200)]
    one = Sample(tokens=[1] * 202, response_length=200, loss_mask=[int(is_trained or n != place) for n in range(200)])
    steps = Steps(SimpleNamespace(), has_advantages=True, may_skip=True)
    assert steps.without_gradient([one], {"advantages": [advantages]}) == (set() if is_trained else {0})
