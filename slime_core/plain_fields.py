"""The fields of a sample that hooks set, as plain JSON data. Called by `Sample.make_plain`. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from slime_core.errors import DataError
from slime_core.plain import plain
from slime_core.stored_fields import STORED
from slime_core.token_columns import COLUMNS


def plain_reward(reward: Any, what: str = "the reward") -> Any:
    """Return a reward, or a list of them, as plain JSON data in which truth values are numbers; the very object where nothing is
    to be changed.

    Raises:
        DataError: something in it is no data.
    """
    reward = plain(reward, what)
    if isinstance(reward, bool):
        return float(reward)
    if isinstance(reward, dict) and any(isinstance(value, bool) for value in reward.values()):
        return {key: float(value) if isinstance(value, bool) else value for key, value in reward.items()}
    if isinstance(reward, list) and any(isinstance(value, (bool, dict)) for value in reward):
        return [plain_reward(value, what) for value in reward]
    return reward


def _plain_numbers(values: Any, what: str, kind: type[int] | type[float]) -> Any:
    """Return a list of numbers as plain numbers of one kind, or None as it is."""
    values = plain(values, what)
    if values is None or (isinstance(values, list) and {kind}.issuperset(map(type, values))):
        return values
    if not isinstance(values, list):
        raise DataError(f"{what} is {type(values).__name__!r}, expected a list of numbers")
    for position, value in enumerate(values):
        if not isinstance(value, (int, float)) or (kind is int and value not in (0, 1)):
            raise DataError(f"{what}[{position}] is {value!r}, expected {'0 or 1' if kind is int else 'a number'}")
    try:
        return [kind(value) for value in values]
    except OverflowError as error:
        raise DataError(f"{what} cannot be kept: {error}") from None


def _plain_list(values: Any, what: str) -> Any:
    """Return a list as plain data; its values are looked at where a rollout ends."""
    values = plain(values, what)
    if not isinstance(values, list):
        raise DataError(f"{what} is {_shown(values)}, expected {STORED[what].words}")
    return values


def _plain_flag(value: Any, what: str) -> Any:
    value = plain(value, what)
    return bool(value) if isinstance(value, (int, float)) and value in (0, 1) else value


def _images(images: Any, what: str) -> list[Any]:
    """Return images in a list; each is looked at where a rollout ends."""
    if not isinstance(images, (list, tuple)):
        raise DataError(f"{what} is {_shown(images)}, expected a list of bytes")
    return images if type(images) is list else list(images)


def _shown(value: Any) -> str:
    return repr(str(value)[:60]) if isinstance(value, str) else str(value)[:60]


def plain_field(value: Any, name: str) -> Any:
    """Return what a hook has set as this field of a sample as plain data; the very object where nothing is to be changed.

    Raises:
        DataError: it is no data, or of a type that the field does not have, so that it could be stored and not be read again.
    """
    made = _MADE.get(name, plain)(value, name)
    if name in _LOOKED_AT and not STORED[name].fits(made):
        raise DataError(f"{name} is {_shown(made)}, expected {STORED[name].words}")
    return made


_MADE: dict[str, Callable[[Any, str], Any]] = {
    "reward": plain_reward,
    "tokens": _plain_list,
    "loss_mask": partial(_plain_numbers, kind=int),
    "rollout_log_probs": partial(_plain_numbers, kind=float),
    "weight_versions": lambda values, what: [] if values is None else _plain_list(values, what),
    "remove_sample": _plain_flag,
    "images": _images,
}
"""What makes plain data of those fields that `slime_core.plain.plain` does not suffice for."""
SET_BY_HOOKS = (
    *("group_index", "index", "rollout_id", "prompt", "images", "tokens", "response", "response_length"),
    *("label", "reward", "loss_mask", "rollout_log_probs", "weight_versions", "metadata", "remove_sample"),
)
"""The fields of a sample that hooks set; the status, which is no data, is looked at by `Sample.make_plain`."""
_LOOKED_AT = STORED.keys() - COLUMNS.keys() - {"images"}
