r"""Finds the numbers in a text and reads them exactly. Used by the reward `final_answer`.

A *candidate* is everything that looks like one number to a reader: digits with what is glued to them. It has a value
only when all of it is one well-formed number, so that no part of "3,142", "2^10", "12:30", "1.2.3", "H2O" or "2x" is
ever taken for an answer. Well-formed are

- `42`, `-42`, `+42`, `3.50`, `.5`, `1e-3`, and fractions `3/4`, `\frac{3}{4}`, `2 1/2`;
- commas between groups of three digits, `1,234,567`;
- a currency sign before the number, on either side of its sign: `$5`, `-$5`, `€1,000`;
- one of `UNITS` glued to it (`5kg`, `50%`, which is 50), or a magnitude after it (`2 million`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

UNITS = frozenset("% ° °C °F am pm mm cm m km in ft mg g kg lb lbs oz ml mL l L s sec ms min h hr hrs mph kmh km/h".split())
MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
LONGEST = 100
"""Characters in a candidate; longer ones have no value, so that no text costs more than its length to read."""

_CANDIDATE = re.compile(
    r"""
    (?P<sign>(?<![\w)\]}])[-+])?               # a minus after a word or a bracket is a subtraction
    [$€£¥]?(?P<inner_sign>(?<=[$€£¥])[-+])?
    (?P<glued>[\w^]*)                          # a number inside a word or an exponent belongs to that word
    (?P<run>(?:\.(?=\d))?\d(?:[\w.,/:^*%°]|(?<=[eE])[-+](?=\d))*)
    """,
    re.VERBOSE,
)
_NUMBER = re.compile(
    r"(?P<decimal>(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)(?:[eE](?P<exponent>[-+]?\d{1,3}))?(?:/(?P<divisor>\d+))?"
    r"(?P<unit>[A-Za-z%°][A-Za-z/°]*)?"
)
