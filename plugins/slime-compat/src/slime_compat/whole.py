"""What slime's hooks call to put samples together that lie on several context-parallel ranks, and to take them apart again. Every rank
has whole samples here, whatever --context-parallel-size is, so both return what they are given."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def all_gather_with_cp(tensor: T, total_length: int, response_length: int) -> T:
    """Return the numbers of a sample's tokens, of which this rank has all."""
    return tensor


def slice_log_prob_with_cp(log_prob: T, total_length: int, response_length: int) -> T:
    """Return the numbers of those tokens of a sample that this rank trains: all."""
    return log_prob
