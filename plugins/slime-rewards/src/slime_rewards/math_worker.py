"""Mathematical equality, in a process of its own. Called through `slime_rewards.pool`, whose limits replace
math-verify's own: those need signals, which only a main thread has."""

from __future__ import annotations

from typing import Any, Literal

from math_verify import parse, verify


def compare(label: str, answer: str, marked: bool) -> Literal["equal", "different", "unreadable label"]:
    """Say whether an answer is mathematically equal to the label.

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


compare("\\frac{1}{2}", "The answer is 1/2.", False)  # the first call builds tables; it should not count as grading
