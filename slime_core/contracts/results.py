"""What the checks of results share. A check compares what a component returned with its contract; see `kind.Check`."""

from __future__ import annotations

import math
from typing import Any

from slime_core.contracts.kind import Check


def is_a(kind: type) -> Check:
    """The result is an instance of `kind`."""

    def check(result: Any, args: tuple[Any, ...]) -> str | None:
        return None if isinstance(result, kind) else f"{shown(result)}; expected a {kind.__name__}"

    return check


def is_none(instead: str) -> Check:
    """The result is None; `instead` says what the component does in place of returning something."""

    def check(result: Any, args: tuple[Any, ...]) -> str | None:
        return None if result is None else f"{shown(result)}; expected None: {instead}"

    return check


def is_truth(result: Any, args: tuple[Any, ...]) -> str | None:
    """The result is True, False or None: functions written for slime may end without a return."""
    if result is None or isinstance(result, bool):
        return None
    return f"{shown(result)}; expected True (it has logged all itself) or False"


def is_finite_number(value: Any) -> bool:
    """Whether a value is a number, no boolean, and neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: Any) -> str:
    """A value with its type, at most about 60 characters, for messages."""
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({type(value).__name__})"


def shape_of(value: Any) -> str:
    """A tensor's shape or, of something else, the value, for messages: "a tensor of shape (3,)"."""
    shape = getattr(value, "shape", None)
    return shown(value) if shape is None else f"a tensor of shape {tuple(shape)}"
