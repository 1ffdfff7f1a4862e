"""`--loss-type cispo`: clipped weights instead of clipped gradients (CISPO, MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

from torch import Tensor

from slime_core.contracts.loss import LossInputs, LossOutputs, needs_gradient_at_zero_advantage, reads
from slime_losses.arguments import LossRunArguments, PolicyArguments
from slime_losses.divergence import bounded_exp
from slime_losses.importance import ImportanceWeight
from slime_losses.objective import has_other_terms, policy_objective, policy_reads
from slime_losses.reducer import PgLossReducer
from slime_losses.surrogate import Surrogate, clip_range


def cispo_surrogate(args: PolicyArguments, inputs: LossInputs, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
    """Return -sg(clip(r, 1-ε, 1+ε_high)) A log π, eq. 4 and 5: every token keeps a gradient, of a limited weight.

    The paper has no lower limit: `--eps-clip 1`.
    """
    ratio = bounded_exp(log_ratio.detach())
    weight = ratio.clamp(*clip_range(args))
    return Surrogate(-weight * advantages * inputs.log_probs, log_ratio, weight != ratio)


@reads(policy_reads)
@needs_gradient_at_zero_advantage(has_other_terms)
def cispo(
    args: LossRunArguments,
    inputs: LossInputs,
    importance_weight: ImportanceWeight | None = None,
    pg_loss_reducer: PgLossReducer | None = None,
) -> LossOutputs:
    """Return the surrogate of CISPO with the terms of `slime_losses.objective`."""
    return policy_objective(args, inputs, cispo_surrogate, importance_weight, pg_loss_reducer)
