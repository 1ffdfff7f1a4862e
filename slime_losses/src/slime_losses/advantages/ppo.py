"""`--advantage-estimator ppo`: generalised advantage estimation with a critic."""

from __future__ import annotations

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_core.contracts.loss import reads
from slime_core.errors import ArgumentError
from slime_losses.advantages import tokens
from slime_losses.arguments import LossRunArguments


@reads(lambda args: {"values"} | tokens.kl_penalty_reads(args))
def ppo(args: LossRunArguments, inputs: AdvantageInputs) -> AdvantageOutputs:
    """Return A_t = Σ (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} - V_t (GAE, arXiv 1506.02438, eq. 16), V being 0 after the
    end.

    r_t is -`--kl-coef` · KL and, at the last trained token, the sample's reward (not normalised); γ is `--gamma`, λ is
    `--lambd`. The critic's returns are A + V, before any whitening.

    Raises:
        ArgumentError: there are no values.
    """
    if inputs.values is None:
        raise ArgumentError("The advantage estimator ppo needs the values of a critic; none were computed.")
    owner, values = tokens.trained(inputs, inputs.sample_index), tokens.trained(inputs, inputs.values)
    rewards = tokens.token_rewards(args, inputs, owner)
    surprises = rewards + args.gamma * tokens.following(values, owner) - values
    advantages = tokens.discounted_sums(surprises, owner, args.gamma * args.lambd)
    return tokens.outputs(args, inputs, advantages, returns=advantages + values)
