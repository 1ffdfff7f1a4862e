"""Compares rewards with those of the other trajectories of their prompt.

All functions take S rewards, the group of each (int64, 0 … G-1) and its trajectory (int64, 0 … R-1; None: every sample is one
of its own), and return S numbers. A trajectory counts once, however many segments it has: its reward is the mean of theirs,
and where they differ, each is compared by its own. The group's lowest reward is subtracted first, so that equal rewards give
exactly 0 and not a rounding error that a division would blow up.
"""

from __future__ import annotations

import torch
from torch import Tensor


def centred(rewards: Tensor, group_index: Tensor, trajectory_index: Tensor | None = None) -> Tensor:
    """Return r - mean(group)."""
    groups = _Groups(group_index, trajectory_index)
    above = groups.above_lowest(rewards)
    return above - groups.mean(groups.of_trajectories(above))[group_index]


def standardised(rewards: Tensor, group_index: Tensor, trajectory_index: Tensor | None = None) -> Tensor:
    """Return (r - mean(group)) / (std(group) + 1e-6), std with n - 1 in its denominator for n trajectories; 0 in a group of one
    sample."""
    groups = _Groups(group_index, trajectory_index)
    deviation = centred(rewards, group_index, trajectory_index)
    squares = groups.sum(groups.of_trajectories(deviation.square()))
    return deviation / ((squares / (groups.size - 1).clamp(min=1)).sqrt() + 1e-6)[group_index]


def leave_one_out(rewards: Tensor, group_index: Tensor, trajectory_index: Tensor | None = None) -> Tensor:
    """Return r - mean(the other trajectories of the group) = (r - m) + (m - mean(group)) · n / (n - 1), m being the mean of its
    own trajectory; 0 in a group of one sample."""
    groups = _Groups(group_index, trajectory_index)
    above = groups.above_lowest(rewards)
    own = groups.of_trajectories(above)
    n = groups.size[groups.owner]
    better = (own - groups.mean(own)[groups.owner]) * n / (n - 1).clamp(min=1)
    return (above - own[groups.trajectory_index]) + better[groups.trajectory_index]


class _Groups:
    """Sums over groups that count trajectories.

    Attributes:
        group_index, trajectory_index: (S,) of each sample.
        owner: (R,) the group of each trajectory.
        size: (G,) the number of trajectories of each group.
    """

    def __init__(self, group_index: Tensor, trajectory_index: Tensor | None) -> None:
        if trajectory_index is None:
            trajectory_index = torch.arange(len(group_index))
        self.group_index, self.trajectory_index = group_index, trajectory_index
        segments = torch.bincount(trajectory_index)
        self.owner = torch.zeros_like(segments).scatter(0, trajectory_index, group_index)
        self.size = torch.bincount(self.owner)
        self._segments = segments

    def above_lowest(self, rewards: Tensor) -> Tensor:
        """(S,): each reward less the lowest of its group."""
        lowest = rewards.new_full((len(self.size),), float("inf")).scatter_reduce(0, self.group_index, rewards, "amin")
        return rewards - lowest[self.group_index]

    def of_trajectories(self, values: Tensor) -> Tensor:
        """(R,): for each trajectory the mean of its segments' values."""
        return values.new_zeros(len(self._segments)).index_add(0, self.trajectory_index, values) / self._segments

    def sum(self, values: Tensor) -> Tensor:
        """(G,): for each group the sum of its trajectories' values."""
        return values.new_zeros(len(self.size)).index_add(0, self.owner, values)

    def mean(self, values: Tensor) -> Tensor:
        """(G,): for each group the mean of its trajectories' values."""
        return self.sum(values) / self.size
