"""The reward `dapo`: DAPO's rule for mathematics (arXiv 2503.14476).

Answers are compared as text after the normalisation that Minerva's evaluation made common (arXiv 2206.14858, appendix
D.1): articles, units, white space and LaTeX decoration go, shorthand is written out.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.rollout.boxed import last_box
from slime_core.sample import Sample
from slime_rewards.labels import text_labels

TAIL = 300
"""Characters at the end of a response in which the answer must stand."""
NO_ANSWER = "[INVALID]"
"""What is reported as the answer of a response that gives none."""

_ANSWER = re.compile(r"answer[\s*]*[:：][\s*]*([^\n]+)", re.IGNORECASE)
_FORMULA = re.compile(r"\$([^$]*)\$")

# In this order: later entries rely on earlier ones.
_REPLACED = (
    *(("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text")),
    *((",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"), ("\\(", "$"), ("\\)", "$")),
    *(("dfrac", "frac"), ("tfrac", "frac"), ("−", "-")),
)
_REMOVED = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue"),
    *("points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges"),
    *("students", "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2"),
    *("\\text{}^3", "\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"'),
    *("\\dots", "<|im_end|>", "<|endoftext|>", "**", "°"),
)


async def dapo(args: RunArguments, sample: Sample) -> dict[str, Any]:
    r"""Return {"score": 1.0 or -1.0, "acc": 1.0 or 0.0, "pred": the normalised answer}; train with `--reward-key score`.

    The answer is what follows the last "Answer:" on its line or, without one, stands in the last `\boxed{…}`, within the last
    `TAIL` characters; without either, "pred" is `NO_ANSWER`. An answer of which the normalisation leaves nothing is none.

    Raises:
        DataError: there is no label, or one that cannot be compared with.
    """
    labels = [normalise(label) for label in text_labels("dapo", sample)]
    tail = sample.response[-TAIL:]
    found = _ANSWER.findall(tail)
    box = last_box(tail)
    answer = found[-1] if found else box.content if box else None
    pred = NO_ANSWER if answer is None else normalise(answer)
    right = answer is not None and pred != "" and pred in labels
    return {"score": 1.0 if right else -1.0, "acc": float(right), "pred": pred}


def normalise(answer: str) -> str:
    """Return a final answer in Minerva's normal form: what follows the last "=", without decoration. Numbers that are the
    same are written the same: 033 and 33.0 are 33, and 3/4 is a fraction of LaTeX."""
    answer = answer.split("=")[-1]
    for old, new in _REPLACED:
        answer = answer.replace(old, new)
    for removed in _REMOVED:
        answer = answer.replace(removed, "")
    if len(formulas := _FORMULA.findall(answer)) == 1:
        answer = formulas[0]
    for command in ("text", "textbf", "mathbf", "mathrm", "overline"):
        answer = re.sub(rf"\\{command}\{{(.*?)\}}", r"\1", answer)
    answer = re.sub(r"(.*)\\boxed\{(.*)\}(.*)", r"\2", answer)
    answer = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", answer)
    answer = re.sub(r"sqrt([^{])", r"sqrt{\1}", answer)
    answer = re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", answer.strip().rstrip(".,;").strip())
    return _number(answer if formulas else answer.replace("$", ""))


def _number(text: str) -> str:
    """Return a number in its shortest form; any other text as it is."""
    plain = text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text) else text
    if not re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", plain) or len(plain) > 100:
        return text
    value = Fraction(plain.rstrip("."))
    return str(value.numerator) if value.denominator == 1 else plain.lstrip("+0").rstrip("0").replace("-0", "-")
