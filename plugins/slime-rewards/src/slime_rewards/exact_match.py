"""The reward `exact_match`: is the response the label?"""

from __future__ import annotations

import unicodedata

from slime_core.arguments import RunArguments
from slime_core.errors import DataError
from slime_core.sample import Sample


async def exact_match(args: RunArguments, sample: Sample) -> float:
    """Return 1.0 when response and label are equal after `normalise`, else 0.0.

    Raises:
        DataError: the sample has no label.
    """
    if sample.label is None:
        raise DataError(f"The reward 'exact_match' compares with a label, but {sample.name} has none.")
    return float(normalise(sample.response) == normalise(str(sample.label)))


def normalise(text: str) -> str:
    """Return the text in Unicode normal form C and folded case, its white space as single blanks and none at the ends.

    Nothing else: punctuation, accents and superscripts carry meaning.
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
