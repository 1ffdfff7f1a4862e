"""`TrainBackend`: what the loop asks of whatever trains the model.

A backend is made for each model of a training process (actor, reference, critic) as `TrainBackend(args)` and then driven by the loop through
the methods below, one call at a time. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.batch import TrainBatch
    from slime_core.loss import LossFunction

Role = Literal["actor", "critic", "reference"]


class TrainBackend(Protocol):
    """One model in training, with its optimizer and schedule.

    A backend that can train on several ranks is made in each of them, from the same arguments, and all get the same
    calls at the same time: a `TrainBatch` is the global batch, of which data-parallel rank r of N computes
    `batch.of_rank(r, N)`. Gradients and losses are summed over the ranks, and every rank returns the global result. The
    ranks find each other by the environment variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    These members are optional:

        data_parallel_size: int, N, known after `setup`. A backend without it trains in one process only.
        saved(wait: bool = True) -> bool: whether what `save_state` began is on disk, raising what kept it from getting
            there. A backend without it has written everything when `save_state` returns.
        reference() -> TrainBackend | None: the actor's reference model, if it needs no backend of its own (with adapters,
            the model without them). Only `log_probs` of it is called.
        offload(), onload(): give back the GPU's memory until it is needed again (`--offload`); see `slime_core.offload`.
    """

    def __init__(self, args: Any) -> None:
        """Keep the run's arguments. Must not load anything yet."""

    def setup(self, loss: LossFunction, total_steps: int, role: Role = "actor") -> None:
        """Load the tokenizer from `args.hf_checkpoint` and the model from `args.ref_load` or, without it, from there too;
        build optimizer and schedule.

        Args:
            loss: called as `loss(args, inputs)`; `slime_core.loss.what_reads` tells which inputs it wants.
            total_steps: optimizer steps in the whole run; the schedule's length unless `--lr-decay-iters` is given.
            role: "actor": a language model. "critic": the same model with a head that gives one number for each token
                in place of logits, new and zero where the checkpoint has none; its loss gets `values`. "reference": a
                language model that is never trained: no optimizer, no state to save.
        """

    def log_probs(self, batch: TrainBatch) -> list[list[float]]:
        """Log-probs of the response tokens under the present weights, without training and without a trace.

        The same micro-batches give the same numbers, bit for bit, as the forward pass of `train_step` on `batch`.

        Returns:
            per sample of the batch `response_length` floats: 0.0 at untrained tokens and for samples in no micro-batch.
        """

    def values(self, batch: TrainBatch) -> list[list[float]]:
        """A critic's predictions at the response tokens, shaped like `log_probs`. The value of a token is predicted
        from what precedes it."""

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step on the global batch.

        Returns:
            metrics, at least "loss", "grad_norm" (before clipping) and "lr" (the rate used in this step).

        Raises:
            TrainingError: loss or gradients are NaN or Inf; names the samples; the weights are left unchanged. Raised
                on all ranks if it happens on one.
        """

    def evaluate(self, batch: TrainBatch) -> dict[str, float]:
        """The selected loss on `batch` without training: "loss" and the loss's own metrics. Leaves no trace: random
        number generators, dropout mode and gradients are as they were."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters under their Hugging Face names, whole, detached, tied ones once. All ranks iterate together."""

    def save_state(self, path: Path) -> None:
        """Write model, optimizer, schedule and random states into the (existing, empty) folder `path`: every rank its
        part."""

    def load_state(self, path: Path) -> None:
        """Restore what `save_state` wrote, bit for bit."""

    def export_hf(self, path: Path) -> None:
        """Write a Hugging Face checkpoint (weights, config, tokenizer, chat template) into the folder `path`. Of several
        ranks the first writes."""
