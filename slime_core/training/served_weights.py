"""The actor's weights as the engine takes them: the present ones or those of an earlier version, bucket by bucket or by the engine's
own sender, quantised where the engine's checkpoint is. Called by `slime_core.training.worker`, in every training rank alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.contracts.engine import WeightSender
from slime_core.contracts.train_backend import TrainBackend
from slime_core.tensors.weight_buckets import in_buckets
from slime_core.training.earlier import keeping, of_version

if TYPE_CHECKING:
    from torch import Tensor


class ServedWeights:
    """What the engine is given of one actor.

    Args:
        actor: whose weights they are.
        quantised: what `--hf-checkpoint` is, where that is quantised.
        bucket_size: bytes that are handed over at once (`--update-weight-buffer-size`).
        rank, ranks: this training rank, and how many there are.
    """

    def __init__(
        self, actor: TrainBackend, quantised: QuantisedCheckpoint | None, bucket_size: int, rank: int, ranks: int
    ) -> None:
        self._actor, self._quantised, self._bucket_size = actor, quantised, bucket_size
        self._rank, self._ranks = rank, ranks
        self._version: str | None = None
        self._buckets: Iterator[list[tuple[str, Tensor]]] | None = None
        self._sender: WeightSender | None = None

    def choose(self, version: int | None) -> None:
        """Give copies of the kept weights of this version from now on; None: the present ones."""
        self._version = None if version is None else of_version(version)

    def next(self) -> list[tuple[str, Tensor]] | None:
        """The next of all weights, at most a bucket of them, or None after the last ones; `drop` lets the next call begin anew.

        A single rank returns views of what it trains; of several ranks the first one returns copies on the CPU, and the
        others take part in gathering them and return None.
        """
        if self._buckets is None:
            self._buckets = in_buckets(self._travelling(), self._bucket_size)
        bucket = next(self._buckets, None)
        return bucket if self._rank == 0 else None

    def drop(self) -> None:
        """Leave the rest of the weights that `next` gives, if there is any."""
        self._buckets = None

    def send_by(self, sender: WeightSender) -> None:
        """Take over the engine's own sender, which `send` calls."""
        self._sender = sender

    def send(self, version: int) -> None:
        """Hand the weights to the engine by its own sender. That runs in the first rank; the others take part in gathering them."""
        if self._rank > 0:
            for _ in self._weights():
                pass
        elif self._sender is not None:
            self._sender.send(self._as_served(), version)

    def close(self) -> None:
        """Give back what the sender holds."""
        if self._sender is not None:
            self._sender.close()

    def _travelling(self) -> Iterator[tuple[str, Tensor]]:
        """The weights as this rank keeps them until a bucket is full: the first rank only, where there are several, has use for
        their values."""
        for name, tensor in self._as_served():
            yield name, tensor if self._ranks == 1 else tensor.to("cpu" if self._rank == 0 else "meta")

    def _as_served(self) -> Iterator[tuple[str, Tensor]]:
        """The weights in the engine's format. The first rank alone quantises."""
        weights = self._weights()
        if self._quantised is None:
            return weights
        from slime_core.tensors.quantised_weights import quantised_like

        own = weights if self._rank == 0 else ((name, tensor.to("meta")) for name, tensor in weights)
        return quantised_like(own, self._quantised)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """The actor's weights under their Hugging Face names, or those of a kept copy. All ranks iterate together."""
        if self._version is None:
            yield from self._actor.weights()
            return
        actor = keeping(self._actor)
        with actor.with_kept_weights(self._version):
            for name, tensor in actor.weights():
                yield name, tensor.clone()  # what is read behind the last one is the present weights
