"""Are two expressions or equations the same, whatever their letters stand for? Called by `math_worker`, in a worker process:
what is compared comes from a model, and may take for ever.

Two expressions are the same if they have the same values at random points, to 12 digits. What has no values, such as a set,
is left to math-verify.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy
from math_verify import verify
from mpmath import mp

from slime_rewards.numerals import read_numeral
from slime_rewards.values import NoNumber, TooLarge, value_of

TOLERANCE = 1e-12
"""The largest relative difference of two values that are the same."""
POINTS = 5
"""For how many values of their letters two expressions are compared."""

_READ = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
_WITH_CASE = ConversionConfig(lowercase_symbols=False)


def same_value(label: str, answer: str) -> bool:
    """Say whether two texts in normal form are the same expression, or equations with the same solutions."""
    try:
        expected, given = _expression(label), _expression(answer)
    except Exception:  # latex2sympy raises whatever its parts raise
        return False
    try:
        if isinstance(expected, sympy.Eq) and isinstance(given, sympy.Eq):
            return _proportional(expected.lhs - expected.rhs, given.lhs - given.rhs)
        if isinstance(expected, sympy.Expr) and isinstance(given, sympy.Expr):
            return _same_values(expected, given, _slack(label, answer))
    except TooLarge:
        return False
    except NoNumber:
        pass
    return _names(expected) == _names(given) and bool(verify([expected], [given], timeout_seconds=None))


def _expression(text: str) -> Any:
    """Return the SymPy object of an expression in normal form. Capital and small letters differ."""
    text = re.sub(r"(\d+(?:\.\d+)?) ?\^\\circ", r"(\1 \\cdot \\frac{\\pi}{180})", text)
    text = re.sub(r"([A-Za-z])('+)", lambda found: f"{found[1]}_{{p{len(found[2])}}}", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return latex2sympy(text, normalization_config=_READ, conversion_config=_WITH_CASE)


def _same_values(expected: Any, given: Any, slack: float) -> bool:
    """Compare two expressions at random points. Raises `NoNumber` where they have no values."""

    def differ(a: Any, b: Any) -> bool:
        return not _near(a, b, slack)

    return not any(_at_points((expected, given), differ))


def _proportional(expected: Any, given: Any) -> bool:
    """Whether two expressions of the same letters differ by a constant factor, so that the same values make them 0. Raises
    `NoNumber` where they have no values."""
    if _names(expected) != _names(given) or not _names(expected):
        return False
    ratios = _at_points((expected, given), lambda a, b: a / b if b else None)
    return None not in ratios and 0 not in ratios and all(_near(ratio, ratios[0], 0.0) for ratio in ratios)


def _at_points(expressions: Sequence[Any], found: Callable[[Any, Any], Any]) -> list[Any]:
    """Return what `found` says of the values of two expressions at random points: the same ones every time, positive,
    negative and not whole. Points at which one has no value are left out.

    Raises:
        NoNumber: that is so at all of them.
    """
    chance = random.Random(1)
    symbols = sorted({symbol for expression in expressions for symbol in expression.free_symbols}, key=str)
    results = []
    for _ in range(POINTS if symbols else 1):
        point = {
            symbol: sympy.Rational(chance.choice((-1, 1, 1)) * chance.randint(300, 4000), 997) for symbol in symbols
        }
        try:
            results.append(found(*(value_of(expression, point) for expression in expressions)))
        except NoNumber:
            continue
    if not results:
        raise NoNumber
    return results


def _near(a: Any, b: Any, slack: float) -> bool:
    """Whether two numbers are the same but for rounding, relative to their size."""
    if mp.isinf(a) or mp.isinf(b):
        return bool(a == b)
    return bool(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + slack)


def _slack(*texts: str) -> float:
    """Return how far a decimal of many digits among the texts may be from what it stands for."""
    return max((float(number.slack) for text in texts if (number := read_numeral(text))), default=0.0)


def _names(expression: Any) -> set[str]:
    return {str(symbol) for symbol in getattr(expression, "free_symbols", ())}
