"""A packed row as the attention kernels of variable length read it: so many sequences of queries, and of the keys that each sees.
Made once for a row, for all layers of a model.

A kernel lets the last query of a sequence see its last key, and every earlier one a key less. So a branch, which sees its stem
and itself, is a sequence whose keys are the stem's and then its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from slime_core.tensors.transfer import numbers_on, sent

if TYPE_CHECKING:
    from slime_core.tensors.packed_rows import Segments


@dataclass(frozen=True)
class Stems:
    """Where the M keys that branches see come from, among the N tokens of a row.

    Attributes:
        tokens: (M,) int64, the token of every key.
        places: (M,) int64, the keys in the order of their tokens.
        begins: (N,) int64, where those of each token begin among `places`.
    """

    tokens: Tensor
    places: Tensor
    begins: Tensor


@dataclass(frozen=True)
class Sequences:
    """S sequences of queries and keys of a row.

    Attributes:
        query_bounds: (S + 1,) int32: 0, and where every sequence of queries ends in the row.
        key_bounds: (S + 1,) int32: 0, and where its keys end among the keys that `with_stems` lays out.
        longest_query, longest_key: tokens of the longest of them.
        stems: None: there are no branches, and the keys are those of the row.
    """

    query_bounds: Tensor
    key_bounds: Tensor
    longest_query: int
    longest_key: int
    stems: Stems | None = None

    @classmethod
    def of(cls, segments: Segments, device: torch.device) -> Sequences:
        """The sequences of the segments of a row."""
        queries: list[int] = []
        keys: list[int] = []
        laid: list[range] = []
        first = 0
        for length, branches in zip(segments.lengths, segments.branches, strict=True):
            stem, *others = (length,) if branches is None else branches.lengths
            queries += [stem, *others]
            keys += [stem, *(stem + own for own in others)]
            own_first = first + stem
            laid.append(range(first, own_first))
            for own in others:
                laid += [range(first, first + stem), range(own_first, own_first + own)]
                own_first += own
            first += length
        query_bounds, key_bounds = (
            numbers_on(device, [0, *accumulate(lengths)], torch.int32) for lengths in (queries, keys)
        )
        stems = _stems(laid, first, device) if any(segments.branches) else None
        return cls(query_bounds, key_bounds, max(queries, default=0), max(keys, default=0), stems)


def _stems(laid: list[range], count: int, device: torch.device) -> Stems:
    tokens = np.concatenate([np.arange(one.start, one.stop) for one in laid])
    copies = np.bincount(tokens, minlength=count)
    arrays = tokens, tokens.argsort(kind="stable"), copies.cumsum() - copies
    return Stems(*(sent(torch.from_numpy(array), device) for array in arrays))


def with_stems(keys: Tensor, values: Tensor, stems: Stems) -> tuple[Tensor, Tensor]:
    """Lay out the keys and values of N tokens, (N, heads, D), as `Sequences.key_bounds` counts them: before those of a branch come
    those of its stem. (M, heads, D) each; the gradients of all copies of a token are added up in their order, rounded once."""
    found: tuple[Tensor, Tensor] = _WithStems.apply(keys, values, stems)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return found


class _WithStems(torch.autograd.Function):
    """An operation for each of both, where a piece for every branch would take several, and a sum for each of its copies."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, stems: Stems) -> tuple[Tensor, Tensor]:
        ctx.stems = stems
        return keys.index_select(0, stems.tokens), values.index_select(0, stems.tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*(_added_up(grad, ctx.stems) for grad in grads), None)


def _added_up(grad: Tensor, stems: Stems) -> Tensor:
    """(M, heads, D) → (N, heads, D)."""
    flat = grad.reshape(len(grad), -1)
    return embedding_bag(stems.places, flat, stems.begins, mode="sum").view(-1, *grad.shape[1:])
