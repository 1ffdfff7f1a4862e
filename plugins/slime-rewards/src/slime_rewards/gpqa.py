"""The reward `gpqa`: is the chosen letter of a multiple-choice question the right one?"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.errors import DataError
from slime_core.sample import Sample
from slime_rewards.choice import chosen_letter, stated_text

LETTERS = tuple(string.ascii_uppercase[:10])
"""The valid letters of a sample that names neither its own nor its choices."""


async def gpqa(args: RunArguments, sample: Sample) -> float:
    """Return 1.0 when the response chooses the right letter, or gives the text of the right choice, else 0.0.

    What is right says `metadata["correct_letter"]`, or else the label: a letter, the number of a choice counted from 0, or its
    text. `metadata["choices"]` lists the texts of the choices, `metadata["valid_letters"]` their letters (by default as many as
    there are choices from A on, or A to J).

    Raises:
        DataError: the label is none of these.
    """
    choices = _choices(sample.metadata.get("choices"))
    valid = tuple(str(letter).strip().upper() for letter in sample.metadata.get("valid_letters") or ())
    valid = valid or tuple(string.ascii_uppercase[: len(choices)]) or LETTERS
    correct = _correct_letter(sample, valid, choices)
    chosen = chosen_letter(sample.response, valid)
    if chosen is not None:
        return float(chosen == correct)
    given = _normalised(stated_text(sample.response))
    texts = [_normalised(text) for text in choices]
    if correct is None:
        return float(given == _normalised(str(sample.label)))
    right = texts[valid.index(correct)] if valid.index(correct) < len(texts) else None
    return float(bool(given) and given == right and texts.count(given) == 1)


def _correct_letter(sample: Sample, valid: Sequence[str], choices: Sequence[str]) -> str | None:
    """Return the letter of the right choice; None where the label is its text and the choices are not given.

    Raises:
        DataError: there is none.
    """
    given: Any = sample.metadata.get("correct_letter")
    given = sample.label if given is None else given
    if isinstance(given, str) and given.strip():
        letter = given.strip().strip("().").upper()
        if letter in valid:
            return letter
        same = [number for number, choice in enumerate(choices) if _normalised(choice) == _normalised(given)]
        if len(same) == 1 and same[0] < len(valid):
            return valid[same[0]]
        if choices and letter.isdecimal() and int(letter) < len(valid):
            return valid[int(letter)]
        if not choices and given is sample.label and len(letter) > 2 and not letter.isdecimal():
            return None
    if isinstance(given, (int, float)) and not isinstance(given, bool) and given in range(len(valid)):
        return valid[int(given)]
    raise DataError(
        f"The reward 'gpqa' needs the letter of the right choice ({' '.join(valid)}) in metadata['correct_letter'] or as the "
        f"label, or the number of the choice counted from 0, or its text and metadata['choices']; {sample.name} has {given!r}"
        f"{f' and the choices {choices!r}'[:200] if choices else ''}."
    )


def _choices(given: Any) -> list[str]:
    """Return the texts of the choices, which may be a list, or an object whose keys are the letters."""
    values = given.values() if isinstance(given, dict) else given if isinstance(given, list) else ()
    return [str(value) for value in values]


def _normalised(text: str) -> str:
    """Return the words and numbers of a text, in small letters."""
    return " ".join(re.findall(r"\w+(?:[.,]\w+)*", text.casefold()))


EXAMPLES = {"gpqa": [Sample(index=i, response=r, label="B") for i, r in enumerate(("Answer: B", "I think C.", ""))]}
"""For `slime plugins check`: labels that are letters."""
