"""`--advantage-estimator grpo` (and `gspo`, `cispo`, whose losses differ and whose advantages do not)."""

from __future__ import annotations

from torch import Tensor

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_losses.advantages import tokens
from slime_losses.advantages.groups import centred, standardised
from slime_losses.arguments import AdvantageArguments


def normalised_rewards(
    args: AdvantageArguments, rewards: Tensor, group_index: Tensor, trajectory_index: Tensor | None = None
) -> Tensor:
    """Return (r - mean) / (std + 1e-6) over the group (DeepSeekMath, arXiv 2402.03300, §4.1.2); r - mean under
    `--disable-grpo-std-normalization`, and r under `--disable-rewards-normalization`."""
    if args.disable_rewards_normalization:
        return rewards
    if args.disable_grpo_std_normalization:
        return centred(rewards, group_index, trajectory_index)
    return standardised(rewards, group_index, trajectory_index)


def grpo(args: AdvantageArguments, inputs: AdvantageInputs) -> AdvantageOutputs:
    """Give every token of a sample the sample's `normalised_rewards`, or its final reward."""
    rewards = inputs.rewards
    if not inputs.rewards_are_final:
        rewards = normalised_rewards(args, rewards, inputs.group_index, inputs.trajectory_index)
    return tokens.of_samples(args, inputs, rewards)
