"""What the last pipeline stage does with hidden states: log-probs and entropies of the trained tokens, or a critic's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor, nn

from slime_core.tensors.linear_cross_entropy import Head, Shard, token_log_probs
from slime_megatron.layout import ParallelLayout
from slime_megatron.model import BuiltModel
from slime_megatron.rows import RankRow


@dataclass(frozen=True)
class Predicted:
    """(T,) log-probs of the trained tokens, or a critic's values at them, and (T,) entropies if they are wanted; the same on
    all tensor- and context-parallel ranks."""

    values: Tensor
    entropy: Tensor | None = None


class Predictor:
    """Turns final hidden states into what losses are given.

    Args:
        chunk_size: trained tokens whose logits exist at one time; -1: all.
        value_head: a critic's, in place of logits.

    Attributes:
        temperature: divides the logits.
        wants_entropy: entropies are computed too.
    """

    def __init__(
        self, model: BuiltModel, layout: ParallelLayout, chunk_size: int, value_head: nn.Linear | None = None
    ) -> None:
        self._model, self._layout, self._chunk_size, self.value_head = model, layout, chunk_size, value_head
        self.temperature, self.wants_entropy = 1.0, False

    def predict(self, hidden: Tensor, own: RankRow, targets: Tensor) -> Predicted:
        """(n, 1, H) hidden states of this rank's row, or of its part of it under sequence parallelism → see `Predicted`."""
        if self._layout.sequence:
            # Each rank goes on with its rows of the vocabulary, so what comes back is its part of a sum; a critic's head is
            # whole on every rank.
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=self.value_head is None)
        chosen = hidden[:, 0][own.predictors]
        if self.value_head is not None:
            # Not in the weights' bfloat16, in which a value has three digits.
            values = F.linear(chosen.float(), self.value_head.weight.float())
            return Predicted(self._all_tokens(values.squeeze(1), own))
        if not self._layout.sequence:
            chosen = copy_to_tensor_model_parallel_region(chosen)
        weight = self._model.head_weight
        head = Head(weight, softcap=self._model.spec.final_soft_cap, shard=self._shard(weight))
        found, entropy = token_log_probs(
            chosen,
            head,
            targets[own.own],
            temperature=self.temperature,
            entropy=self.wants_entropy,
            chunk_size=self._chunk_size,
            product=weight.dtype,
        )
        return Predicted(self._all_tokens(found, own), None if entropy is None else self._all_tokens(entropy, own))

    def _shard(self, weight: Tensor) -> Shard:
        rank, rows = parallel_state.get_tensor_model_parallel_rank(), weight.shape[0]
        known = max(0, min(rows, self._model.vocab_size - rank * rows))
        return Shard(rank * rows, known, parallel_state.get_tensor_model_parallel_group())

    def _all_tokens(self, values: Tensor, own: RankRow) -> Tensor:
        """The values of all T tokens of the row, of which this rank computed some."""
        if self._layout.context == 1:
            return values
        spread: Tensor = _FromContextRanks.apply(values, own.own, own.trained)  # type: ignore[no-untyped-call]
        return spread


class _FromContextRanks(torch.autograd.Function):
    """Numbers of some tokens on each context-parallel rank → those of all tokens on each. Every rank computes the whole loss
    from them, so a number's gradient is what its own rank finds, not the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        whole = values.new_zeros(count)
        whole[places] = values
        dist.all_reduce(whole, group=parallel_state.get_context_parallel_group())
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient[places], None, None
