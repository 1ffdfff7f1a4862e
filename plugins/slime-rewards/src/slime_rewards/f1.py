"""The reward `f1`: how many words do answer and label share? The measure of SQuAD (arXiv 1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter

from slime_core.arguments import RunArguments
from slime_core.errors import DataError
from slime_core.sample import Sample

_PUNCTUATION = str.maketrans("", "", string.punctuation)


async def f1(args: RunArguments, sample: Sample) -> float:
    """Return the token F1 of the response with the label, in [0, 1]; with the best label where the label is a list.

    Raises:
        DataError: the sample has no label.
    """
    labels = sample.label if isinstance(sample.label, list) else [sample.label]
    if not labels or any(label is None for label in labels):
        raise DataError(f"The reward 'f1' compares with a label, but {sample.name} has none; name it with --label-key.")
    return max(token_f1(sample.response, str(label)) for label in labels)


def token_f1(answer: str, label: str) -> float:
    """Return the harmonic mean of precision and recall over words, each counted as often as it occurs. Two texts without
    words are equal."""
    given, expected = words(answer), words(label)
    if not given or not expected:
        return float(given == expected)
    shared = (Counter(given) & Counter(expected)).total()
    return 2 * shared / (len(given) + len(expected))


def words(text: str) -> list[str]:
    """Return the lower-case words without ASCII punctuation and without the articles a, an, the."""
    return re.sub(r"\b(?:a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()
