"""What the mathematics rewards have done in processes of their own. Called through `slime_rewards.pool`, whose limits
replace math-verify's: those need signals, which only a main thread has."""

from __future__ import annotations

from typing import Any, Literal

from math_verify import parse, verify

from slime_rewards.algebra import same_value
from slime_rewards.equality import equal


def compare(label: str, answer: str) -> bool:
    """Say whether an answer is what the label is, as `slime_rewards.equality` defines it."""
    return equal(label, answer, same_value)


def compare_leniently(label: str, answer: str, marked: bool) -> Literal["equal", "different", "unreadable label"]:
    """Say whether an answer is mathematically equal to the label, as math-verify defines it.

    Args:
        label: the expression, LaTeX or plain.
        answer: the expression that the response marks as its answer or, unless `marked`, text to find it in.
    """
    expected = _read(label)
    if not expected:
        return "unreadable label"
    given = _read(answer) if marked else parse(answer, parsing_timeout=None)
    return "equal" if verify(expected, given, timeout_seconds=None) else "different"


def _read(expression: str) -> list[Any]:
    """Return what math-verify makes of the expression, all of it: SymPy objects and text; nothing if it cannot read it."""
    found: list[Any] = parse(f"\\boxed{{{expression}}}", parsing_timeout=None)
    return found


# The first calls build tables; that should not count as grading.
compare("\\frac{x}{2}", "x/2")
compare_leniently("\\frac{1}{2}", "The answer is 1/2.", False)
