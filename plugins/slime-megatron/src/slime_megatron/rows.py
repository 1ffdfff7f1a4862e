"""Packed rows as this rank computes them: sequences filled up to the lengths that parallelism asks for, and under context
parallelism this rank's pieces of each. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from slime_core.tensors.packed_rows import PackedRow
from slime_megatron.layout import ParallelLayout


@dataclass(frozen=True)
class RankRow:
    """A packed row of N tokens, n of which are this context-parallel rank's.

    Attributes:
        ids: (1, n) token ids of this rank.
        bounds: (S + 1,) int32, where the S sequences begin in the row of all ranks.
        longest: the length of the longest sequence.
        predictors: (t,) places among the n whose outputs predict trained tokens.
        own: (t,) which of the row's T trained tokens these are.
        trained: T.
        real: tokens of the row that fill up nothing; without context parallelism they are the first ones.
    """

    ids: Tensor
    bounds: Tensor
    longest: int
    predictors: Tensor
    own: Tensor
    trained: int
    real: int


def rank_row(row: PackedRow, layout: ParallelLayout, context_rank: int) -> RankRow:
    """Fill up and cut a packed row. Tokens that are added stand behind the sequences, so no other token sees them."""
    device = row.input_ids.device
    lengths = list(row.segments.lengths)
    padded = _padded_lengths(lengths, layout)
    starts = [0, *accumulate(padded)]
    place = torch.cat([torch.arange(n) + start for n, start in zip(lengths, starts, strict=False)])  # old → new
    ids = torch.zeros(starts[-1], dtype=torch.int64)
    ids[place] = row.input_ids[0].cpu()
    mine = _own_places(starts, layout.context, context_rank)
    local = torch.full((starts[-1],), -1)
    local[mine] = torch.arange(len(mine))
    predictors = local[place[row.predictors.cpu()]]
    own = (predictors >= 0).nonzero()[:, 0]
    return RankRow(
        ids=ids[mine][None].to(device),
        bounds=torch.tensor(starts, dtype=torch.int32, device=device),
        longest=max(padded),
        predictors=predictors[own].to(device),
        own=own.to(device),
        trained=len(row.predictors),
        real=sum(lengths),
    )


def _padded_lengths(lengths: list[int], layout: ParallelLayout) -> list[int]:
    multiple = layout.sequence_multiple
    padded = [-(-length // multiple) * multiple for length in lengths]
    while sum(padded) % (layout.row_multiple * layout.context):
        padded[-1] += multiple
    return padded


def _own_places(starts: list[int], ranks: int, rank: int) -> Tensor:
    """Of every sequence the rank's piece from the beginning and its piece from the end, so that all ranks have as much to
    compute under a causal mask."""
    if ranks == 1:
        return torch.arange(starts[-1])
    found = []
    for start, end in pairwise(starts):
        piece = (end - start) // (2 * ranks)
        for number in (rank, 2 * ranks - 1 - rank):
            found.append(torch.arange(start + number * piece, start + (number + 1) * piece))
    return torch.cat(found)
