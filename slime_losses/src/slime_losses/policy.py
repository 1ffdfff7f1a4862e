"""`--loss-type policy_loss`: PPO's clipped surrogate, the loss of GRPO, DAPO, RLOO, REINFORCE++ and PPO itself."""

from __future__ import annotations

from torch import Tensor

from slime_core.contracts.loss import LossInputs, LossOutputs, needs_gradient_at_zero_advantage, reads
from slime_losses.arguments import LossRunArguments, PolicyArguments
from slime_losses.cispo import cispo_surrogate
from slime_losses.gspo import gspo_surrogate
from slime_losses.importance import ImportanceWeight
from slime_losses.objective import has_other_terms, policy_objective, policy_reads
from slime_losses.reducer import PgLossReducer
from slime_losses.surrogate import MakeSurrogate, Surrogate, clipped_surrogate


def ppo_surrogate(args: PolicyArguments, inputs: LossInputs, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
    """Return the clipped surrogate with one ratio for each token."""
    return clipped_surrogate(args, log_ratio, advantages)


_SURROGATES: dict[str, MakeSurrogate] = {"gspo": gspo_surrogate, "cispo": cispo_surrogate}


@reads(policy_reads)
@needs_gradient_at_zero_advantage(has_other_terms)
def policy_loss(
    args: LossRunArguments,
    inputs: LossInputs,
    importance_weight: ImportanceWeight | None = None,
    pg_loss_reducer: PgLossReducer | None = None,
) -> LossOutputs:
    """Return the clipped surrogate (`slime_losses.surrogate`) with the terms of `slime_losses.objective`.

    `--advantage-estimator gspo` or `cispo` puts their surrogate in the place of PPO's, as in slime.
    """
    surrogate = _SURROGATES.get(args.advantage_estimator, ppo_surrogate)
    return policy_objective(args, inputs, surrogate, importance_weight, pg_loss_reducer)
