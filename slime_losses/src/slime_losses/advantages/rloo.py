"""`--advantage-estimator rloo`: the other samples of the group as baseline."""

from __future__ import annotations

from torch import Tensor

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_losses.advantages import tokens
from slime_losses.advantages.groups import leave_one_out
from slime_losses.arguments import AdvantageArguments


def normalised_rewards(
    args: AdvantageArguments, rewards: Tensor, group_index: Tensor, trajectory_index: Tensor | None = None
) -> Tensor:
    """Return r - mean of the group's other rewards (RLOO, arXiv 2402.14740), and r under
    `--disable-rewards-normalization`."""
    return rewards if args.disable_rewards_normalization else leave_one_out(rewards, group_index, trajectory_index)


def rloo(args: AdvantageArguments, inputs: AdvantageInputs) -> AdvantageOutputs:
    """Give every token of a sample the sample's `normalised_rewards`, or its final reward."""
    rewards = inputs.rewards
    if not inputs.rewards_are_final:
        rewards = normalised_rewards(args, rewards, inputs.group_index, inputs.trajectory_index)
    return tokens.of_samples(args, inputs, rewards)
