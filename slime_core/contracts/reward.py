"""How good a response is, and what becomes of rewards before advantages are taken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from slime_core.contracts.kind import FailurePolicy, Kind
from slime_core.contracts.results import is_finite_number, shown
from slime_core.plain import plain
from slime_core.sample import Sample, plain_reward

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments

BOXED = "boxed_"
"""`boxed_NAME` is the reward NAME, given what the last `\\boxed{…}` of a response holds in place of the response."""


async def reward(args: RunArguments, sample: Sample) -> float | dict[str, Any]:
    """Score one finished sample. May also be a plain function."""
    raise NotImplementedError


async def group_reward(args: RunArguments, samples: list[Sample]) -> list[float]:
    """Score all samples of a group at once: one reward for each, in their order. May also be a plain function."""
    raise NotImplementedError


def reward_post_process(args: RunArguments, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """(raw rewards, rewards to train with), one of each for every sample of a rollout, in their order. The former are logged as
    `rollout/raw_reward`; the latter take the place of the estimator's own normalisation of rewards. Called once for a rollout, in the
    process that makes it."""
    raise NotImplementedError


def _check_reward(result: Any, args: tuple[Any, ...]) -> str | None:
    items = args[1] if len(args) > 1 else None
    if isinstance(items, list):
        if not isinstance(result, (list, tuple)):
            return f"{shown(result)}; expected a list of {len(items)} rewards, one for each sample"
        if len(result) != len(items):
            return f"{len(result)} rewards for {len(items)} samples; expected one for each, in their order"
        return next((problem for value in result if (problem := _check_one(value))), None)
    return _check_one(result)


def _check_one(value: Any) -> str | None:
    if isinstance(value, dict):
        return None if value else "an empty dict; expected a number or a dict of numbers"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{shown(value)}; expected a number or a dict of numbers"
    return None if math.isfinite(value) else f"{value}; expected a finite number"


def check_reward_key(rewards: Any, key: str | None) -> str | None:
    """What is wrong with rewards of which those that are dicts shall have a number under `key`; None: nothing. Without a key
    nothing is asked."""
    for reward in rewards if isinstance(rewards, (list, tuple)) else (rewards,):
        if not isinstance(reward, dict) or key is None:
            continue
        if key not in reward:
            return f"a dict without the key {key!r} of --reward-key or --eval-reward-key; it has {', '.join(map(repr, reward))}"
        if not is_finite_number(reward[key]):
            return f"{shown(reward[key])} under {key!r}; expected a finite number"
    return None


def _plain_pair(result: Any) -> Any:
    """A pair of lists, arrays or tensors of rewards as a pair of lists of numbers."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        return result
    return tuple(plain(part, what) for part, what in zip(result, ("the raw rewards", "the rewards"), strict=True))


def _check_post_processed(result: Any, args: tuple[Any, ...]) -> str | None:
    count = len(args[1])
    if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(part, (list, tuple)) for part in result):
        return f"{shown(result)}; expected a pair of lists: raw rewards, and rewards to train with"
    for which, rewards in zip(("raw rewards", "rewards to train with"), result, strict=True):
        if len(rewards) != count:
            return f"{len(rewards)} {which} for {count} samples; expected one for each, in their order"
        if wrong := next((value for value in rewards if not is_finite_number(value)), None):
            return f"{shown(wrong)} among the {which}; expected finite numbers"
    return None


KINDS = (
    Kind(
        "reward",
        "slime_rewards",
        reward,
        ("--rm-type", "--custom-rm-path"),
        alternative=group_reward,
        prefixes=(BOXED,),
        normalise=plain_reward,
        check=_check_reward,
        policy=FailurePolicy(timeout=120.0, retries=2, on_failure="drop", abort_after=20),
    ),
    Kind(
        "reward_post_process",
        "slime_reward_post_processes",
        reward_post_process,
        ("--custom-reward-post-process-path",),
        normalise=_plain_pair,
        check=_check_post_processed,
    ),
)
