"""`WeightSender`: how an engine takes the weights from the training process itself.

An engine without it is handed them in the rollout worker's process, through `update_weights`; in a cluster they travel
there through Ray's object store. An engine that knows a shorter way (a collective, shared memory, a file) has a method
`weight_sender() -> WeightSender | None`. It is called once, in the rollout worker; what it returns is pickled, goes to
the training ranks, and from then on `send` is called instead of `update_weights`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class WeightSender(Protocol):
    """Runs in the first training rank."""

    def send(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Hand all weights to the engine, as (Hugging Face name, full tensor). Must read the iterator to its end, as the
        other ranks take part in gathering what it gives. Returns when the weights are in use."""

    def close(self) -> None:
        """The run is over. Called in every rank."""
