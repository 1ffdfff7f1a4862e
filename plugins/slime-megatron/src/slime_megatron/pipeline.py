"""Runs micro-batches through the stages of a model, forward or forward and backward, and brings what the last stage found to
all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from slime_core.tensors.packed_rows import PackedRow
from slime_megatron.layout import ParallelLayout
from slime_megatron.model import BuiltModel
from slime_megatron.predictor import Predicted, Predictor
from slime_megatron.rows import RankRow, rank_row

Found = TypeVar("Found")


@dataclass(frozen=True)
class MicroBatch:
    """One packed row on its way through the stages.

    Attributes:
        samples: indices into the batch; none for a row that only keeps this rank in step with the others.
        row: the row as it is; where `samples` is empty a row of two tokens, none of which counts.
        own: this rank's part of it.
    """

    samples: Sequence[int]
    row: PackedRow
    own: RankRow


class Pipeline:
    """The schedule of one model.

    Args:
        model: this rank's part.
        wrapped: the same inside of what reduces gradients.
        predictor: what the last stage does with hidden states.
    """

    def __init__(self, model: BuiltModel, wrapped: nn.Module, layout: ParallelLayout, predictor: Predictor) -> None:
        self._model, self._wrapped, self._layout, self._predictor = model, wrapped, layout, predictor

    def micro_batch(self, samples: Sequence[int], row: PackedRow) -> MicroBatch:
        """A packed row cut for this rank."""
        return MicroBatch(samples, row, rank_row(row, self._layout, parallel_state.get_context_parallel_rank()))

    def train(
        self,
        micro_batches: Sequence[MicroBatch],
        loss: Callable[[MicroBatch, Predicted], tuple[Tensor, Found]],
        before: Callable[[Sequence[int]], None] | None = None,
    ) -> list[Found]:
        """Forward and backward of all of them. Gradients are complete on all ranks afterwards: sums over all micro-batches of
        all ranks.

        Args:
            loss: called on the last stage; a share of the global loss, and what else it found.
            before: called with the samples of each micro-batch right before it goes forward, on every stage.

        Returns:
            What `loss` found for each, on all stages.
        """
        # The schedule divides gradients by the number of tokens that all ranks report in all. They are sums already.
        first = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0

        def of(number: int, micro_batch: MicroBatch, predicted: Predicted) -> tuple[Tensor, Tensor, Found]:
            share, found = loss(micro_batch, predicted)
            count = torch.tensor(int(first and number == 0), dtype=torch.int, device=share.device)
            return share, count, found

        return self._run(micro_batches, of, before, forward_only=False)

    def forward(
        self,
        micro_batches: Sequence[MicroBatch],
        what: Callable[[MicroBatch, Predicted], Found],
        before: Callable[[Sequence[int]], None] | None = None,
    ) -> list[Found]:
        """What `what` makes of the predictions for each, on all stages. `before` is as for `train`."""

        def of(number: int, micro_batch: MicroBatch, predicted: Predicted) -> Found:
            return what(micro_batch, predicted)

        return self._run(micro_batches, of, before, forward_only=True)

    def _run(
        self,
        micro_batches: Sequence[MicroBatch],
        of: Callable[..., Any],
        before: Callable[[Sequence[int]], None] | None,
        forward_only: bool,
    ) -> list[Any]:
        def step(numbered: Iterator[tuple[int, MicroBatch]], model: nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            number, micro_batch = next(numbered)
            own = micro_batch.own
            if before is not None:
                before(micro_batch.samples)
            real = own.real if micro_batch.samples else 0
            hidden = self._model.forward(own.ids, own.bounds, own.longest, model, real)

            def finish(output: Tensor, non_loss_data: bool = False) -> Any:
                return of(number, micro_batch, self._predictor.predict(output, own, micro_batch.row.targets))

            return hidden, finish

        found = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(enumerate(micro_batches)),
            model=self._wrapped,
            num_microbatches=len(micro_batches),
            seq_length=1,  # rows tell their lengths themselves
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        return _from_last_stage(found)


def _from_last_stage(found: list[Any]) -> list[Any]:
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() == 1:
        return found
    box: list[Any] = [found if parallel_state.is_pipeline_last_stage() else None]
    dist.broadcast_object_list(box, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    result: list[Any] = box[0]
    return result
