"""What a policy loss does with the ratio of new to old probabilities: the part in which PPO, GSPO and CISPO differ."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

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


def clip_range(args: Any) -> tuple[float, float]:
    """Smallest and largest ratio: 1 - `--eps-clip` and 1 + `--eps-clip-high`, which defaults to the former."""
    high = args.eps_clip if args.eps_clip_high is None else args.eps_clip_high
    return 1 - args.eps_clip, 1 + high


def clipped_surrogate(args: Any, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
    """The clipped surrogate of PPO (arXiv 1707.06347, eq. 7), its sign turned: -min(r A, clip(r, 1-ε, 1+ε_high) A).

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
