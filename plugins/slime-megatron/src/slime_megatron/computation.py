"""`Computation`: what one rank computes of a global batch: its micro-batches, forward or forward and backward. Called by the
backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slime_core.contracts.loss import LossFunction
from slime_core.contracts.train_backend import TrainBatch
from slime_core.sample import Sample
from slime_core.tensors.determinism import deterministic
from slime_core.tensors.micro_batches import gather_outputs, loss_inputs, pack_micro_batch, response_values
from slime_core.tensors.packed_rows import check_samples, pack_samples
from slime_core.tensors.random_states import random_states, set_random_states
from slime_core.tensors.ranks import Ranks
from slime_megatron.arguments import MegatronRunArguments
from slime_megatron.pipeline import MicroBatch, Pipeline
from slime_megatron.predictor import Predicted, Predictor
from slime_megatron.routing_replay import RoutingReplay

_DTYPE = torch.float32
"""Of the numbers that losses are given beside log-probs, such as advantages."""


@dataclass
class Computation:
    """Computes batches with the present weights.

    Attributes:
        vocab_size: tokens that the checkpoint knows.
        wrapped: this rank's part of the model, in what reduces gradients if it is trained.
        predictor, pipeline: those of the model.
        ranks: the data-parallel ranks.
        loss: what is minimised.
        wants_entropy: the loss reads entropies.
        routing: repeats the experts of a rollout, where that is asked for.
    """

    args: MegatronRunArguments
    vocab_size: int
    wrapped: nn.Module
    predictor: Predictor
    pipeline: Pipeline
    ranks: Ranks
    loss: LossFunction
    wants_entropy: bool
    routing: RoutingReplay | None

    def own(self, batch: TrainBatch) -> list[MicroBatch]:
        """What this rank computes: at least one micro-batch, and one of nobody in place of each that is empty."""
        computed = [batch.samples[i] for micro_batch in batch.micro_batches for i in micro_batch]
        check_samples(computed, self.vocab_size)
        own = batch.of_rank(self.ranks.rank, self.ranks.size) or [[]]
        return [self.micro_batch(batch, samples) for samples in own]

    def micro_batch(self, batch: TrainBatch, samples: Sequence[int]) -> MicroBatch:
        """The packed row of these samples; without any, or without a trained token among them, one of nobody, which keeps this
        rank in step with the others."""
        size, device = self.vocab_size, self.ranks.device
        # Attention and positions of megatron-core know sequences, not responses that share a prompt.
        apart = replace(batch, share_prompts=False)
        row = pack_micro_batch(apart, samples, vocab_size=size, device=device, dtype=_DTYPE)
        if len(row.targets):
            return self.pipeline.micro_batch(samples, row)
        nobody = pack_samples([Sample(tokens=[0, 0], response_length=1)], vocab_size=size, device=device)
        return self.pipeline.micro_batch([], nobody)

    def forward_backward(
        self, batch: TrainBatch, micro_batches: Sequence[MicroBatch]
    ) -> tuple[list[float], dict[str, float]]:
        """Add the gradients of these micro-batches, and of those of all other ranks, to the gradient.

        Returns:
            (losses of all micro-batches of all ranks, metrics of the loss), the same on all ranks.
        """
        self.predictor.temperature, self.predictor.wants_entropy = batch.temperature, self.wants_entropy
        loss = self._loss_of(batch)

        def share(micro_batch: MicroBatch, predicted: Predicted) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
            value, metrics = loss(micro_batch, predicted)
            return value, (value.detach().clone(), metrics)  # the schedule changes what it was given in place

        repeating = self.routing.repeating(batch) if self.routing else nullcontext()
        with deterministic(self.args), repeating as before:
            found = self.pipeline.train(micro_batches, share, before)
        return gather_outputs(found, self.ranks)

    def forward(self, batch: TrainBatch) -> tuple[list[float], dict[str, float]]:
        """Losses and metrics as `forward_backward` returns them, without gradients. Leaves no trace."""
        self.predictor.wants_entropy = self.wants_entropy
        with self._without_trace():
            found = self.pipeline.forward(self.own(batch), self._loss_of(batch))
        return gather_outputs([(loss, own) for loss, own in found], self.ranks)

    def per_token(
        self, batch: TrainBatch, before: Callable[[Sequence[int]], None] | None = None
    ) -> Sequence[Sequence[float]]:
        """Log-probs of the response tokens, or a critic's values, 0.0 where none is trained or computed. Leaves no trace.

        Args:
            before: called with the samples of each micro-batch right before it goes forward.
        """
        self.predictor.temperature, self.predictor.wants_entropy = batch.temperature, False
        micro_batches = self.own(batch)
        with self._without_trace():
            found = self.pipeline.forward(micro_batches, lambda micro_batch, predicted: predicted.values, before)
        pairs = zip(micro_batches, found, strict=True)
        return response_values(batch, [(m.samples, v if m.samples else v[:0]) for m, v in pairs], self.ranks)

    def _loss_of(self, batch: TrainBatch) -> Callable[[MicroBatch, Predicted], tuple[Tensor, dict[str, Tensor]]]:
        def loss(micro_batch: MicroBatch, predicted: Predicted) -> tuple[Tensor, dict[str, Tensor]]:
            """The share of the loss and of the metrics of one micro-batch."""
            values, entropy, row = predicted.values, predicted.entropy, micro_batch.row
            if not micro_batch.samples:  # of nobody: the loss of no token, which keeps the graph
                size, device = self.vocab_size, values.device
                row = pack_micro_batch(batch, [], vocab_size=size, device=device, dtype=_DTYPE)
                values, entropy = values[:0], None if entropy is None else entropy[:0]
            critic = self.predictor.value_head is not None
            outputs = self.loss(self.args, loss_inputs(batch, micro_batch.samples, row, values, entropy, critic=critic))
            return outputs.loss + predicted.values.sum() * 0.0, outputs.metrics

        return loss

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        was_training, before = self.wrapped.training, random_states()
        self.wrapped.train(False)
        try:
            with torch.no_grad(), deterministic(self.args):
                yield
        finally:
            set_random_states(before)
            self.wrapped.train(was_training)
