"""The reward `final_answer`: does the response end in the right number?"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rewards.numbers import Candidate, candidates, clean

MARK = "####"
BOX = "\\boxed{"


async def final_answer(args: Any, sample: Sample) -> float:
    """1.0 when `final_number` of the response and of the label exist and are exactly equal, else 0.0.

    Raises:
        DataError: the label has no final number to compare with.
    """
    expected = final_number(str(sample.label)) if sample.label is not None else None
    if expected is None:
        raise DataError(
            f"The reward 'final_answer' compares numbers, but the label of {sample.name} holds none: {sample.label!r}. "
            "Use 'exact_match' for answers in words."
        )
    return float(final_number(sample.response) == expected)


def final_number(text: str) -> Fraction | None:
    r"""The number that a text gives as its answer, or None.

    1. A text that marks its answer gives that answer and no other: the last `\boxed{…}` or the rest of the line after
       the last `####`, whichever comes later. It must be one number, perhaps after "x =" and perhaps with a unit. An
       unclosed box or a box without a number is no answer. `####` before anything but a number is a heading.
    2. Otherwise the last number in the text, if it is well-formed; see `slime_rewards.numbers`.
    """
    heading_free = MARK in text and _marked(text) is not None
    box = text.rfind(BOX)
    if box >= 0 and not (heading_free and text.rfind(MARK) > box):
        content = _boxed(text, box + len(BOX))
        return None if content is None else _only_number(content)
    if heading_free:
        return _marked(text)
    found = candidates(clean(text))
    return found[-1].value if found else None


def _marked(text: str) -> Fraction | None:
    line = text[text.rfind(MARK) + len(MARK) :].strip().split("\n", 1)[0]
    return _only_number(line)


def _boxed(text: str, start: int) -> str | None:
    """What stands between the brace before `start` and the one that closes it."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None


def _only_number(text: str) -> Fraction | None:
    """The number that `text` consists of, with at most a name before it ("x =") and a unit after it."""
    cleaned = clean(text)
    found: list[Candidate] = candidates(cleaned)
    if len(found) != 1:
        return None
    before, after = cleaned[: found[0].start].strip(" *_"), cleaned[found[0].end :].strip(" *_.%°")
    named = not before or (before.endswith("=") and before[:-1].strip(" \\()").isalpha())
    return found[0].value if named and (not after or after.replace(" ", "").isalpha()) else None
