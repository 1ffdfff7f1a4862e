"""`--advantage-estimator dr_grpo`: GRPO without the division that favours groups of little spread."""

from __future__ import annotations

from torch import Tensor

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_losses.advantages import tokens
from slime_losses.advantages.groups import centred
from slime_losses.arguments import AdvantageArguments


def normalised_rewards(
    args: AdvantageArguments, rewards: Tensor, group_index: Tensor, trajectory_index: Tensor | None = None
) -> Tensor:
    """Return r - mean over the group (Dr. GRPO, arXiv 2503.20783), and r under `--disable-rewards-normalization`."""
    return rewards if args.disable_rewards_normalization else centred(rewards, group_index, trajectory_index)


def dr_grpo(args: AdvantageArguments, inputs: AdvantageInputs) -> AdvantageOutputs:
    """Give every token of a sample the sample's `normalised_rewards`, or its final reward. The paper's loss is
    `--constant-length-loss`."""
    rewards = inputs.rewards
    if not inputs.rewards_are_final:
        rewards = normalised_rewards(args, rewards, inputs.group_index, inputs.trajectory_index)
    return tokens.of_samples(args, inputs, rewards)
