"""JSON with something kept beside it: what is long or no JSON is taken out of plain data, a reference in its place, and put back.

A reference is an object with one key, such as `{"$floats": 3}`. An object of the data's own that looks like one is wrapped, so
everything comes back as it was. Used by the files of samples and by checkpoints. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slime_core.errors import DataError

_AS_IT_IS = "$is"
_PREFIX = "$"

Takes = Callable[[Any], "tuple[str, int] | None"]
"""Is shown every value, the outermost first, and returns (kind, number) for one that it keeps, under which it can be asked for it."""


def taken_out(value: Any, takes: Takes) -> Any:
    """Return the data with references in the place of what `takes` keeps; what needs no change may be shared with it."""
    if type(value) in (str, int, float, bool) or value is None:
        return value
    kept = takes(value)
    if kept is not None:
        return {_PREFIX + kept[0]: kept[1]}
    if isinstance(value, dict):
        made = {key: taken_out(inner, takes) for key, inner in value.items()}
        return {_AS_IT_IS: made} if len(made) == 1 and str(next(iter(made))).startswith(_PREFIX) else made
    if isinstance(value, (list, tuple)):
        return [taken_out(inner, takes) for inner in value]
    return value


def put_back(value: Any, gives: Mapping[str, Callable[[int], Any]]) -> Any:
    """Return the data with what was taken out in its place again.

    Args:
        gives: for every kind what returns the value of a number; raises `LookupError` where there is none.

    Raises:
        DataError: a reference is to nothing.
    """
    if isinstance(value, list):
        return [put_back(inner, gives) for inner in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key == _AS_IT_IS and isinstance(inner, dict):
            return {name: put_back(own, gives) for name, own in inner.items()}
        if key.startswith(_PREFIX):
            give = gives.get(key.removeprefix(_PREFIX))
            try:
                if give is None or type(inner) is not int or inner < 0:
                    raise LookupError
                return give(inner)
            except LookupError:
                raise DataError(f"refers to {key} {str(inner)[:40]}, which is not there") from None
    return {name: put_back(inner, gives) for name, inner in value.items()}
