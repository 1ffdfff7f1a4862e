"""The reward `f1`: how many words do answer and label share? The measure of SQuAD (arXiv 1606.05250), but that
numbers keep their point, sign and colon, with the rule of HotpotQA (arXiv 1809.09600) for answers that are yes or no."""

from __future__ import annotations

import re
import string
from collections import Counter

from slime_core.arguments import RunArguments
from slime_core.sample import Sample
from slime_rewards.labels import text_labels

_PUNCTUATION = re.escape(string.punctuation)
# Between digits a point, a colon or a slash is part of the number, and so is a minus before it.
_REMOVED = re.compile(rf"(?<=\d),(?=\d{{3}}(?!\d))|(?!(?<=\d)[.,:/](?=\d)|(?<![^\s(])-(?=\d))[{_PUNCTUATION}]")
_WHOLE_ANSWERS = frozenset({"yes", "no", "noanswer"})


async def f1(args: RunArguments, sample: Sample) -> float:
    """Return the token F1 of the response with the label, in [0, 1]; with the best label where the label is a list.

    Raises:
        DataError: there is no label, or one that cannot be compared with.
    """
    return max(token_f1(sample.response, label) for label in text_labels("f1", sample))


def token_f1(answer: str, label: str) -> float:
    """Return the harmonic mean of precision and recall over words, each counted as often as it occurs. "yes" and "no" share
    nothing with longer texts; texts without words share nothing with any."""
    given, expected = words(answer), words(label)
    if given != expected and {" ".join(given), " ".join(expected)} & _WHOLE_ANSWERS:
        return 0.0
    shared = (Counter(given) & Counter(expected)).total()
    return 2 * shared / (len(given) + len(expected)) if shared else 0.0


def words(text: str) -> list[str]:
    """Return the lower-case words without ASCII punctuation and without the articles a, an, the. Numbers keep what belongs to
    them: 12.5 is not 125, while 1,000 is 1000."""
    return re.sub(r"\b(?:a|an|the)\b", " ", _REMOVED.sub("", text.lower())).split()
