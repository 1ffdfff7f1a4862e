"""The reward `final_answer`: does the response end in the right number?"""

from __future__ import annotations

from fractions import Fraction

from slime_core.arguments import RunArguments
from slime_core.errors import DataError
from slime_core.rollout.boxed import last_box
from slime_core.sample import Sample
from slime_rewards.labels import text_labels
from slime_rewards.numbers import find_numbers, only_number

MARK = "####"
"""What stands before the answer in GSM8K, on the last line."""


async def final_answer(args: RunArguments, sample: Sample) -> float:
    """Return 1.0 when the `final_number` of the response exists and is exactly that of the label, or of one of its labels, else
    0.0.

    Raises:
        DataError: there is no label, or one that has no final number to compare with.
    """
    expected = [final_number(label) for label in text_labels("final_answer", sample)]
    if None in expected:
        raise DataError(
            f"The reward 'final_answer' compares numbers, but the label of {sample.name} does not end in one: "
            f"{str(sample.label)[:200]!r}. Use 'exact_match' for answers in words."
        )
    return float(final_number(sample.response) in expected)


def final_number(text: str) -> Fraction | None:
    r"""Return the number that a text gives as its answer, or None. What a number is, `slime_rewards.numbers` says.

    A text that marks its answer gives that answer and no other. Marks are the last `\boxed{…}`, and `####` on the last
    line, which is read to its end (elsewhere it is a heading); of both the later one counts. What is marked must be one
    number, perhaps after "x =" and perhaps with a unit; an unclosed box, or two numbers, are no answer.

    A text without marks gives its last number.
    """
    text = text.rstrip()
    box = last_box(text)
    mark = text.rfind(MARK, text.rfind("\n") + 1)
    if box is not None and box.start > mark:
        return None if box.content is None else only_number(box.content)
    if mark >= 0:
        return only_number(text[mark + len(MARK) :])
    found = find_numbers(text)
    return found[-1].value if found else None
