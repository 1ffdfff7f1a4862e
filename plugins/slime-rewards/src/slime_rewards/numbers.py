r"""Finds the numbers in a text and reads them exactly, for the rewards `final_answer` and `reasoning_gym`.

A text is cut into words at white space and "=". A word with a digit in it is a number only if, without the punctuation,
quotes and brackets around it, *all of it* is one; else it has no value. So no part of "3,142,0", "2^10", "12:30", "5-3",
"1.2.3", "f(2)", "H2O" or "2x" is ever taken for an answer. Well-formed numbers are

- `42`, `-42`, `3.50`, `.5`, `1e-3`, fractions `3/4`, `\frac{3}{4}` and `2 1/2`;
- with commas between groups of three digits, `1,234,567`;
- with a currency sign on either side of the sign or at the end: `$5`, `-$5`, `5€`;
- with one of `UNITS` glued on (`5kg`; `50%` is 50), or before one of `MAGNITUDES` (`2 million`).

A number next to an operator that stands alone ("10 - 3") is part of a formula and has no value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

UNITS = frozenset(
    {"%", "°", "°C", "°F", "am", "pm", "mm", "cm", "m", "km", "in", "ft", "mg", "g", "kg", "lb", "lbs", "oz"}
    | {"ml", "mL", "l", "L", "ms", "s", "sec", "min", "h", "hr", "hrs", "mph", "km/h"}
)
MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
OPERATORS = frozenset(
    {"+", "-", "*", "/", "^", "×", "÷", "·", "±", "\\times", "\\cdot", "\\div", "\\pm"}
    | {"<", ">", "<=", ">=", "!=", "≠", "≤", "≥"}
)
LONGEST = 100
"""Characters in a number; a longer word has no value, so that no answer takes long to read."""

# What makes LaTeX read like plain text, and what separates words.
_PLAIN = [
    (re.compile("−"), "-"),
    (re.compile(r"\\[,!;:]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"(?<=\d)\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}"), r"\1/\2"),
    (re.compile(r"[—→⇒]|(?<!\d):|:(?!\d)"), " "),
    (re.compile(r"(?<![!<>=])=(?!=)"), " = "),
]
_OPENING = "*_\"'`“”‘’(){}[]\\,;"
_CLOSING = _OPENING + ".!?$€£¥"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)[$€£¥]?(?P<inner>[-+]?)"
    r"(?P<decimal>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3}))?(?:/(?P<divisor>\d+))?(?P<unit>[A-Za-z%°][A-Za-z/°]*)?"
)


@dataclass(frozen=True)
class Number:
    """A word with a digit in it.

    Attributes:
        value: what it says, None when it is not a well-formed number.
        start, end: where it stands in the text in which it was found (with its magnitude, if it has one).
    """

    value: Fraction | None
    start: int
    end: int


def find_numbers(text: str) -> list[Number]:
    """Return all words with a digit in them, in order; positions refer to the plain form of the text."""
    return _find(_plain(text))


def last_number_text(text: str) -> str | None:
    """Return the last word with a digit in it as it is written, without commas, quotes and currency; None when it is no
    number."""
    text = _plain(text)
    found = _find(text)
    if not found or found[-1].value is None:
        return None
    word = text[found[-1].start : found[-1].end].lstrip(_OPENING).rstrip(_CLOSING)
    return re.sub(r"[,$€£¥]", "", word)


def only_number(text: str) -> Fraction | None:
    """Return the number that is all of `text`, but for a name before it ("x =") and words without digits after it (a unit)."""
    text = _plain(text)
    found = _find(text)
    if len(found) != 1:
        return None
    before = text[: found[0].start].strip(" $\\()*_")
    after = text[found[0].end :].strip(" $\\()*_.%°").replace(" ", "")
    named = not before or (before.endswith("=") and before[:-1].strip().isalpha())
    return found[0].value if named and (not after or after.isalpha()) else None


def _plain(text: str) -> str:
    """Return the text with LaTeX written as plain text, and "=" as a word of its own."""
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return text


def _find(text: str) -> list[Number]:
    """Do what `find_numbers` does, in a text that is plain already."""
    words = list(re.finditer(r"\S+", text))
    found: list[Number] = []
    for index, word in enumerate(words):
        if not re.search(r"\d", word[0]):
            continue
        previous = words[index - 1] if index else None
        following = words[index + 1][0] if index + 1 < len(words) else ""
        value, start, end = _value(word[0]), word.start(), word.end()
        if following in OPERATORS - {"-"} or _follows_operator(words, index):
            value = None
        if value is not None and (magnitude := MAGNITUDES.get(following.rstrip(_CLOSING).lower())):
            value, end = value * magnitude, words[index + 1].end()
        if value is not None and found and previous and _is_mixed(previous, word, found[-1]):
            whole = found.pop()
            sign = -1 if previous[0].startswith("-") else 1
            value, start = (whole.value + sign * value if whole.value is not None else None), whole.start
        found.append(Number(value, start, end))
    return found


def _value(word: str) -> Fraction | None:
    """Return what a word says if all of it is one well-formed number, else None."""
    word = word.lstrip(_OPENING).rstrip(_CLOSING)
    parts = _NUMBER.fullmatch(word) if len(word) <= LONGEST else None
    if parts is None or (parts["sign"] and parts["inner"]) or (parts["unit"] and parts["unit"] not in UNITS):
        return None
    value = Fraction(parts["decimal"].replace(",", "")) * Fraction(10) ** int(parts["exponent"] or 0)
    divisor = int(parts["divisor"] or 1)
    if divisor == 0:
        return None
    return (-value if "-" in (parts["sign"], parts["inner"]) else value) / divisor


def _follows_operator(words: list[re.Match[str]], index: int) -> bool:
    """Say whether an operator stands before the word. A sign that opens a line is the bullet of a list, not an operator."""
    if index == 0 or (sign := words[index - 1])[0] not in OPERATORS:
        return False
    opens_line = index == 1 or "\n" in sign.string[words[index - 2].end() : sign.start()]
    return not (opens_line and sign[0] in "-*+")


def _is_mixed(previous: re.Match[str], word: re.Match[str], last: Number) -> bool:
    """Say whether the two words are a mixed number such as "2 1/2"."""
    whole = previous[0].lstrip(_OPENING)
    fraction = word[0].rstrip(_CLOSING)
    together = last.end == previous.end() and word.start() == previous.end() + 1
    return together and bool(re.fullmatch(r"-?\d+", whole)) and bool(re.fullmatch(r"\d+/\d+", fraction))
