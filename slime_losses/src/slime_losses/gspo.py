"""`--loss-type gspo`: one ratio for a whole sequence (GSPO, arXiv 2507.18071)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slime_core.contracts.loss import LossInputs, LossOutputs, needs_gradient_at_zero_advantage, reads
from slime_losses.objective import ImportanceWeight, has_other_terms, policy_objective, policy_reads
from slime_losses.sequences import sequence_mean
from slime_losses.surrogate import Surrogate, clipped_surrogate


def gspo_surrogate(args: Any, inputs: LossInputs, log_ratio: Tensor) -> Surrogate:
    """The clipped surrogate of the sequence ratio s = exp(mean of log-ratios over the trained tokens), eq. 5 and 7.

    Every token of a sample has the same loss, so that its mean over the sample is the sample's loss. Useful clip ranges
    are far narrower than PPO's: the paper takes `--eps-clip 3e-4 --eps-clip-high 4e-4`.
    """
    return clipped_surrogate(args, sequence_mean(log_ratio, inputs), inputs.advantages)


@reads(policy_reads)
@needs_gradient_at_zero_advantage(has_other_terms)
def gspo(args: Any, inputs: LossInputs, importance_weight: ImportanceWeight | None = None) -> LossOutputs:
    """The sequence-level surrogate with the terms of `slime_losses.objective`."""
    return policy_objective(args, inputs, gspo_surrogate, importance_weight)
