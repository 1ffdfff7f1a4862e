"""The data-parallel schedule: nothing lost, budgets kept, equal counts per rank, and short waits when balanced."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.contracts.train_backend import TrainBatch, prompt_tokens, shared_runs
from slime_core.sample import Sample
from slime_core.training.batches import make_train_batch
from slime_core.training.packing import Packing, align, distribute, pack, pack_by_tokens, units

shapes = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 30), min_size=1, max_size=5)), min_size=1, max_size=8
)
skips = st.sets(st.integers(0, 20))
ranks_counts = st.integers(2, 5)


def samples_of(shapes: list[tuple[int, list[int]]]) -> list[Sample]:
    return [
        Sample(group_index=g, tokens=[g] * prompt + [9] * response, response_length=response)
        for g, (prompt, responses) in enumerate(shapes)
        for response in responses
    ]


def tokens_of(batch: TrainBatch, micro_batch: list[int]) -> int:
    if not batch.share_prompts:
        return sum(len(batch.samples[i].tokens) for i in micro_batch)
    prompts = [len(prompt_tokens(batch.samples[run[0]])) for run in shared_runs(batch.samples, micro_batch)]
    return sum(prompts) + sum(batch.samples[i].response_length for i in micro_batch)


def rounds_of(batch: TrainBatch, ranks: int) -> list[list[int]]:
    """Per round the tokens of every rank."""
    loads = [tokens_of(batch, micro_batch) for micro_batch in batch.micro_batches]
    return [loads[start : start + ranks] for start in range(0, len(loads), ranks)]


@settings(max_examples=60)
@given(
    shapes,
    ranks_counts,
    st.one_of(st.none(), st.integers(1, 80)),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    skips,
)
def test_every_sample_is_computed_once_within_the_budget_and_every_rank_has_as_many_micro_batches(
    shapes, ranks, max_tokens, micro_batch_size, share_prompts, balance, skipped
):
    samples = samples_of(shapes)
    options = {"max_tokens": max_tokens, "micro_batch_size": micro_batch_size, "share_prompts": share_prompts}
    batch = make_train_batch(samples, ranks=ranks, balance=balance, skipped=skipped, **options)
    own = [batch.of_rank(rank, ranks) for rank in range(ranks)]
    assert len({len(micro_batches) for micro_batches in own}) == 1
    computed = [i for i in range(len(samples)) if i not in skipped]
    assert sorted(i for micro_batches in own for m in micro_batches for i in m) == computed
    for micro_batch in batch.micro_batches:
        assert list(micro_batch) == sorted(micro_batch)
        if max_tokens is None:
            assert len(micro_batch) <= micro_batch_size
        else:
            assert len(micro_batch) <= 1 or tokens_of(batch, micro_batch) <= max_tokens
    one = make_train_batch(samples, skipped=skipped, **options)
    assert (batch.weights, batch.measured) == (one.weights, one.measured)


@settings(max_examples=60)
@given(shapes, st.integers(1, 80), st.integers(1, 4), skips)
def test_one_rank_gets_the_same_micro_batches_with_and_without_balance(shapes, max_tokens, micro_batch_size, skipped):
    samples = samples_of(shapes)
    order = [i for i in range(len(samples)) if i not in skipped]
    for balance in (False, True):
        fixed = make_train_batch(
            samples, micro_batch_size=micro_batch_size, skipped=skipped, balance=balance, share_prompts=balance
        )
        assert [i for m in fixed.micro_batches for i in m] == order
        assert all(len(m) == micro_batch_size for m in fixed.micro_batches[:-1])
        packed = make_train_batch(samples, max_tokens=max_tokens, skipped=skipped, balance=balance)
        bins = pack_by_tokens([len(samples[i].tokens) for i in order], max_tokens)
        assert packed.micro_batches == [[order[n] for n in numbers] for numbers in bins]


@settings(max_examples=60)
@given(shapes, ranks_counts, st.integers(1, 80), skips)
def test_balanced_ranks_wait_for_each_other_at_most_the_longest_sample(shapes, ranks, max_tokens, skipped):
    samples = samples_of(shapes)
    batch = make_train_batch(samples, max_tokens=max_tokens, ranks=ranks, balance=True, skipped=skipped)
    rounds = rounds_of(batch, ranks)
    longest = max((len(s.tokens) for i, s in enumerate(samples) if i not in skipped), default=0)
    assert sum(max(loads) - min(loads) for loads in rounds) <= longest
    totals = [sum(loads[rank] for loads in rounds) for rank in range(ranks)]
    assert max(totals, default=0) - min(totals, default=0) <= longest


@settings(max_examples=60)
@given(shapes, ranks_counts)
def test_balance_never_lengthens_a_step_of_single_samples(shapes, ranks):
    samples = samples_of(shapes)
    steps = [
        sum(max(loads) for loads in rounds_of(make_train_batch(samples, ranks=ranks, balance=balance), ranks))
        for balance in (False, True)
    ]
    assert steps[1] <= steps[0]


@settings(max_examples=60)
@given(shapes, ranks_counts, st.booleans())
def test_without_balance_the_samples_go_to_the_ranks_in_their_order_as_many_to_each(shapes, ranks, dynamic):
    samples = samples_of(shapes)
    batch = make_train_batch(samples, ranks=ranks, max_tokens=40 if dynamic else None)
    own = [sorted(i for m in batch.of_rank(rank, ranks) for i in m) for rank in range(ranks)]
    assert [i for indices in own for i in indices] == list(range(len(samples)))
    assert max(map(len, own)) - min(map(len, own)) <= 1


def test_the_stages_of_packing_are_those_of_their_names() -> None:
    samples = samples_of([(1, [2, 4]), (1, [1]), (1, [9])])  # 3, 5, 2 and 10 tokens
    by_count, by_tokens = Packing(samples, 2, None, False), Packing(samples, 2, 8, False)
    assert pack(by_count, [0, 2, 3]) == [[0, 2], [3]]
    assert pack(by_tokens, range(4)) == [[0, 1], [2], [3]]
    assert pack(by_tokens, []) == []
    assert align([[[0], [1]], [[2]], []]) == [[0], [2], [], [1], [], []]
    assert distribute([3, 5, 2, 10], [1] * 4, 2, 2) == [[3, 2], [1, 0]]
    assert distribute([3, 5, 2, 10], [1] * 4, 1, 2) is None
    assert units(by_tokens, range(4)) == [[0], [1], [2], [3]]
    shared = Packing(samples, 2, 8, True)
    assert units(shared, range(4)) == [[0, 1], [2], [3]]
    assert units(shared, range(4), ranks=4) == [[0], [1], [2], [3]]  # a rank's part is 5 tokens


def test_balance_is_by_tokens() -> None:
    samples = samples_of([(1, [29]), (1, [1]), (1, [1]), (1, [27])])
    micro_batches = {
        balance: make_train_batch(samples, ranks=2, balance=balance).micro_batches for balance in (False, True)
    }
    assert micro_batches == {False: [[0], [2], [1], [3]], True: [[0], [3], [1], [2]]}


def test_groups_that_share_a_prompt_stay_together_unless_one_is_more_than_a_ranks_part() -> None:
    four = samples_of([(9, [2, 2, 2])] * 4)
    batch = make_train_batch(four, max_tokens=100, share_prompts=True, ranks=2, balance=True)
    assert sorted(batch.micro_batches) == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert rounds_of(batch, 2) == [[30, 30]]
    one = samples_of([(1, [2] * 8)])
    batch = make_train_batch(one, max_tokens=100, share_prompts=True, ranks=2, balance=True)
    assert rounds_of(batch, 2) == [[9, 9]]


def test_a_batch_is_refused_by_another_number_of_ranks() -> None:
    batch = make_train_batch(samples_of([(1, [2, 3, 4])]))
    with pytest.raises(ValueError, match="3 micro-batches cannot be dealt to 2 ranks"):
        batch.of_rank(0, 2)
