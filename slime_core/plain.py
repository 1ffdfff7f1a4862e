"""Plain JSON data: the one place where it is read from text, and where values of Python become it.

What enters a run and what hooks leave in samples is plain: None, booleans, numbers, text, lists, and objects whose keys
are text. So whatever a run holds can be stored, sent to another process and shown. Called by the readers of rows, by
`Sample.make_plain`, and wherever a column may hold JSON text. Pure.
"""

from __future__ import annotations

import json
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from operator import is_
from pathlib import PurePath
from typing import Any
from uuid import UUID

from slime_core.errors import DataError

MAX_DEPTH = 100
"""How many lists and objects may stand inside each other. What reads data goes into it level by level, and Python allows
only so many levels."""

MAX_ROW_BYTES = 64 << 20
"""Bytes that a row may have, a row of text or of Arrow. What follows from a row takes many times its size in memory."""

_AROUND = 20
"""Levels that may stand around what hooks leave, where that is stored: those of a sample, of its group, of a state."""

_TOO_DEEP = f"nested too deeply to be read (more than {MAX_DEPTH} levels)"
_PLAIN = frozenset({str, int, float, bool, type(None)})


def read_json(text: str, halves: bool = False) -> Any:
    """Return the value of JSON text.

    Args:
        halves: for whoever stores what hooks leave, and reads it again: texts may hold half of a surrogate pair, which is no character,
            and there may be some more levels, which stand around what hooks leave.

    Raises:
        DataError: it is not valid, holds half of a surrogate pair without `halves`, is nested too deeply, or has a number that Python does
            not read; what is wrong, without file and row.
    """
    try:
        value = json.loads(text)
        if not halves and ("\\ud" in text or "\\uD" in text):
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text: tokenizers reject it
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON at column {error.pos + 1}: {error.msg}") from None
    except UnicodeEncodeError:
        raise DataError("holds half of a surrogate pair (\\ud800 … \\udfff), which is no character") from None
    except RecursionError:
        raise DataError(_TOO_DEEP) from None
    except ValueError as error:  # such as a number of more digits than Python reads
        raise DataError(f"cannot be read: {error}") from None
    most = MAX_DEPTH + _AROUND if halves else MAX_DEPTH
    if text.count("[") + text.count("{") > most:
        _require_depth(value, most)
    return value


def require_row_size(size: int) -> None:
    """Refuse a row of more than `MAX_ROW_BYTES`.

    Raises:
        DataError: without file and row.
    """
    if size > MAX_ROW_BYTES:
        raise DataError(f"the row has {size} bytes; at most {MAX_ROW_BYTES} (64 MiB) are read")


def plain(value: Any, what: str) -> Any:
    """Return a value as plain JSON data: the very object where nothing is to be changed, else a copy.

    Numbers of numpy and torch become numbers, their arrays lists; tuples become lists; dates and times ISO 8601 text;
    durations seconds; decimals text, exactly as they are written, or whole numbers where they have no places; UUIDs,
    paths and enumerations what they stand for. Keys that are whole numbers become text.

    Args:
        what: how messages call the value, such as "metadata"; keys are added to it.

    Raises:
        DataError: something in it is no data, such as a set or a function; says where. Without file and row.
    """
    return value if _is_plain(value, 0) else _plain(value, what, 0)


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value is plain data as it is, which the rows of files are: no copy, and no name of a place is made."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if depth > MAX_DEPTH:
        return False
    if kind is dict:
        for key, inner in value.items():
            if type(key) is not str or not (type(inner) in _PLAIN or _is_plain(inner, depth + 1)):
                return False
        return True
    if kind is list:
        return _PLAIN.issuperset(map(type, value)) or all(_is_plain(inner, depth + 1) for inner in value)
    return False


def _plain(value: Any, what: str, depth: int) -> Any:
    if type(value) in _PLAIN:
        return value
    if depth > MAX_DEPTH:
        raise DataError(f"{what} is {_TOO_DEEP}")
    if isinstance(value, dict):
        return _plain_object(value, what, depth)
    if isinstance(value, (list, tuple)):
        if type(value) is list and _PLAIN.issuperset(map(type, value)):
            return value
        items = [_plain(inner, f"{what}[{number}]", depth + 1) for number, inner in enumerate(value)]
        return value if type(value) is list and all(map(is_, value, items)) else items
    if isinstance(value, Enum):
        return _plain(value.value, what, depth + 1)
    for kind, make in _MADE:
        if isinstance(value, kind):
            return make(value)
    if callable(unpacked := getattr(value, "tolist", None)):  # numpy's and torch's scalars, arrays and tensors
        return _plain(unpacked(), what, depth + 1)
    raise DataError(
        f"{what} is {type(value).__name__!r}, which JSON has no form for; expected numbers, text, true, false, null, lists "
        "and objects of them"
    )


def _plain_object(value: dict[Any, Any], what: str, depth: int) -> dict[str, Any]:
    made = {_key(key, what): _plain(inner, f"{what}.{key}", depth + 1) for key, inner in value.items()}
    if len(made) < len(value):
        raise DataError(f"{what} has two keys that are the same text")
    same = type(value) is dict and all(map(is_, value, made)) and all(map(is_, value.values(), made.values()))
    return value if same else made


def _key(key: Any, what: str) -> str:
    if isinstance(key, str):
        return key if type(key) is str else str.__str__(key)
    if callable(unpacked := getattr(key, "item", None)):
        key = unpacked()
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    raise DataError(f"{what} has the key {key!r}; expected text")


def _decimal(value: Decimal) -> int | str:
    exponent = value.as_tuple().exponent
    return int(value) if exponent == 0 else str(value)


_MADE: tuple[tuple[type | tuple[type, ...], Any], ...] = (
    (str, str.__str__),
    (int, int),
    (float, float),  # numpy's float64 is one
    (Decimal, _decimal),
    ((date, time), lambda value: value.isoformat()),  # datetime is a date
    (timedelta, lambda value: value.total_seconds()),
    ((UUID, PurePath), str),
)


def _require_depth(value: Any, most: int) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > most:
            raise DataError(_TOO_DEEP)
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
