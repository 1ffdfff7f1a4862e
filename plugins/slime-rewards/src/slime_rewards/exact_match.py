"""The reward `exact_match`: is the response the label?"""

from __future__ import annotations

import unicodedata

from slime_core.arguments import RunArguments
from slime_core.sample import Sample
from slime_rewards.labels import text_labels


async def exact_match(args: RunArguments, sample: Sample) -> float:
    """Return 1.0 when response and label are equal after `normalise`, else 0.0; of a list of labels, any will do.

    Raises:
        DataError: there is no label, or one that cannot be compared with.
    """
    return float(normalise(sample.response) in map(normalise, text_labels("exact_match", sample)))


def normalise(text: str) -> str:
    """Return the text in Unicode normal form C and folded case, its white space as single blanks and none at the ends.

    Nothing else: punctuation, accents and superscripts carry meaning.
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
