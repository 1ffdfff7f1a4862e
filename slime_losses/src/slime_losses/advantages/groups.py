"""Rewards compared with the other samples of their prompt. Used by the group-based estimators and by reward shaping
that takes the place of their normalisation.

All functions take S rewards and the group of each (int64, 0 … G-1) and return S numbers. The group's lowest reward is
subtracted first, so that equal rewards give exactly 0 and not a rounding error that a division would blow up.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slime_core.contracts.advantage import AdvantageInputs


def centred(rewards: Tensor, group_index: Tensor) -> Tensor:
    """r - mean(group)."""
    groups = int(group_index.max()) + 1 if len(group_index) else 0
    lowest = rewards.new_full((groups,), float("inf")).scatter_reduce(0, group_index, rewards, "amin")
    above = rewards - lowest[group_index]
    return above - _group_sum(above, group_index) / _group_size(rewards, group_index)


def standardised(rewards: Tensor, group_index: Tensor) -> Tensor:
    """(r - mean(group)) / (std(group) + 1e-6), std with n - 1 in its denominator; 0 in a group of one."""
    deviation = centred(rewards, group_index)
    freedom = (_group_size(rewards, group_index) - 1).clamp(min=1)
    return deviation / ((_group_sum(deviation.square(), group_index) / freedom).sqrt() + 1e-6)


def leave_one_out(rewards: Tensor, group_index: Tensor) -> Tensor:
    """r - mean(the others of the group) = (r - mean(group)) · n / (n - 1); 0 in a group of one."""
    size = _group_size(rewards, group_index)
    return centred(rewards, group_index) * size / (size - 1).clamp(min=1)


_BY_ESTIMATOR = {
    "grpo": standardised,
    "gspo": standardised,
    "cispo": standardised,
    "dr_grpo": centred,
    "rloo": leave_one_out,
    "reinforce_plus_plus_baseline": centred,
}


def normalised(estimator: str, args: Any, rewards: Tensor, group_index: Tensor) -> Tensor:
    """What the estimator of that name makes of rewards, `--disable-rewards-normalization` and
    `--disable-grpo-std-normalization` taken into account. Estimators without a group baseline leave them as they are."""
    rule = _BY_ESTIMATOR.get(estimator)
    if rule is None or args.disable_rewards_normalization:
        return rewards
    if rule is standardised and args.disable_grpo_std_normalization:
        rule = centred
    return rule(rewards, group_index)


def group_advantages(estimator: str, args: Any, inputs: AdvantageInputs) -> Tensor:
    """(S,) normalised rewards of a rollout; as they are if they are final."""
    if inputs.rewards_are_final:
        return inputs.rewards
    return normalised(estimator, args, inputs.rewards, inputs.group_index)


def _group_sum(values: Tensor, group_index: Tensor) -> Tensor:
    groups = int(group_index.max()) + 1 if len(group_index) else 0
    return values.new_zeros(groups).index_add(0, group_index, values)[group_index]


def _group_size(values: Tensor, group_index: Tensor) -> Tensor:
    return _group_sum(values.new_ones(len(values)), group_index)
