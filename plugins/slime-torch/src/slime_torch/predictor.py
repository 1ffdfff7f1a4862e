"""`Predictor`: what a model predicts at the trained tokens of a packed row. Made by the backend, which calls it for
every micro-batch, in training and outside of it by the same operations.

Ranks exchange weights and gradients in every forward and backward pass, so all of them go through as many: one without
a token to train computes a placeholder instead, and its result does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from slime_core.contracts.train_backend import TrainBatch
from slime_core.sample import Sample
from slime_core.tensors.fused.rounded import RoundedWeights
from slime_core.tensors.linear_cross_entropy import token_log_probs
from slime_core.tensors.micro_batches import pack_micro_batch
from slime_core.tensors.packed_rows import PackedRow, placeholder_row
from slime_core.tensors.rotary import looks_at_length
from slime_core.tensors.sent_rows import sent_row
from slime_torch.arguments import TorchRunArguments
from slime_torch.model import find_head, packed_hidden, vocabulary_size
from slime_torch.sharding import Sharded
from slime_torch.vision import Vision, require_no_images

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Predicted = tuple[Tensor, Tensor | None]
"""(T,) log-probs of the trained tokens, or a critic's values at them, and (T,) entropies where they were wanted."""


class Predictor:
    """Computes log-probs and entropies with `model` or, with a value head, a critic's values.

    Args:
        sharded: the model spread over the ranks; None: it is whole in this process.
        value_head: of a critic, in place of logits.
        vision: of a vision-language model.
        rounded: the weights in bfloat16; the head computes with them by the kernels of a GPU. None: it does not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TorchRunArguments,
        sharded: Sharded | None,
        value_head: nn.Linear | None,
        vision: Vision | None = None,
        rounded: RoundedWeights | None = None,
    ) -> None:
        self._model, self._args, self._sharded, self.value_head = model, args, sharded, value_head
        self._vision, self._rounded = vision, rounded

    def pack(self, batch: TrainBatch, micro_batch: Sequence[int]) -> PackedRow:
        """The packed row of a micro-batch, on the model's device, with its images.

        Raises:
            ArgumentError: a sample has images, and the model reads none.
        """
        samples = [batch.samples[number] for number in micro_batch]
        if self._vision is None:
            self.check(samples)
        row = pack_micro_batch(
            batch,
            micro_batch,
            vocab_size=vocabulary_size(self._model),
            dtype=find_head(self._model).weight.dtype,
            whole=looks_at_length(self._model),
        )
        return sent_row(row if self._vision is None else self._vision.laid(row, samples), self._model.device)

    def check(self, samples: Sequence[Sample]) -> None:
        """Look at the images of samples, of whichever rank, without decoding them.

        Raises:
            ArgumentError: a sample has images, and the model reads none.
            SampleError: its image tokens are not those of its images.
        """
        if self._vision is None:
            require_no_images(samples, self._model)
        else:
            self._vision.processor.check(samples)

    def predict(self, row: PackedRow, temperature: float, entropy: bool = False) -> Predicted:
        """Compute what the model predicts at the trained tokens of a row.

        Args:
            temperature: divides the logits.
            entropy: whether entropies are wanted too; a critic has none.
        """
        if not len(row.targets):
            if self._sharded is None:
                nothing = torch.zeros(0, dtype=find_head(self._model).weight.dtype, device=self._model.device)
                return nothing, nothing if entropy else None
            placeholder = placeholder_row(vocabulary_size(self._model), self._model.device)
            predicted, entropies = self.predict(placeholder, temperature, entropy)
            return predicted[:0], None if entropies is None else entropies[:0]
        compute = partial(self._compute, row, temperature, entropy)
        predicted, entropies = compute() if self._sharded is None else self._sharded.run(compute)
        return predicted if self.value_head is None else predicted.squeeze(1), entropies

    def _compute(self, row: PackedRow, temperature: float, entropy: bool) -> Predicted:
        """What `predict` returns, with a critic's values as (T, 1)."""
        args = self._args
        head = find_head(self._model)  # not kept: with several ranks its weight is whole only now
        device, dtype = row.input_ids.device, head.weight.dtype
        # Autocast would hold on to the rounded weights of all layers until the last one is computed.
        kept = self._sharded is None and not args.gradient_checkpointing
        blind = self._vision if self._sharded is not None and not row.images else None
        alike = nullcontext() if blind is None else blind.in_step()
        with alike, torch.autocast(device.type, torch.bfloat16, enabled=args.bf16, cache_enabled=kept):
            trained = packed_hidden(self._model, row)[row.predictors]
        if self.value_head is not None:
            values: Tensor = self.value_head(trained.to(dtype))
            return values, None
        if self._rounded is not None:
            head = replace(head, fused=True, rounded=self._rounded.of([head.weight]))
        return token_log_probs(
            trained,
            head,
            row.targets,
            temperature=temperature,
            entropy=entropy,
            chunk_size=args.log_probs_chunk_size,
            product=torch.bfloat16 if args.bf16 else dtype,
        )
