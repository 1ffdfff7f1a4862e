"""`--advantage-estimator reinforce_plus_plus` and `reinforce_plus_plus_baseline` (REINFORCE++, arXiv 2501.03262): the
whole batch as baseline. Both whiten, with or without `--normalize-advantages`."""

from __future__ import annotations

from typing import Any

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_core.contracts.loss import reads
from slime_losses.advantages import tokens
from slime_losses.advantages.groups import group_advantages


def kl_reads(args: Any) -> set[str]:
    """What a KL penalty in the rewards needs."""
    return {"old_log_probs", "ref_log_probs"} if args.kl_coef else set()


@reads(kl_reads)
def reinforce_plus_plus(args: Any, inputs: AdvantageInputs) -> AdvantageOutputs:
    """Discounted sums (`--gamma`) of token rewards, -`--kl-coef` · KL and the sample's reward at its last trained token;
    then whitened over all trained tokens of the rollout."""
    owner = tokens.trained(inputs, inputs.sample_index)
    returns = tokens.discounted_sums(tokens.token_rewards(args, inputs, owner), owner, args.gamma)
    return tokens.outputs(args, inputs, returns, whiten=True)


@reads(kl_reads)
def reinforce_plus_plus_baseline(args: Any, inputs: AdvantageInputs) -> AdvantageOutputs:
    """r - mean over the group, less `--kl-coef` times the token's KL; then whitened over all trained tokens."""
    centred = group_advantages("reinforce_plus_plus_baseline", args, inputs)[inputs.sample_index]
    advantages = tokens.trained(inputs, centred) - tokens.kl_penalty(args, inputs)
    return tokens.outputs(args, inputs, advantages, whiten=True)
