"""The contract between losses and train backends: `LossInputs` in, `LossOutputs` out.

A loss is a pure function on flat per-token tensors of one micro-batch. It knows nothing of logits, packing,
parallelism or backends. It averages over tokens only with `inputs.reduce`, which knows the normaliser of the *global*
batch: the sum of what `reduce` returns over all micro-batches and ranks is the mean over the global batch.

Importing this module does not import torch; the tensors bring it along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reduce:
    """The global mean over trained tokens, one micro-batch's share of it.

    `weights` (T floats) already hold mask and normaliser. With N samples in the global batch, n_s trained tokens in
    sample s and M trained tokens in all:

    * per-token mean (`--calculate-per-token-loss`): 1 / M for every trained token;
    * per-sample mean (the default): 1 / (N * n_s) for the trained tokens of sample s. A sample without trained
      tokens contributes 0 and still counts in N.
    """

    weights: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """T values → a scalar; keeps gradients."""
        return (values * self.weights).sum()


@dataclass(frozen=True)
class LossInputs:
    """Per-token tensors of one micro-batch, T tokens, in the order of its samples.

    The tokens are the response positions that are trained. Everything is in the dtype of `log_probs` unless said.

    Attributes:
        log_probs: (T,) log-prob of each token under the weights in training; carries gradients.
        loss_mask: (T,) 1 for trained tokens, 0 for the padding that some backends need.
        sample_index: (T,) int64, which sample of the micro-batch a token belongs to, 0 … S-1.
        reduce: see `Reduce`.
        entropy: (T,) entropy of the next-token distribution, present when the loss asked for it.
        old_log_probs, ref_log_probs, rollout_log_probs, advantages, returns, values: (T,) or None.
    """

    log_probs: Tensor
    loss_mask: Tensor
    sample_index: Tensor
    reduce: Reduce
    entropy: Tensor | None = None
    old_log_probs: Tensor | None = None
    ref_log_probs: Tensor | None = None
    rollout_log_probs: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class LossOutputs:
    """What a loss returns.

    Attributes:
        loss: scalar, this micro-batch's share of the global loss (built with `reduce`).
        metrics: scalars built with `reduce`, detached; summed over micro-batches they are global means.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


LossFunction = Callable[..., LossOutputs]
"""`loss(args, inputs: LossInputs) -> LossOutputs`, `args` being the run's frozen arguments."""
