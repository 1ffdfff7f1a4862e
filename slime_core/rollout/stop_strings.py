"""Where a response ends because of a stop string. Called by the embedded engine for every token, and by rollouts for responses that
an abort has cut in two: an engine sees the second part alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BEFORE = 4
"""So many more tokens are decoded, since the text of the first ones depends on those before them."""


def completes_stop_string(decode: Callable[[list[int]], str], tokens: list[int], stop: Sequence[str]) -> bool:
    """Return whether the last of these tokens completes one of the strings in `stop`.

    Args:
        decode: turns token ids into text with special tokens included.
        tokens: of the response so far.
    """
    if not stop:
        return False
    tail = decode(tokens[-window(stop) :])
    return any(text in tail for text in stop)


def window(stop: Sequence[str]) -> int:
    """Return how many of the last tokens may be part of a stop string. A token is at least one byte."""
    return max((len(text.encode()) for text in stop), default=0) + _BEFORE


def first_completed(
    decode: Callable[[list[int]], str], earlier: list[int], later: Sequence[int], stop: Sequence[str], shortest: int = 0
) -> int | None:
    """Return how many tokens of `later` there are when a stop string is completed that may have begun in `earlier`; None where
    there is none such. One that is in `later` alone is not looked for beyond that.

    Args:
        shortest: a response of fewer tokens is not ended by a stop string (`min_new_tokens`).
    """
    for count in range(1, min(len(later), window(stop)) + 1 if stop and earlier else 1):
        tokens = [*earlier, *later[:count]]
        if len(tokens) >= shortest and completes_stop_string(decode, tokens, stop):
            return count
    return None
