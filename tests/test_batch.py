"""Micro-batches never lose, cut or repeat a sample, and normalisers count the whole batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.batch import make_train_batch, pack_by_tokens
from slime_core.errors import ArgumentError
from slime_core.sample import Sample

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


@given(st.integers(1, 7), st.one_of(st.none(), st.integers(1, 40)))
def test_normalisers_do_not_depend_on_micro_batching(micro_batch_size, max_tokens):
    samples = [sample(3, [1, 0, 1]), sample(2, [0]), sample(4, [1] * 5), sample(1, [1, 1])]
    batch = make_train_batch(samples, micro_batch_size=micro_batch_size, max_tokens=max_tokens)
    assert (batch.num_trained_tokens, batch.num_samples, batch.num_tokens) == (9, 4, 21)
    assert sorted(i for m in batch.micro_batches for i in m) == [0, 1, 2, 3]


def test_a_removed_sample_is_counted_but_not_trained():
    samples = [sample(3, [1, 1]), Sample(tokens=[1, 2, 3], response_length=2, remove_sample=True)]
    batch = make_train_batch(samples)
    assert (batch.num_trained_tokens, batch.num_samples) == (2, 2)


def test_an_empty_batch_is_an_error():
    with pytest.raises(ArgumentError, match="at least one sample"):
        make_train_batch([])
