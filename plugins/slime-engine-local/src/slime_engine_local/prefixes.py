"""Which prefix a request that joins can share with others. Pure functions over token ids, called by the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from slime_engine_local.cache import Row

MIN_SHARED_TOKENS = 16
"""A common prefix of fewer tokens is computed by each request for itself."""


@dataclass(frozen=True, eq=False)
class StoredPrefix:
    """Tokens whose keys and values, computed with the present weights, are the first ones of a row of the cache.

    Attributes:
        shared: the row may be read by several requests; otherwise it belongs to one request, and can only be copied
            from.
        pending: the row is filled by the forward pass that is being prepared. It can be read in that pass, but not
            copied.
    """

    tokens: Sequence[int]
    row: Row
    shared: bool
    pending: bool


@dataclass(frozen=True)
class PrefixPlan:
    """How a request that joins gets the keys and values of its first tokens.

    Attributes:
        added: how many tokens it adds to what is stored.
        length: how many tokens it reads from a shared row; 0 for none.
        row: the shared row; None if a new one is to be made for its first `length` tokens.
        copy: the row whose first `copied` tokens are copied into the new row, if any.
        copied: how many tokens are copied.
    """

    added: int
    length: int = 0
    row: Row | None = None
    copy: Row | None = None
    copied: int = 0


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
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


def plan_prefix(
    tokens: Sequence[int],
    stored: Iterable[StoredPrefix],
    others: Iterable[Sequence[int]],
    uncut: Callable[[int], int] = lambda length: length,
) -> PrefixPlan:
    """Decide what a request that joins reads, copies or stores for others.

    At least one token of a request is computed beyond what it finds stored, because the logits of its last token choose
    the next one. The exception is a new row of this very pass that holds all its tokens: the pass then has those
    logits.

    Args:
        tokens: its prompt, followed by what it has generated already.
        stored: what the cache holds.
        others: the tokens of the requests that wait with it.
        uncut: the most tokens, at most so many, behind which no image is cut.
    """
    last, begin, waiting = uncut(len(tokens) - 1), tokens[:MIN_SHARED_TOKENS], 0
    matches = [
        (uncut(common_length(tokens, entry.tokens)), entry)
        for entry in stored
        if entry.tokens[:MIN_SHARED_TOKENS] == begin
    ]
    for other in others:
        if other[:MIN_SHARED_TOKENS] == begin:
            waiting = max(waiting, uncut(common_length(tokens, other)))
            if waiting == len(tokens):  # the members of a group stand together: the others need not be looked at
                break
    best, row = 0, None
    for length, entry in matches:
        usable = length if entry.pending and length == len(entry.tokens) else min(length, last)
        if entry.shared and usable > best:
            best, row = usable, entry.row
    private = max((min(length, last) for length, entry in matches if not entry.shared), default=0)
    new = max(waiting, private)
    if max(best, new) < MIN_SHARED_TOKENS:
        return PrefixPlan(len(tokens))
    if best >= min(new, last):
        return PrefixPlan(len(tokens) - best, best, row)
    copied, copy = 0, None
    for length, entry in matches:
        if not entry.pending and uncut(min(length, new - 1)) > copied:
            copied, copy = uncut(min(length, new - 1)), entry.row
    return PrefixPlan(len(tokens), new, None, copy, copied)
