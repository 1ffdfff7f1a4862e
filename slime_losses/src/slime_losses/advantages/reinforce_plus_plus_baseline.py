"""`--advantage-estimator reinforce_plus_plus_baseline`: the group, and then the whole batch as baseline (REINFORCE++,
arXiv 2501.03262)."""

from __future__ import annotations

from torch import Tensor

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_core.contracts.loss import reads
from slime_losses.advantages import tokens
from slime_losses.advantages.groups import centred
from slime_losses.arguments import AdvantageArguments, LossRunArguments


def normalised_rewards(
    args: AdvantageArguments, rewards: Tensor, group_index: Tensor, trajectory_index: Tensor | None = None
) -> Tensor:
    """Return r - mean over the group, and r under `--disable-rewards-normalization`."""
    return rewards if args.disable_rewards_normalization else centred(rewards, group_index, trajectory_index)


@reads(tokens.kl_penalty_reads)
def reinforce_plus_plus_baseline(args: LossRunArguments, inputs: AdvantageInputs) -> AdvantageOutputs:
    """Take `--kl-coef` times each token's KL off the sample's `normalised_rewards` (or its final reward), and whiten the
    differences over all trained tokens of the rollout, with or without `--normalize-advantages`."""
    rewards = inputs.rewards
    if not inputs.rewards_are_final:
        rewards = normalised_rewards(args, rewards, inputs.group_index, inputs.trajectory_index)
    advantages = tokens.trained(inputs, rewards.index_select(0, inputs.sample_index)) - tokens.kl_penalty(args, inputs)
    return tokens.outputs(args, inputs, advantages, whiten=True)
