"""Micro-batches never lose, cut or repeat a sample, and the weights of tokens count the whole batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.contracts.train_backend import prompt_tokens, shared_runs
from slime_core.errors import ArgumentError
from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch, token_weights
from slime_core.training.packing import pack_by_tokens

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(lengths, st.integers(1, 80))
def test_packing_keeps_every_sequence_once_and_within_the_budget(lengths, budget):
    bins = pack_by_tokens(lengths, budget)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    for b in bins:
        assert b == sorted(b)
        assert len(b) == 1 or sum(lengths[i] for i in b) <= budget


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
