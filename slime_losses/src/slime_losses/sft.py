"""`--loss-type sft_loss`: the negative log-likelihood that supervised fine-tuning minimises."""

from __future__ import annotations

from typing import Any

from slime_core.contracts.loss import LossInputs, LossOutputs


def sft_loss(args: Any, inputs: LossInputs) -> LossOutputs:
    """The mean of -log p(token | what precedes it) over the trained tokens of the global batch.

    Which mean, per token or per sample, is the business of `inputs.reduce`.
    """
    return LossOutputs(loss=inputs.reduce(-inputs.log_probs))
