"""The fields of a sample as they are stored: what each may be, and images as text. Called by `Sample.to_dict`, `Sample.from_dict` and, since what
hooks set will be stored, `slime_core.plain_fields`. Pure."""

from __future__ import annotations

import copy
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Form:
    """What a field may be.

    Attributes:
        fits: whether a value is that.
        words: for messages.
    """

    fits: Callable[[Any], bool]
    words: str


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


STORED: dict[str, Form] = {
    **dict.fromkeys(("group_index", "index", "rollout_id"), Form(_is(int, None), "a whole number or None")),
    "prompt": Form(_is(str, list), "text or a list of messages"),
    "images": Form(_are(str), "a list of texts"),
    "tokens": Form(_are(int), "a list of whole numbers"),
    "response": Form(_is(str), "text"),
    "response_length": Form(_is(int), "a whole number"),
    "loss_mask": Form(_or_none(_are(int)), "a list of whole numbers or None"),
    "rollout_log_probs": Form(_or_none(_are(int, float)), "a list of numbers or None"),
    "weight_versions": Form(_are(int, str), "a list of ints or strings"),
    "metadata": Form(_is(dict), "an object"),
    "remove_sample": Form(_is(bool), "True or False"),
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
