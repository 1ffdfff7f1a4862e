"""A packed row as the attention kernels of variable length read it: so many sequences of queries, and of the keys that each sees.
Made once for a row, for all layers of a model.

A kernel lets the last query of a sequence see its last key, and every earlier one a key less. So a branch, which sees its stem
and itself, is a sequence whose keys are the stem's and then its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slime_core.tensors.transfer import numbers_on

if TYPE_CHECKING:
    from slime_core.tensors.packed_rows import Segments


@dataclass(frozen=True)
class Sequences:
    """S sequences of queries and keys of a row.

    Attributes:
        query_bounds: (S + 1,) int32: 0, and where every sequence of queries ends in the row.
        key_bounds: (S + 1,) int32: 0, and where its keys end among the keys that `with_stems` lays out.
        longest_query, longest_key: tokens of the longest of them.
    """

    query_bounds: Tensor
    key_bounds: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, segments: Segments, device: torch.device) -> Sequences:
        """The sequences of the segments of a row."""
        queries: list[int] = []
        keys: list[int] = []
        for length, branches in zip(segments.lengths, segments.branches, strict=True):
            stem, *others = (length,) if branches is None else branches.lengths
            queries += [stem, *others]
            keys += [stem, *(stem + own for own in others)]
        query_bounds, key_bounds = (
            numbers_on(device, [0, *accumulate(lengths)], torch.int32) for lengths in (queries, keys)
        )
        return cls(query_bounds, key_bounds, max(queries, default=0), max(keys, default=0))


def with_stems(values: Tensor, segments: Segments) -> Tensor:
    """Lay out the keys, or values, of N tokens, (N, heads, D), as `Sequences.key_bounds` counts them: before those of a branch come
    those of its stem. Without branches these are `values` themselves."""
    if not any(segments.branches):
        return values
    pieces: list[Tensor] = []
    for part, branches in zip(torch.split(values, list(segments.lengths)), segments.branches, strict=True):
        if branches is None:
            pieces.append(part)
            continue
        stem, *others = torch.split(part, list(branches.lengths))
        pieces.append(stem)
        for own in others:
            pieces += [stem, own]
    return torch.cat(pieces)
