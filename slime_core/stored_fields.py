"""The fields of a sample as they are stored: what each may be, and images as text. Called by `Sample.to_dict` and `Sample.from_dict`. Pure."""

from __future__ import annotations

import copy
from base64 import b64decode, b64encode
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from slime_core.errors import SampleError
from slime_core.token_columns import TokenColumn


def listed(values: Any) -> Any:
    """The values of tokens in a list of their own, or what else a hook has set."""
    return list(values) if isinstance(values, list | TokenColumn) else copy.deepcopy(values)


def _are(*kinds: type) -> Callable[[Any], bool]:
    """Whether a value is a list of such values, or a column."""
    return lambda value: type(value) is TokenColumn or (type(value) is list and set(kinds).issuperset(map(type, value)))


def _is(*kinds: type | None) -> Callable[[Any], bool]:
    """Whether a value is of one of these types, or None where that is among them."""
    return lambda value: type(value) in kinds or (value is None and None in kinds)


STORED: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("group_index", "index", "rollout_id"), _is(int, None)),
    "prompt": _is(str, list),
    "images": _are(str),
    "tokens": _are(int),
    "response": _is(str),
    "response_length": _is(int),
    "loss_mask": lambda value: value is None or _are(int)(value),
    "rollout_log_probs": lambda value: value is None or _are(int, float)(value),
    "weight_versions": _are(int, str),
    "metadata": _is(dict),
    "remove_sample": _is(bool),
}
"""What the fields of a stored sample are; the others may be anything."""


@lru_cache(maxsize=8)
def as_text(image: bytes) -> str:
    """Return an image as base64. A few are remembered, since the samples of a group have the same ones."""
    return b64encode(image).decode()


@lru_cache(maxsize=8)
def as_bytes(text: str) -> bytes:
    """Return the bytes of a stored image: the very object for all samples of a group."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise SampleError(f"A stored sample has an image that is no base64: {text[:60]!r}.") from None
