r"""Reads a number that is written out, exactly: `7`, `7.0`, `-1,234`, `1 000`, `3/4`, `\frac{3}{4}`, `3 1/2`, `1.6\times10^{-19}`,
`2.5e6`, `5 million`, `0.\overline{3}`. Called by `equality` with texts in normal form.

Whatever has still to be worked out, such as `3+4`, `6!` and `\sqrt{9}`, is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 200
"""Characters of a number; a longer text is read as none."""
TRUSTED_DIGITS = 10
"""A decimal with so many significant digits stands for whatever is rounded to it."""

_MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,3}(?:'\d{3})+|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_SIGN = r"(?P<sign>[-+]?) ?"
_NUMBER = re.compile(
    rf"{_SIGN}(?P<decimal>{_DECIMAL})"
    r"(?: ?(?:[eE](?P<e>[-+]?\d{1,4})|(?:\\times|\\cdot|x|\*) ?10 ?\^ ?(?:\{ ?(?P<braced>[-+]?\d{1,4}) ?\}|(?P<bare>\d))))?"
    rf"(?: ?(?P<magnitude>{'|'.join(_MAGNITUDES)}))?"
)
_POWER = re.compile(rf"{_SIGN}10 ?\^ ?(?:\{{ ?(?P<braced>[-+]?\d{{1,4}}) ?\}}|(?P<bare>\d))")
_SLASH = r"(?P<top>\d{1,3}(?:,\d{3})+|\d+) ?/ ?(?P<bottom>\d{1,3}(?:,\d{3})+|\d+)"
_FRAC = r"\\frac ?\{ ?(?P<ftop>[-+]?\d+) ?\} ?\{ ?(?P<fbottom>[-+]?\d+) ?\}"
_RATIO = re.compile(rf"{_SIGN}(?:{_SLASH}|{_FRAC}|\( ?(?P<ptop>[-+]?\d+) ?\) ?/ ?(?P<pbottom>\d+))")
_MIXED = re.compile(rf"{_SIGN}(?P<whole>\d+)(?: (?:{_SLASH})| ?(?:{_FRAC}))")
_REPEATING = re.compile(
    rf"{_SIGN}(?P<whole>\d*)\.(?P<once>\d*) ?"
    r"(?:\\(?:overline|bar|dot) ?(?:\{ ?(?P<period>\d+) ?\}|(?P<one>\d))|\((?P<round>\d+)\))"
)


@dataclass(frozen=True)
class Numeral:
    """A number that is written out.

    Attributes:
        value: what it says.
        slack: how far what it stands for may be from that; 0 unless it is a decimal with at least `TRUSTED_DIGITS` digits.
        is_ratio: it is a fraction, such as 3/4 or 14/2.
    """

    value: Fraction
    slack: Fraction = Fraction(0)
    is_ratio: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole number that has been worked out: 7 or 7.0, not 14/2."""
        return self.value.denominator == 1 and not self.is_ratio

    def equals(self, other: Numeral) -> bool:
        """Whether both say the same. Of two that may be rounded, none stands for the other."""
        slack = Fraction(0) if self.slack and other.slack else self.slack + other.slack
        return abs(self.value - other.value) <= slack


def read_numeral(text: str) -> Numeral | None:
    """Return the number that all of the text is, or None."""
    if len(text) > LONGEST:
        return None
    while text.startswith("(") and text.endswith(")") and "(" not in text[1:] and re.search(r"\d\)$", text):
        text = text[1:-1].strip()
    if not re.search(r"\d", text):
        return None
    for pattern, read in (
        (_NUMBER, _number),
        (_POWER, _power),
        (_RATIO, _ratio),
        (_MIXED, _mixed),
        (_REPEATING, _repeating),
    ):
        if found := pattern.fullmatch(text):
            return read(found)
    return None


def _signed(found: re.Match[str], value: Fraction) -> Fraction:
    return -value if found["sign"] == "-" else value


def _exponent(found: re.Match[str]) -> int:
    return int(found["braced"] or found["bare"] or 0)


def _number(found: re.Match[str]) -> Numeral:
    digits = re.sub("[, ']", "", found["decimal"])
    scale = Fraction(10) ** (int(found["e"] or _exponent(found)) + _MAGNITUDES.get(found["magnitude"] or "", 0))
    places = len(digits.partition(".")[2])
    trusted = places and len(digits.replace(".", "").lstrip("0")) >= TRUSTED_DIGITS
    slack = Fraction(1, 2 * 10**places) * scale if trusted else Fraction(0)
    return Numeral(_signed(found, Fraction(digits.rstrip(".") or "0") * scale), slack)


def _power(found: re.Match[str]) -> Numeral:
    return Numeral(_signed(found, Fraction(10) ** _exponent(found)))


def _parts(found: re.Match[str]) -> Fraction | None:
    groups = found.groupdict()
    top = groups["top"] or groups["ftop"] or groups.get("ptop") or "0"
    bottom = groups["bottom"] or groups["fbottom"] or groups.get("pbottom") or "1"
    top, bottom = (re.sub("[, ']", "", part) for part in (top, bottom))
    return Fraction(int(top), int(bottom)) if int(bottom) else None


def _ratio(found: re.Match[str]) -> Numeral | None:
    value = _parts(found)
    return None if value is None else Numeral(_signed(found, value), is_ratio=True)


def _mixed(found: re.Match[str]) -> Numeral | None:
    value = _parts(found)
    return None if value is None or value < 0 else Numeral(_signed(found, int(found["whole"]) + value))


def _repeating(found: re.Match[str]) -> Numeral:
    once, period = found["once"], found["period"] or found["one"] or found["round"]
    whole = Fraction(f"{found['whole'] or 0}.{once or 0}")
    return Numeral(_signed(found, whole + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(once))))
