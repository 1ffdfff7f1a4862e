"""`value_loss`: what a critic minimises."""

from __future__ import annotations

import torch

from slime_core.contracts.loss import LossInputs, LossOutputs, reads
from slime_core.errors import ArgumentError
from slime_losses.arguments import PolicyArguments


@reads(lambda args: {"values", "returns"})
def value_loss(args: PolicyArguments, inputs: LossInputs) -> LossOutputs:
    """Return the mean of max((v - R)², (clip(v, v_old ± `--value-clip`) - R)²), PPO's clipped value loss (arXiv 2005.12729).

    R are the `returns` of the advantage estimator. Without `old_values` v_old is v. There is no factor 1/2.

    Raises:
        ArgumentError: there are no values or no returns.
    """
    if inputs.values is None or inputs.returns is None:
        raise ArgumentError(
            "value_loss needs a critic's values and the returns of an advantage estimator that has a critic; "
            "use it through --advantage-estimator ppo."
        )
    old = inputs.values.detach() if inputs.old_values is None else inputs.old_values
    change = inputs.values - old
    limited = old + change.clamp(-args.value_clip, args.value_clip)
    loss = inputs.reduce(torch.maximum((inputs.values - inputs.returns).square(), (limited - inputs.returns).square()))
    clipped = (change.detach().abs() > args.value_clip).to(loss.dtype)
    return LossOutputs(loss, {"value_loss": loss.detach(), "value_clipfrac": inputs.measured(clipped)})
