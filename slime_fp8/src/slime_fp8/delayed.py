"""Delayed scaling: the scale of a tensor comes from the largest magnitudes of its predecessors, as in Transformer Engine's
`DelayedScaling`. Pure functions; who quantises keeps `scale` and `history` between steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from slime_fp8.quantise import Format, Quantised, rounded
from slime_fp8.scales import LARGEST

AmaxAlgorithm = Literal["max", "most_recent"]


def quantise_with(matrix: Tensor, scale: Tensor, format: Format) -> Quantised:
    """Quantise a matrix (M, N) with a given scale, one number, float32. What is too large for it becomes the largest number
    of the format."""
    data = rounded(matrix.to(torch.float32) * scale, format)
    block = (max(1, matrix.shape[0]), max(1, matrix.shape[1]))
    blocks = (1 if matrix.shape[0] else 0, 1 if matrix.shape[1] else 0)
    return Quantised(data, scale.reciprocal().expand(blocks), block)


def next_scale(
    scale: Tensor, history: Tensor, amax: Tensor, format: Format, margin: int = 0, algorithm: AmaxAlgorithm = "max"
) -> tuple[Tensor, Tensor]:
    """The scale for the next step, and the history with this step's magnitude in it.

    Args:
        scale: that this step used, one number, float32, or any number of them. It stays if the magnitude is 0, Inf or NaN.
        history: (H,) the largest magnitudes of the last H - 1 steps, the latest one last, or (H, …) of all of them; `history[0]` is
            free for this step.
        amax: the largest magnitude of this step, one number or as many.
        margin: halve the scale so many times.
        algorithm: take the largest magnitude of the history, or this step's.
    """
    history = history.clone()
    history[0] = torch.maximum(history[0], amax.to(history.dtype))
    chosen = history.amax(0) if algorithm == "max" else history[0]
    fresh = torch.div(torch.full_like(chosen, LARGEST[format]), chosen) / 2.0**margin
    fresh = fresh.clamp(max=torch.finfo(torch.float32).max)
    scale = torch.where((chosen > 0) & chosen.isfinite(), fresh, scale)
    history = history.roll(-1, 0)
    history[0] = 0
    return scale, history
