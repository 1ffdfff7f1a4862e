"""What every sample and every rollout must keep to, and how a group gets its number: checked where a rollout function returns, so that everything
after it can rely on it. Called through `slime_core.sample`, by the workers of a run and by who makes samples. Pure, but for `number_groups`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from slime_core.errors import SampleError
from slime_core.token_arrays import column_of, num_tokens, trained
from slime_core.token_columns import COLUMNS

if TYPE_CHECKING:
    from slime_core.sample import Sample


def number_groups(groups: Sequence[list[Sample]]) -> None:
    """Give every sample of a rollout the number of its group in `group_index`, in place.

    A group has one identity: a number that its samples have is kept, and a group without any gets the next one that is free.

    Raises:
        SampleError: the samples of one group have different numbers, or two groups have the same; names them.
    """
    numbers: dict[int, Sample] = {}
    without: list[list[Sample]] = []
    for group in groups:
        own = {sample.group_index: sample for sample in group if sample.group_index is not None}
        if len(own) > 1:
            first, second, *_ = own.values()
            raise SampleError(
                f"The rollout returned a group whose samples disagree: {first.name} has the group_index {first.group_index}, "
                f"{second.name} has {second.group_index}; all samples of a group share one."
            )
        for number, sample in own.items():
            if number in numbers:
                raise SampleError(
                    f"The rollout returned two groups with the group_index {number}, those of {numbers[number].name} and of "
                    f"{sample.name}; every group of a rollout has a number of its own."
                )
            numbers[number] = sample
            for other in group:
                other.group_index = number
        if not own:
            without.append(group)
    for number, group in enumerate(without, start=max(numbers, default=-1) + 1):
        for sample in group:
            sample.group_index = number


def check_rollout(groups: Iterable[Sequence[Sample]], need_reward: bool, is_read: bool = True) -> None:
    """Raise `SampleError` naming sample and rule when a sample breaks an invariant.

    The rules: `rollout_id` is an int or None; no more response tokens than tokens, and a first token that nothing precedes is not trained; the
    loss mask, log-probs and weight versions, where present, have `response_length` entries; the mask holds 0 and 1 only; log-probs are
    finite and at most 0; images are bytes; a reward is present, and a number finite, unless the sample was aborted (checked when `need_reward`).

    Args:
        is_read: a model reads the samples, for their loss; else no token of theirs is trained, and each may be the first.
    """
    for group in groups:
        for sample in group:
            if problem := _broken_rule(sample, need_reward, is_read):
                raise SampleError(f"The rollout returned a bad {sample.name}: {problem}")


def misaligned(sample: Sample) -> str | None:
    """Return which of the rules of `check_rollout` on lengths a sample breaks, as a sentence; None where it keeps all."""
    n, r = num_tokens(sample), sample.response_length
    if isinstance(sample.rollout_id, bool) or not isinstance(sample.rollout_id, int | None):
        return f"its rollout_id is {sample.rollout_id!r}; expected an int, or None for that of its index."
    if not 0 <= r <= n:
        return f"response_length is {r}, but there are {n} tokens; it must lie between 0 and the number of tokens."
    for name in ("loss_mask", "rollout_log_probs", "weight_versions"):
        values = vars(sample)[name]
        if (values or (name == "loss_mask" and values is not None)) and len(values) != r:
            return f"{name} has {len(values)} entries, but response_length is {r}; they must be equal."
    return None


def _broken_rule(sample: Sample, need_reward: bool, is_read: bool) -> str | None:
    if problem := misaligned(sample):
        return problem
    n, r = num_tokens(sample), sample.response_length
    if wrong := _wrong_value(sample):
        return wrong
    if is_read and r == n and n > 0 and trained(sample)[0]:
        return "its first token is trained, but nothing precedes it to predict it from; mask it or add a prompt."
    if any(type(image) is not bytes for image in sample.images):
        return "its images are not all bytes; expected encoded images, such as the content of a PNG file."
    if need_reward and sample.status != "aborted":
        if sample.reward is None:
            return "it has no reward; the reward function must set one for every sample that was not aborted."
        if isinstance(sample.reward, (int, float)) and not math.isfinite(sample.reward):
            return f"its reward is {sample.reward}; rewards must be finite."
    return None


def _wrong_value(sample: Sample) -> str | None:
    """What a token's value is and must not be, as a sentence; None where all are right."""
    for name, expected in _EXPECTED.items():
        try:
            column = column_of(sample, name)
        except (TypeError, ValueError, OverflowError):
            return f"{name} holds {_not_taken(name, vars(sample)[name])!r}; {expected}"
        if column is None or not len(column):
            continue
        values = column.array
        if name == "loss_mask" and values.max() > 1:
            return f"{name} holds {sorted(set(values[values > 1].tolist()))[:5]}; {expected}"
        if name == "rollout_log_probs" and not (values.max() <= _MOST and values.min() > -math.inf):  # so is NaN
            return f"{name} holds {values[~((values <= _MOST) & (values > -math.inf))][0].item()}; {expected}"
    return None


_MOST = 1e-6
"""What a log-prob may be at most: 0, and a rounding error."""
_EXPECTED = {
    "tokens": "token ids are whole numbers.",
    "loss_mask": "only 0 and 1 are allowed.",
    "rollout_log_probs": "log-probabilities are finite and not above 0.",
    "weight_versions": "weight versions are ints or strings.",
}
"""What the values of tokens must be, for messages."""


def _not_taken(name: str, values: Any) -> Any:
    """The first values that no column takes; all of them where there is none."""
    found = []
    for value in values if isinstance(values, (list, tuple)) else ():
        try:
            COLUMNS[name]([value])
        except (TypeError, ValueError, OverflowError):
            found.append(value)
    return found[:5] or values


def reward_of(sample: Sample, key: str | None) -> float:
    """The number that is trained on: the reward or, of a reward that is a dict, its `key`.

    Raises:
        SampleError: there is none, or it is not finite; says what the sample has.
    """
    reward = sample.reward
    if isinstance(reward, dict):
        if key is None or key not in reward:
            raise SampleError(
                f"The reward of {sample.name} is a dict with the keys {', '.join(map(str, reward))}; "
                f"name one of them with --reward-key (given: {key})."
            )
        reward = reward[key]
    if isinstance(reward, bool) or not isinstance(reward, (int, float)) or not math.isfinite(reward):
        raise SampleError(
            f"The reward of {sample.name} is {reward!r}; expected a number that is finite. Choose one with --rm-type."
        )
    return float(reward)
