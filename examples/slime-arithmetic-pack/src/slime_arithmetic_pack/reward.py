"""The reward `arithmetic`: the number in the last line, with some credit for keeping the format."""

from __future__ import annotations

import re
from fractions import Fraction

from slime_arithmetic_pack.arguments import RewardArguments
from slime_core.errors import DataError
from slime_core.sample import Sample

SOLVED = 1.0
"""The reward of the right number."""

_ANSWER_LINE = re.compile(r"answer:\s*([-+]?\d+(?:[./]\d+)?)\.?", re.IGNORECASE)


def arithmetic(args: RewardArguments, sample: Sample) -> float:
    """Return 1 when the response ends in a line `Answer: NUMBER` with the label's value, `args.arithmetic_format_credit` when
    the number is another one, 0 without such a line.

    Raises:
        DataError: the label is not a number.
    """
    try:
        expected = Fraction(str(sample.label).strip())
    except (ValueError, ZeroDivisionError):
        raise DataError(
            f"The reward 'arithmetic' compares with a number, but the label of {sample.name} is {sample.label!r}. "
            "Name the column with the result with --label-key."
        ) from None
    given = final_number(sample.response)
    if given is None:
        return 0.0
    return SOLVED if given == expected else args.arithmetic_format_credit


def final_number(response: str) -> Fraction | None:
    """Return the number in the last line, which must be `Answer: NUMBER` and nothing else; None if it is not."""
    lines = response.strip().splitlines()
    found = _ANSWER_LINE.fullmatch(lines[-1].strip()) if lines else None
    try:
        return Fraction(found[1]) if found else None
    except ZeroDivisionError:
        return None
