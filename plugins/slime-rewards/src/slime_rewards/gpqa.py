"""The reward `gpqa`: is the chosen letter of a multiple-choice question the right one?"""

from __future__ import annotations

import re
from collections.abc import Sequence

from slime_core.arguments import RunArguments
from slime_core.errors import DataError
from slime_core.rollout.boxed import last_box
from slime_core.sample import Sample

LETTERS = tuple("ABCDEFGH")
"""The valid letters of a sample that does not name its own."""


async def gpqa(args: RunArguments, sample: Sample) -> float:
    """Return 1.0 when `chosen_letter` of the response is the right one, else 0.0.

    The right letter is `metadata["correct_letter"]`, or else the label; `metadata["valid_letters"]` lists the letters
    that there are (by default A to H).

    Raises:
        DataError: neither is one of the valid letters.
    """
    valid = tuple(str(letter).strip().upper() for letter in sample.metadata.get("valid_letters") or LETTERS)
    given = sample.metadata.get("correct_letter", sample.label)
    correct = str(given).strip().strip("().").upper()
    if correct not in valid:
        raise DataError(
            f"The reward 'gpqa' needs the letter of the right choice in metadata['correct_letter'] or as the label, one of "
            f"{' '.join(valid)}, but {sample.name} has {given!r}."
        )
    return float(chosen_letter(sample.response, valid) == correct)


def chosen_letter(response: str, valid: Sequence[str] = LETTERS) -> str | None:
    r"""Return the letter that a response ends up with, or None.

    Reasoning up to `</think>` does not count. The answer is the last box if that holds one letter, else the last letter
    after "answer", "choice" or "option" (perhaps with "is" or ":"), else the last capital letter that stands alone on the
    last line and is no English word there ("a", "I").
    """
    text = response.rpartition("</think>")[2].strip()
    letter = f"[{''.join(map(re.escape, valid))}]"
    box = last_box(text)
    if box is not None and (found := re.fullmatch(rf"\W*(?:\\text\w*\W*)?({letter})\W*", box.content or "", re.I)):
        return str(found[1]).upper()
    stated: list[str] = re.findall(
        rf"\b(?:answer|choice|option)\b(?:\s+is)?[\s:*({{$\\]*(?:(?:choice|option)[\s*(]*)?"
        rf"({letter}|(?<=[(*]){letter.lower()})(?![\w'’]|\s+[a-z])",
        re.sub(r"(?i)\b(answer|choice|option)(\s+is)?\b", lambda word: word[0].lower(), text),
    )
    if stated:
        return stated[-1].upper()
    last_line = text.rpartition("\n")[2]
    alone: list[str] = re.findall(rf"(?<![\w'’])({letter})(?![\w'’]|\s+[a-z])", last_line)
    return alone[-1] if alone else None


EXAMPLES = {"gpqa": [Sample(index=i, response=r, label="B") for i, r in enumerate(("Answer: B", "I think C.", ""))]}
"""For `slime plugins check`: labels that are letters."""
