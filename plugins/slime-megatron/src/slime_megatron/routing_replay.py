"""`--use-routing-replay`: in all optimizer steps of a rollout every token goes to the experts that the model chose for it before
the first of them. Used by the backend, for an actor with experts.

The experts are remembered for each micro-batch and router of this rank, so the micro-batches of the steps must be those of the
pass that remembers. Their weights are always the present router's, and so are the gradients: only the choice is repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn

from slime_core.contracts.train_backend import TrainBatch
from slime_core.sample import Sample

Key = tuple[int, ...]


class RoutingReplay:
    """The experts that the routers of a model chose.

    Args:
        module: the model; routers of other models are not touched. A stage of a pipeline may have none.
    """

    def __init__(self, module: nn.Module) -> None:
        self._routers: list[_Router] = []
        for router in (part for part in module.modules() if isinstance(part, TopKRouter)):
            router.router_replay = own = _Router(router.config.num_moe_experts)
            self._routers.append(own)
        self._samples: list[Sequence[Sample]] = []  # whose ids are keys must go on living
        self._chosen: dict[Key, list[Tensor]] = {}

    @contextmanager
    def remembering(self, batch: TrainBatch) -> Iterator[Callable[[Sequence[int]], None]]:
        """Remember the experts of all micro-batches that go forward in this context.

        Yields:
            what is to be called with the samples of a micro-batch right before it goes forward.
        """
        self._samples.append(batch.samples)

        def begin(samples: Sequence[int]) -> None:
            kept: list[Tensor] = []
            if samples:
                self._chosen[_key(batch, samples)] = kept
            for router in self._routers:
                router.kept = kept

        try:
            yield begin
        finally:
            for router in self._routers:
                router.kept = None

    @contextmanager
    def repeating(self, batch: TrainBatch) -> Iterator[Callable[[Sequence[int]], None]]:
        """Repeat what is remembered in the forward and backward passes in this context. If nothing is remembered at all, every
        token goes where the router sends it.

        Yields:
            what is to be called with the samples of a micro-batch right before it goes forward.

        Raises:
            RuntimeError: (when called) experts are remembered, but not those of this micro-batch.
        """

        def begin(samples: Sequence[int]) -> None:
            chosen: Sequence[Tensor | None] = [None] * len(self._routers)
            if self._chosen and samples:
                if (key := _key(batch, samples)) not in self._chosen:
                    raise RuntimeError(
                        f"No experts are remembered for a micro-batch of {len(samples)} samples: remember_routing was given "
                        "other micro-batches than train_step."
                    )
                chosen = self._chosen[key]
            for router, own in zip(self._routers, chosen, strict=True):
                router.repeated, router.repeats = own, True

        try:
            yield begin
        finally:
            for router in self._routers:
                router.repeats, router.repeated = False, None
                router.again.clear()

    def forget(self) -> None:
        """Forget all experts."""
        self._chosen, self._samples = {}, []


def _key(batch: TrainBatch, samples: Sequence[int]) -> Key:
    """What tells a micro-batch from others, for as long as its samples live."""
    return tuple(id(batch.samples[i]) for i in samples)


class _Router:
    """What a router of megatron-core asks for the experts of its tokens, in place of megatron-core's own `RouterReplay`: that one
    knows all models of a process together, and the last micro-batch alone.

    Attributes:
        kept: takes the experts of the micro-batch that goes forward, if they are remembered.
        repeats: experts are given, not chosen, as far as there are any.
        repeated: (tokens, k) those of the micro-batch that goes forward.
        again: those of micro-batches that have gone forward, in their order, which is that of the backward passes. A backward
            pass that computes the layer again takes them from here.
    """

    def __init__(self, experts: int) -> None:
        self._type = torch.uint8 if experts <= 256 else torch.int16
        self.kept: list[Tensor] | None = None
        self.repeats = False
        self.repeated: Tensor | None = None
        self.again: deque[Tensor | None] = deque()

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """(tokens, experts) scores → (tokens, k) those of the experts that each token goes to, and which they are."""
        if self.repeats:
            if torch._C._current_graph_task_id() != -1:  # in a backward pass
                chosen = self.again.popleft()
            else:
                chosen = self.repeated
                self.again.append(chosen)
            if chosen is not None:
                if chosen.shape != (len(scores), topk):
                    raise RuntimeError(f"Experts of {tuple(chosen.shape)} are remembered for {len(scores)} tokens.")
                places = chosen.to(scores.device, torch.int64)
                return scores.gather(1, places), places
        found: tuple[Tensor, Tensor] = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        if self.kept is not None:
            self.kept.append(found[1].to("cpu", self._type))
        return found
