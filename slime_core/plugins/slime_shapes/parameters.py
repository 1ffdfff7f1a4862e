"""Looks at the parameters of functions, and puts other functions in their place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function by name; {} of something that has no signature."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def in_place_of(function: Any) -> Callable[[Any], Any]:
    """Decorator of a function with another signature: what it stands for, whose name, text and marks it takes over."""

    def mark(made: Any) -> Any:
        functools.update_wrapper(made, function)
        del made.__wrapped__  # whose signature would be taken for its own
        made.__annotations__ = {}
        return made

    return mark
