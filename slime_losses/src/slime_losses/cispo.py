"""`--loss-type cispo`: clipped weights instead of clipped gradients (CISPO, MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slime_core.contracts.loss import LossInputs, LossOutputs, needs_gradient_at_zero_advantage, reads
from slime_losses.divergence import bounded_exp
from slime_losses.objective import ImportanceWeight, has_other_terms, policy_objective, policy_reads
from slime_losses.surrogate import Surrogate, clip_range


def cispo_surrogate(args: Any, inputs: LossInputs, log_ratio: Tensor) -> Surrogate:
    """-sg(clip(r, 1-ε, 1+ε_high)) A log π, eq. 4 and 5: every token keeps a gradient, of a limited weight.

    The paper has no lower limit: `--eps-clip 1`.
    """
    ratio = bounded_exp(log_ratio.detach())
    weight = ratio.clamp(*clip_range(args))
    return Surrogate(-weight * inputs.advantages * inputs.log_probs, log_ratio, weight != ratio)


@reads(policy_reads)
@needs_gradient_at_zero_advantage(has_other_terms)
def cispo(args: Any, inputs: LossInputs, importance_weight: ImportanceWeight | None = None) -> LossOutputs:
    """The surrogate of CISPO with the terms of `slime_losses.objective`."""
    return policy_objective(args, inputs, cispo_surrogate, importance_weight)
