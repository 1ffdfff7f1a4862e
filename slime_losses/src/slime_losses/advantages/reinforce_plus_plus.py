"""`--advantage-estimator reinforce_plus_plus`: the whole batch as baseline (REINFORCE++, arXiv 2501.03262)."""

from __future__ import annotations

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_core.contracts.loss import reads
from slime_losses.advantages import tokens
from slime_losses.arguments import LossRunArguments


@reads(tokens.kl_penalty_reads)
def reinforce_plus_plus(args: LossRunArguments, inputs: AdvantageInputs) -> AdvantageOutputs:
    """Sum the rewards that follow each token, discounted by `--gamma`, and whiten the sums over all trained tokens of the
    rollout, with or without `--normalize-advantages`.

    A token's reward is -`--kl-coef` · KL; the last trained token also has the sample's reward, which is not normalised.
    """
    owner = tokens.trained(inputs, inputs.sample_index)
    returns = tokens.discounted_sums(tokens.token_rewards(args, inputs, owner), owner, args.gamma)
    return tokens.outputs(args, inputs, returns, whiten=True)
