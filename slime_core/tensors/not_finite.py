"""A loss or gradient that is NaN or Inf ends the run, with the samples named, before the optimizer has touched a
weight. Called by train backends in every optimizer step. Pure.

All ranks pass the same numbers, those of the global batch, so the error is raised on all of them or on none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from slime_core.contracts.train_backend import TrainBatch
from slime_core.errors import TrainingError

_SHOWN = 16


def require_finite_losses(batch: TrainBatch, losses: Sequence[float], step: int) -> None:
    """Raise unless the loss of every micro-batch is finite.

    Args:
        losses: of all micro-batches of all ranks, in their order. More than there are micro-batches do no harm.
        step: the number of finished optimizer steps, for the message.

    Raises:
        TrainingError: names the samples of the micro-batches whose loss is not finite.
    """
    pairs = zip(batch.micro_batches, losses, strict=False)
    if bad := [micro_batch for micro_batch, loss in pairs if not math.isfinite(loss)]:
        raise _error("The loss is NaN or Inf", batch, bad, step)


def require_finite_gradient(batch: TrainBatch, norm: float, step: int, norm_alone: Callable[[int], float]) -> None:
    """Raise unless the norm of the gradient is finite.

    Args:
        norm: of the gradient of the global batch.
        step: the number of finished optimizer steps, for the message.
        norm_alone: computes the gradient of one micro-batch alone, given its number, and returns its norm. It is called
            for each of them once the gradient is known to be bad, and is what finds the samples that did it.

    Raises:
        TrainingError: names the samples of the micro-batches whose own gradient is not finite, or else all.
    """
    if math.isfinite(norm):
        return
    numbers = range(len(batch.micro_batches))
    bad = [batch.micro_batches[number] for number in numbers if not math.isfinite(norm_alone(number))]
    raise _error("The gradient is NaN or Inf", batch, bad or batch.micro_batches, step)


def _error(what: str, batch: TrainBatch, micro_batches: Sequence[Sequence[int]], step: int) -> TrainingError:
    names = [batch.samples[i].name for micro_batch in micro_batches for i in micro_batch]
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return TrainingError(
        f"{what} in optimizer step {step}, in the micro-batch of {shown}. The weights and the optimizer were left as "
        "they were before the step. Look at these samples; lower --lr or set --clip-grad if training had become "
        "unstable."
    )
