"""Experts in low precision: the tokens that ranks send to an expert are quantised as they are in one process, those of each
micro-batch alone and in the order that they have in its row. Called by `slime_megatron.low_precision`.

An expert gets its tokens rank by rank. Ranks of sequence parallelism have parts of one row; data-parallel ranks have rows of their
own, so that an expert computes several micro-batches at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor, nn


class CountingDispatcher(MoEAlltoAllTokenDispatcher):  # type: ignore[misc]  # megatron-core has no types
    """Brings tokens to experts, and keeps how many each rank sends.

    Attributes:
        counts: (ranks, experts of this rank) tokens of the present row, ranks in the order in which their tokens lie.
    """

    counts: list[list[int]]

    def preprocess(self, routing_map: Tensor) -> Tensor:
        found: Tensor = super().preprocess(routing_map)
        own = routing_map.sum(0)
        of_ranks = [torch.empty_like(own) for _ in range(self.tp_ep_group.size())]
        dist.all_gather(of_ranks, own, group=self.tp_ep_group)
        first, last = self.local_expert_indices[0], self.local_expert_indices[-1]
        ordered = torch.stack(of_ranks).view(self.ep_size, self.tp_size, -1).transpose(0, 1).flatten(0, 1)
        self.counts = ordered[:, first : last + 1].tolist()
        return found


class ExpertsOfSeveralRows(SequentialMLP):  # type: ignore[misc]  # megatron-core has no types
    """Experts whose tokens come from several micro-batches, or in another order than that of the row.

    Attributes:
        dispatcher: brings the tokens.
        sources: per rank, in the order in which tokens lie, which micro-batch and which part of it the rank has.
    """

    dispatcher: CountingDispatcher
    sources: list[tuple[int, int]]

    def forward(self, tokens: Tensor, tokens_per_expert: Tensor, probs: Tensor) -> tuple[Tensor, Tensor | None]:
        counts = self.dispatcher.counts
        order, start = [], 0
        for number, expert in enumerate(self.local_experts):
            places = []
            for own in counts:
                places.append(range(start, start + own[number]))
                start += own[number]
            by_row = sorted(range(len(counts)), key=self.sources.__getitem__)
            order += [place for source in by_row for place in places[source]]
            rows = sorted({row for row, _ in self.sources})
            parts = [sum(len(places[s]) for s in by_row if self.sources[s][0] == row) for row in rows]
            for linear in (expert.linear_fc1, expert.linear_fc2):
                linear.parts = parts
        ordered = torch.tensor(order, dtype=torch.int64, device=tokens.device)
        output, bias = super().forward(tokens[ordered], tokens_per_expert, probs[ordered])
        return output[ordered.argsort()], bias


def keep_micro_batches_apart(module: nn.Module) -> None:
    """Let experts quantise the tokens of each micro-batch alone, in the order of its row. All ranks of a pipeline stage call this
    together."""
    for layer in (found for found in module.modules() if isinstance(found, MoELayer)):
        experts: Any = layer.experts
        dispatcher: Any = layer.token_dispatcher
        own = parallel_state.get_data_parallel_rank(), parallel_state.get_tensor_model_parallel_rank()
        group = dispatcher.tp_ep_group
        of_ranks: list[Any] = [None] * group.size()
        dist.all_gather_object(of_ranks, own, group=group)
        sources = [
            of_ranks[e * dispatcher.tp_size + t] for t in range(dispatcher.tp_size) for e in range(dispatcher.ep_size)
        ]
        if len({row for row, _ in sources}) > 1 or sources != sorted(sources):
            dispatcher.__class__ = CountingDispatcher
            experts.__class__ = ExpertsOfSeveralRows
            experts.dispatcher, experts.sources = dispatcher, sources
