"""Which requests begin alike, and what is made of it. Pure functions over token ids; called by the scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slime_engine_local.cache import Row

WORTH_SHARING = 16
"""Tokens. A shorter common beginning is computed by each request for itself."""


@dataclass(frozen=True, eq=False)
class Known:
    """Tokens whose keys and values, made with the present weights, are the first of a row.

    Attributes:
        shared: the row is there to be read by several requests; else it is some request's own and can be copied from.
        pending: the row is filled by the pass that is being prepared, so it can be read, in that pass, but not be copied.
    """

    tokens: Sequence[int]
    row: Row
    shared: bool
    pending: bool


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:  # first[:low] agrees, first[:high] does not
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Beginning:
    """How a request that joins begins.

    Attributes:
        length: tokens that it reads from a shared row; 0 for none.
        row: the shared row. None: a new one is to be made of its first `length` tokens.
        copy, copied: a row whose first `copied` tokens a new one begins with.
    """

    length: int = 0
    row: Row | None = None
    copy: Row | None = None
    copied: int = 0


def beginning(tokens: Sequence[int], known: Iterable[Known], others: Iterable[Sequence[int]]) -> Beginning:
    """Decide for one request.

    Args:
        tokens: its prompt, and after it what it has generated already.
        known: what is stored.
        others: tokens of requests that wait with it.

    At least one token of a request is computed after what it finds, since its logits choose the next one. The exception
    is a new row, of this pass, that holds all its tokens: then the pass has those logits.
    """
    last = len(tokens) - 1
    matches = [(common(tokens, entry.tokens), entry) for entry in known]
    waiting = max((common(tokens, other) for other in others), default=0)
    best, row = 0, None
    for length, entry in matches:
        usable = length if entry.pending and length == len(entry.tokens) else min(length, last)
        if entry.shared and usable > best:
            best, row = usable, entry.row
    private = max((min(length, last) for length, entry in matches if not entry.shared), default=0)
    new = max(waiting, private)
    if max(best, new) < WORTH_SHARING:
        return Beginning()
    if best >= min(new, last):
        return Beginning(best, row)
    copied, copy = 0, None
    for length, entry in matches:
        if not entry.pending and min(length, new - 1) > copied:
            copied, copy = min(length, new - 1), entry.row
    return Beginning(new, None, copy, copied)
