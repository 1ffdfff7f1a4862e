"""What a policy loss does with the ratio of new to old probabilities: the part in which PPO, GSPO and CISPO differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from slime_core.contracts.loss import LossInputs
from slime_losses.arguments import PolicyArguments
from slime_losses.divergence import bounded_exp


class Surrogate(NamedTuple):
    """One value for each of T tokens.

    Attributes:
        loss: to be minimised; carries gradients.
        log_ratio: log of new over old probability, as the surrogate used it.
        clipped: True where a clip took effect.
    """

    loss: Tensor
    log_ratio: Tensor
    clipped: Tensor


MakeSurrogate = Callable[[PolicyArguments, LossInputs, Tensor, Tensor], Surrogate]
"""Called with the options, the inputs of the loss, the (T,) log-ratios of new to old probabilities, which carry gradients,
and the (T,) advantages."""


def clip_range(args: PolicyArguments) -> tuple[float, float]:
    """Return the smallest and the largest ratio: 1 - `--eps-clip`, and 1 + `--eps-clip-high`, which defaults to the
    former."""
    high = args.eps_clip if args.eps_clip_high is None else args.eps_clip_high
    return 1 - args.eps_clip, 1 + high


def clipped_surrogate(args: PolicyArguments, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
    """Return the clipped surrogate of PPO (arXiv 1707.06347, eq. 7), its sign turned: -min(r A, clip(r, 1-ε, 1+ε_high) A).

    The upper limit is DAPO's clip-higher (arXiv 2503.14476, eq. 10). With `--eps-clip-c` c the loss of tokens with
    negative advantages is limited to -c A (dual clip, arXiv 1912.09729), which `clipped` does not count.
    """
    ratio = bounded_exp(log_ratio)
    plain = -ratio * advantages
    limited = -ratio.clamp(*clip_range(args)) * advantages
    loss = torch.maximum(plain, limited)
    if args.eps_clip_c is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -args.eps_clip_c * advantages), loss)
    return Surrogate(loss, log_ratio, limited > plain)
