"""Compares rewards with those of the other samples of their prompt.

All functions take S rewards and the group of each (int64, 0 … G-1) and return S numbers. The group's lowest reward is
subtracted first, so that equal rewards give exactly 0 and not a rounding error that a division would blow up.
"""

from __future__ import annotations

from torch import Tensor


def centred(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Return r - mean(group)."""
    groups = int(group_index.max()) + 1 if len(group_index) else 0
    lowest = rewards.new_full((groups,), float("inf")).scatter_reduce(0, group_index, rewards, "amin")
    above = rewards - lowest[group_index]
    return above - _group_sum(above, group_index) / _group_size(rewards, group_index)


def standardised(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Return (r - mean(group)) / (std(group) + 1e-6), std with n - 1 in its denominator; 0 in a group of one."""
    deviation = centred(rewards, group_index)
    freedom = (_group_size(rewards, group_index) - 1).clamp(min=1)
    return deviation / ((_group_sum(deviation.square(), group_index) / freedom).sqrt() + 1e-6)


def leave_one_out(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Return r - mean(the others of the group) = (r - mean(group)) · n / (n - 1); 0 in a group of one."""
    size = _group_size(rewards, group_index)
    return centred(rewards, group_index) * size / (size - 1).clamp(min=1)


def _group_sum(values: Tensor, group_index: Tensor) -> Tensor:
    """(S,): for every sample the sum of `values` over its group."""
    groups = int(group_index.max()) + 1 if len(group_index) else 0
    return values.new_zeros(groups).index_add(0, group_index, values)[group_index]


def _group_size(values: Tensor, group_index: Tensor) -> Tensor:
    """(S,): for every sample the number of samples in its group."""
    return _group_sum(values.new_ones(len(values)), group_index)
