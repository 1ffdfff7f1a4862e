"""The reward `dapo`: DAPO's rule for mathematics (arXiv 2503.14476).

Answers are compared as text after the normalisation that Minerva's evaluation made common (arXiv 2206.14858, appendix
D.1): articles, units, white space and LaTeX decoration go, shorthand is written out.
"""

from __future__ import annotations

import re
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.sample import Sample
from slime_rewards.labels import text_label

TAIL = 300
"""Characters at the end of a response in which the answer must stand."""

_ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)

# In this order: later entries rely on earlier ones.
_REPLACED = (
    *(("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text")),
    *((",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}")),
)
_REMOVED = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units", "\\ldots", "sue"),
    *("points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges"),
    *("students", "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2"),
    *("\\text{}^3", "\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"'),
    "\\dots",
)


async def dapo(args: RunArguments, sample: Sample) -> dict[str, Any]:
    """Return {"score": 1.0 or -1.0, "acc": True or False, "pred": the normalised answer}; train with `--reward-key score`.

    The answer is what follows the last "Answer:" on its line, within the last `TAIL` characters; without one, "pred" is
    "[INVALID]".

    Raises:
        DataError: there is no label.
    """
    label = text_label("dapo", sample)
    found = _ANSWER.findall(sample.response[-TAIL:])
    answer = normalise(found[-1]) if found else "[INVALID]"
    right = answer == normalise(label)
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": answer}


def normalise(answer: str) -> str:
    """Return a final answer in Minerva's normal form: what follows the last "=", without decoration."""
    answer = answer.split("=")[-1]
    for old, new in _REPLACED:
        answer = answer.replace(old, new)
    for removed in _REMOVED:
        answer = answer.replace(removed, "")
    answer = re.sub(r"(.*?)(\$)(.*?)(\$)(.*)", r"$\3$", answer)
    for command in ("text", "textbf", "overline"):
        answer = re.sub(rf"\\{command}\{{(.*?)\}}", r"\1", answer)
    answer = re.sub(r"(.*)\\boxed\{(.*)\}(.*)", r"\2", answer)
    answer = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", answer)
    answer = re.sub(r"sqrt([^{])", r"sqrt{\1}", answer)
    answer = answer.replace("$", "")
    return (answer.replace(",", "") if answer.replace(",", "").isdigit() else answer).strip()
