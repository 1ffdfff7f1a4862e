"""What number a SymPy expression is, once its letters have values. Called by `algebra` in a worker process.

Numbers are worked out from the inside to the outside with a fixed number of digits. SymPy's own evaluation would first work
out whole numbers exactly, for which 9^(9^9) has too many digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
from mpmath import mp

PRECISIONS = (30, 60)
"""Decimal digits. What differs between them altogether is 0 and rounding."""
LARGEST = 10**9
"""The largest exponent, and the largest argument of most functions, that is worked out."""


class TooLarge(Exception):
    """A number is too large to be worked out."""


class NoNumber(Exception):
    """An expression is no number: a function that nobody knows, a set, something that is not defined."""


def value_of(expression: sympy.Expr, point: Mapping[sympy.Symbol, sympy.Rational]) -> Any:
    """Return the number that an expression is where its symbols are those of `point`, as mpmath's.

    Raises:
        TooLarge: it would take for ever.
        NoNumber: it is none.
    """
    found = []
    for digits in PRECISIONS:
        with mp.workdps(digits):
            try:
                found.append(mp.mpmathify(_number(expression, point)))
            except (ArithmeticError, ValueError, TypeError, NotImplementedError) as error:
                raise NoNumber(str(error)) from None
    coarse, fine = found
    if mp.isnan(fine):
        raise NoNumber("not a number")
    if mp.isinf(fine):
        return fine
    with mp.workdps(PRECISIONS[1]):
        return mp.mpf(0) if abs(fine - coarse) >= abs(fine) / 2 else fine


def _number(expression: Any, point: Mapping[sympy.Symbol, Any]) -> Any:
    if expression in point:
        expression = point[expression]
    if expression.is_Rational:
        return mp.mpf(expression.p) / expression.q
    if expression.is_Float:
        return mp.mpf(str(expression))
    if expression in _CONSTANTS:
        return +_CONSTANTS[expression]
    operation = _OPERATIONS.get(expression.func)
    if operation is None:
        return _left_to_sympy(expression, point)
    return operation(*(_number(part, point) for part in expression.args))


def _left_to_sympy(expression: Any, point: Mapping[sympy.Symbol, Any]) -> Any:
    """Work out sums, integrals, limits and the like."""
    value = expression.subs(dict(point)).doit().evalf(mp.dps)
    if value == expression or not value.is_number or value.atoms(sympy.Function, sympy.nan, sympy.zoo):
        raise NoNumber(type(expression).__name__)
    return _number(value, {})


def _power(base: Any, exponent: Any) -> Any:
    if mp.isinf(exponent) or mp.isinf(base) or base == 0:
        return base**exponent
    if abs(exponent) > LARGEST or abs(mp.re(exponent * mp.log(base))) > LARGEST:
        raise TooLarge
    return mp.power(base, exponent)


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of mpmath that refuses numbers for which it takes long."""

    def limited(*values: Any) -> Any:
        if any(abs(value) > LARGEST and not mp.isinf(value) for value in values):
            raise TooLarge
        return function(*values)

    return limited


_CONSTANTS = {sympy.oo: mp.inf, -sympy.oo: -mp.inf, sympy.I: mp.j, sympy.pi: mp.pi, sympy.E: mp.e}
_LIMITED = (
    *(
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "sinh",
        "cosh",
        "tanh",
        "asin",
        "acos",
        "atan",
        "asinh",
        "acosh",
        "atanh",
    ),
    *("exp", "factorial", "gamma", "binomial"),
)
_OPERATIONS: dict[Any, Callable[..., Any]] = {
    sympy.Add: lambda *values: mp.fsum(values),
    sympy.Mul: lambda *values: mp.fprod(values),
    sympy.Pow: _power,
    sympy.UnevaluatedExpr: lambda value: value,
    sympy.Abs: abs,
    sympy.ceiling: mp.ceil,
    sympy.Max: max,
    sympy.Min: min,
    **{getattr(sympy, name): getattr(mp, name) for name in ("log", "floor", "re", "im", "arg", "conjugate")},
    **{getattr(sympy, name): _limited(getattr(mp, name)) for name in _LIMITED},
}
