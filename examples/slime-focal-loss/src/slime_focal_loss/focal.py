"""`--loss-type focal_loss`: the focal loss of Lin et al. 2017 (arXiv:1708.02002, eq. 4), per trained token."""

from __future__ import annotations

import torch

from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_focal_loss.arguments import FocalArguments


def focal_loss(args: FocalArguments, inputs: LossInputs) -> LossOutputs:
    """Return the mean of -(1 - p)^γ log p over the trained tokens, γ being `--focal-gamma`.

    Gradients flow through the factor (1 - p)^γ as well. The metric "nll" is the mean of -log p.
    """
    nll = -inputs.log_probs
    # The power has an infinite slope at p = 1 for γ < 1, which the factor log p = 0 would turn into NaN.
    wrong = -torch.expm1(inputs.log_probs)
    factor = wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** args.focal_gamma
    return LossOutputs(loss=inputs.reduce(factor * nll), metrics={"nll": inputs.reduce(nll).detach()})
