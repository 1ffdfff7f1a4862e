"""`--loss-type sft_loss`: the negative log-likelihood that supervised fine-tuning minimises."""

from __future__ import annotations

from slime_core.arguments import RunArguments
from slime_core.contracts.loss import LossInputs, LossOutputs


def sft_loss(args: RunArguments, inputs: LossInputs) -> LossOutputs:
    """Return the mean of -log p(token | what precedes it) over the trained tokens of the global batch.

    Which mean, per token or per sample, is the business of `inputs.reduce`.
    """
    return LossOutputs(loss=inputs.reduce(-inputs.log_probs))
