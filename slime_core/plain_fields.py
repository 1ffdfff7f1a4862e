"""The fields of a sample that hooks set, as plain JSON data. Called by `Sample.make_plain`. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from slime_core.errors import DataError
from slime_core.plain import plain


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
    return [kind(value) for value in values]


MADE_PLAIN: dict[str, Callable[[Any, str], Any]] = {
    "reward": plain_reward,
    "loss_mask": partial(_plain_numbers, kind=int),
    "rollout_log_probs": partial(_plain_numbers, kind=float),
}
SET_BY_HOOKS = (
    *(
        "rollout_id",
        "prompt",
        "tokens",
        "response_length",
        "label",
        "reward",
        "loss_mask",
        "rollout_log_probs",
        "weight_versions",
    ),
    "metadata",
)
"""The fields of a sample that hooks set, and what makes plain data of those among them that `slime_core.plain.plain` does not suffice for."""
