"""`--loss-type gspo`: one ratio for a whole sequence (GSPO, arXiv 2507.18071)."""

from __future__ import annotations

from torch import Tensor

from slime_core.contracts.loss import LossInputs, LossOutputs, needs_gradient_at_zero_advantage, reads
from slime_losses.arguments import LossRunArguments, PolicyArguments
from slime_losses.importance import ImportanceWeight
from slime_losses.objective import has_other_terms, policy_objective, policy_reads
from slime_losses.reducer import PgLossReducer
from slime_losses.sequences import sequence_mean
from slime_losses.surrogate import Surrogate, clipped_surrogate


def gspo_surrogate(args: PolicyArguments, inputs: LossInputs, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
    """Return the clipped surrogate of the sequence ratio s = exp(mean of log-ratios over the trained tokens), eq. 5 and 7.

    Every token of a sample has the same loss, so that its mean over the sample is the sample's loss. Useful clip ranges
    are far narrower than PPO's: the paper takes `--eps-clip 3e-4 --eps-clip-high 4e-4`.
    """
    return clipped_surrogate(args, sequence_mean(log_ratio, inputs), advantages)


@reads(policy_reads)
@needs_gradient_at_zero_advantage(has_other_terms)
def gspo(
    args: LossRunArguments,
    inputs: LossInputs,
    importance_weight: ImportanceWeight | None = None,
    pg_loss_reducer: PgLossReducer | None = None,
) -> LossOutputs:
    """Return the sequence-level surrogate with the terms of `slime_losses.objective`."""
    return policy_objective(args, inputs, gspo_surrogate, importance_weight, pg_loss_reducer)
