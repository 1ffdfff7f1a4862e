"""Packed rows, filled up and cut for a rank: every trained token is on exactly one context-parallel rank, and what is added
changes nothing."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slime_core.sample import Sample
from slime_core.tensors.packed_rows import PackedRow, pack_samples

pytest.importorskip("megatron.core")

from slime_megatron.layout import ParallelLayout
from slime_megatron.modules import PackedCoreAttention
from slime_megatron.rows import RankRow, rank_row

VOCABULARY = 1000

samples = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.booleans(), min_size=1, max_size=9).filter(any)), min_size=1, max_size=5
)
layouts = st.builds(
    lambda context, tensor: ParallelLayout(context=context, tensor=tensor, sequence=tensor > 1),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([1, 2, 3, 4]),
)


def packed(made: list[tuple[int, list[bool]]]) -> PackedRow:
    """A row of samples whose tokens are numbered from 1, so that a filled-up place, 0, is none of them."""
    rows, first = [], 1
    for prompt, mask in made:
        length = prompt + len(mask)
        tokens = list(range(first, first + length))
        rows.append(Sample(tokens=tokens, response_length=len(mask), loss_mask=[int(flag) for flag in mask]))
        first += length
    return pack_samples(rows, vocab_size=VOCABULARY)


def cut(row: PackedRow, layout: ParallelLayout) -> list[RankRow]:
    return [rank_row(row, layout, rank) for rank in range(layout.context)]


def together(rows: list[RankRow]) -> Tensor:
    """The row of all ranks: each sequence's pieces from the beginning of all ranks, and then those from the end, backwards."""
    ranks, bounds = len(rows), rows[0].bounds.tolist()
    if ranks == 1:
        return rows[0].ids[0]
    whole, start = [], 0
    for length in (end - start for start, end in pairwise(bounds)):
        piece = length // (2 * ranks)
        own = [row.ids[0][start : start + 2 * piece].split(piece) if piece else (row.ids[0][:0],) * 2 for row in rows]
        whole += [first for first, _ in own] + [last for _, last in reversed(own)]
        start += 2 * piece
    return torch.cat(whole)


@given(samples, layouts)
def test_every_trained_token_is_predicted_on_exactly_one_context_rank(made: Any, layout: ParallelLayout) -> None:
    row = packed(made)
    rows = cut(row, layout)
    assert sorted(torch.cat([own.own for own in rows]).tolist()) == list(range(len(row.targets)))
    for own in rows:
        assert own.trained == len(row.targets)
        assert len(own.own) == len(own.predictors)
        assert torch.equal(own.ids[0][own.predictors], row.input_ids[0][row.predictors[own.own]])


@given(samples, layouts)
def test_lengths_are_what_parallelism_asks_for(made: Any, layout: ParallelLayout) -> None:
    row = packed(made)
    rows = cut(row, layout)
    bounds = rows[0].bounds
    lengths = bounds.diff()
    assert bounds.dtype == torch.int32
    assert all(torch.equal(own.bounds, bounds) for own in rows)
    assert len(lengths) == len(row.segments.lengths)
    if layout.context > 1:
        assert not (lengths % (2 * layout.context)).any()
    assert {own.ids.shape for own in rows} == {(1, int(bounds[-1]) // layout.context)}
    assert rows[0].ids.shape[1] % (layout.tensor if layout.sequence else 1) == 0
    assert {own.longest for own in rows} == {int(lengths.max())}


@given(samples, layouts)
def test_sequences_keep_their_tokens_in_order_and_only_their_ends_are_filled_up(
    made: Any, layout: ParallelLayout
) -> None:
    row = packed(made)
    rows = cut(row, layout)
    whole, bounds = together(rows), rows[0].bounds.tolist()
    sequences = row.input_ids[0].split(list(row.segments.lengths))
    for sequence, (start, end) in zip(sequences, pairwise(bounds), strict=True):
        assert torch.equal(whole[start : start + len(sequence)], sequence)
        assert not whole[start + len(sequence) : end].any()


@given(samples)
def test_a_row_is_left_as_it_is_where_nothing_is_cut(made: Any) -> None:
    row = packed(made)
    own = rank_row(row, ParallelLayout(), 0)
    assert torch.equal(own.ids, row.input_ids)
    assert torch.equal(own.bounds, row.segments.bounds)
    assert torch.equal(own.predictors, row.predictors)


def core_attention() -> PackedCoreAttention:
    alone = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    config: Any = SimpleNamespace()
    return PackedCoreAttention(config, layer_number=1, pg_collection=SimpleNamespace(cp=alone))


def attend(core: PackedCoreAttention, tensors: list[Tensor], lengths: list[int]) -> Tensor:
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return core(*tensors, packed_seq_params=SimpleNamespace(cu_seqlens_q=bounds, cu_seqlens_q_padded=None))


@pytest.mark.parametrize(("cap", "window"), [(None, None), (2.0, None), (None, 3), (2.0, 3)])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 2**31))
def test_no_token_sees_what_was_filled_up_behind_its_sequence(
    cap: float | None, window: int | None, lengths: list[int], filling: int, seed: int
) -> None:
    """Attention of filled-up sequences is, at their own tokens, the attention of each sequence alone, whatever the filling."""
    core = core_attention()
    core.soft_cap, core.window = cap, window
    generator = torch.Generator().manual_seed(seed)
    parts = [[torch.randn(n, h, d, generator=generator).double() for h, d in ((4, 8), (2, 8), (2, 6))] for n in lengths]
    alone = [attend(core, part, [len(part[0])]) for part in parts]
    filled = [
        torch.cat(
            [
                torch.cat([part[i], 100 * torch.randn(filling, *part[i].shape[1:], generator=generator)])
                for part in parts
            ]
        )
        for i in range(3)
    ]
    found = attend(core, filled, [n + filling for n in lengths]).split([n + filling for n in lengths])
    for own, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(own[: len(expected)], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("cap", "window"), [(None, None), (2.0, None), (None, 3), (2.0, 3)])
def test_core_attention_is_attention_as_it_is_written_down(cap: float | None, window: int | None) -> None:
    core = core_attention()
    core.soft_cap, core.window = cap, window
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(7, h, d, generator=generator).double() for h, d in ((4, 8), (2, 8), (2, 6)))
    found = attend(core, [query, key, value], [7]).view(7, 4, 6)
    for head in range(4):
        scores = query[:, head] @ key[:, head // 2].T / 8**0.5
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        for i in range(7):
            seen = range(0 if window is None else max(0, i - window + 1), i + 1)
            expected = scores[i, list(seen)].softmax(0) @ value[list(seen), head // 2]
            torch.testing.assert_close(found[i, head], expected, rtol=1e-12, atol=1e-12)
