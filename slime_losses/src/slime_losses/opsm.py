"""Off-policy sequence masking: `--use-opsm`. Called by `slime_losses.objective`."""

from __future__ import annotations

from torch import Tensor

from slime_core.contracts.loss import LossInputs
from slime_losses.arguments import PolicyArguments
from slime_losses.sequences import sequence_mean


def left_behind(args: PolicyArguments, inputs: LossInputs, old: Tensor, advantages: Tensor) -> Tensor:
    """Say for each of T tokens whether the policy loss leaves it out: its advantage is negative, and the mean of log π_old - log π
    over the trained tokens of its sample is above `--opsm-delta` (DeepSeek-V3.2, arXiv 2512.02556, eq. 9).

    Args:
        old: (T,) log-probs of the policy that the ratio compares with.
        advantages: (T,).

    Returns:
        (T,) bool.
    """
    moved = sequence_mean(old - inputs.log_probs.detach(), inputs)
    return (advantages < 0) & (moved > args.opsm_delta)
