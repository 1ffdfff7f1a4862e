"""What components may return, checked after each call. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from slime_core.loss import LossOutputs
from slime_core.masks import MaskedTokens
from slime_core.sample import RolloutOutput, Sample


def result_problem(kind: str, result: Any, args: tuple[Any, ...]) -> str | None:
    """What is wrong with `result`, as "X; expected Y"; None when it fits.

    Args:
        kind: of the component.
        args: what it was called with.
    """
    check = _CHECKS.get(kind)
    return check(result, args) if check else None


def _reward(result: Any, args: tuple[Any, ...]) -> str | None:
    items = args[1] if len(args) > 1 else None
    if isinstance(items, list):
        if not isinstance(result, (list, tuple)):
            return f"{_shown(result)}; expected a list of {len(items)} rewards, one for each sample"
        if len(result) != len(items):
            return f"{len(result)} rewards for {len(items)} samples; expected one for each, in their order"
        return next((problem for value in result if (problem := _one_reward(value))), None)
    return _one_reward(result)


def _one_reward(value: Any) -> str | None:
    if isinstance(value, dict):
        return None if value else "an empty dict; expected a number or a dict of numbers"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{_shown(value)}; expected a number or a dict of numbers"
    return None if math.isfinite(value) else f"{value}; expected a finite number"


def _dynamic_filter(result: Any, args: tuple[Any, ...]) -> str | None:
    keep = result[0] if isinstance(result, tuple) and len(result) == 2 else getattr(result, "keep", result)
    # A truth value of any library will do, such as the 0-d tensor of slime's own filters.
    if isinstance(keep, bool) or (hasattr(keep, "dtype") and getattr(keep, "size", None) is not None):
        return None
    return f"{_shown(result)}; expected True or False, or a pair of that and a reason"


def _buffer_pop(result: Any, args: tuple[Any, ...]) -> str | None:
    if not isinstance(result, list) or not all(isinstance(group, list) for group in result):
        return f"{_shown(result)}; expected a list of groups"
    if len(result) > args[3]:
        return f"{len(result)} groups; expected at most {args[3]}"
    return None


def _generate(result: Any, args: tuple[Any, ...]) -> str | None:
    samples = result if isinstance(result, list) else [result]
    if samples and all(isinstance(sample, Sample) for sample in samples):
        return None
    return f"{_shown(result)}; expected a Sample or a list of at least one"


def _instance(kind: type) -> Callable[[Any, tuple[Any, ...]], str | None]:
    def check(result: Any, args: tuple[Any, ...]) -> str | None:
        return None if isinstance(result, kind) else f"{_shown(result)}; expected a {kind.__name__}"

    return check


def _nothing(result: Any, args: tuple[Any, ...]) -> str | None:
    return None if result is None else f"{_shown(result)}; expected None: it sets remove_sample on the samples"


_CHECKS: dict[str, Callable[[Any, tuple[Any, ...]], str | None]] = {
    "buffer_pop": _buffer_pop,
    "converter": _instance(dict),
    "dynamic_filter": _dynamic_filter,
    "generator": _generate,
    "loss": _instance(LossOutputs),
    "loss_mask": _instance(MaskedTokens),
    "reward": _reward,
    "rollout": _instance(RolloutOutput),
    "sample_filter": _nothing,
}


def _shown(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({type(value).__name__})"
