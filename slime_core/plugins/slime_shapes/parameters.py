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


def positional(taken: dict[str, inspect.Parameter]) -> list[str]:
    """The names of those of the parameters that can be passed by position."""
    return [name for name, one in taken.items() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]


def required(taken: dict[str, inspect.Parameter]) -> list[str]:
    """The names of those of the parameters without which a function cannot be called."""
    return [
        name
        for name, one in taken.items()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]


def in_place_of(function: Any) -> Callable[[Any], Any]:
    """Decorator of a function with another signature: what it stands for, whose name, text and marks it takes over."""

    def mark(made: Any) -> Any:
        functools.update_wrapper(made, function)
        del made.__wrapped__  # whose signature would be taken for its own
        made.__annotations__ = {}
        return made

    return mark
