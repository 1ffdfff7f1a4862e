"""`KeptWeights`: copies of a model's trained weights in host memory, which the model can have again for a while, and
`HasKeptWeights`, by which a train backend has them. For those that offer `slime_core.contracts.train_backend.KeepsWeights`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

Copy = dict[str, Tensor]
"""Tensors in host memory by the names of parameters; spread ones are spread likewise."""


class HasKeptWeights:
    """The methods of `slime_core.contracts.train_backend.KeepsWeights`, for a train backend that has `KeptWeights` as `_kept`. Copies
    are of this rank's part of the weights."""

    _kept: KeptWeights

    def kept_weights(self) -> list[str]:
        """The names of the copies."""
        return list(self._kept.copies)

    def keep_weights(self, name: str) -> None:
        """Keep a copy of the trained weights in host memory."""
        self._kept.keep(name)

    def forget_weights(self, name: str) -> None:
        """Let a copy go."""
        self._kept.forget(name)

    def with_kept_weights(self, name: str) -> AbstractContextManager[None]:
        """A context in which the model has the weights of a copy."""
        return self._kept.in_use(name)


class KeptWeights:
    """Copies by name. What is not trained does not change, and is not copied.

    Args:
        parameters: the model's parameters by name.
        own: this rank's part of a tensor that may be spread, in the same memory.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], own: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> None:
        self._trained = {name: tensor.detach() for name, tensor in parameters.items() if tensor.requires_grad}
        self._own = own
        self.copies: dict[str, Copy] = {}

    def keep(self, name: str) -> None:
        """Keep a copy of the present weights under this name, in place of one that has it."""
        self.copies[name] = self._copied()

    def forget(self, name: str) -> None:
        """Let a copy go; does nothing if there is none."""
        self.copies.pop(name, None)

    def read(self, name: str, fill: Callable[[], None]) -> None:
        """Keep what `fill` makes of the weights, which are what they were afterwards."""
        present = self._copied()
        try:
            fill()
            self.keep(name)
        finally:
            self._set(present)

    @contextmanager
    def in_use(self, name: str) -> Iterator[None]:
        """A context in which the model has the weights of a copy; afterwards it has the present ones, bit for bit.

        Raises:
            KeyError: there is no such copy.
        """
        kept, present = self.copies[name], self._copied()
        try:
            self._set(kept)
            yield
        finally:
            self._set(present)

    def _copied(self) -> Copy:
        return {name: tensor.to("cpu", copy=True) for name, tensor in self._trained.items()}

    @torch.no_grad()
    def _set(self, copy: Copy) -> None:
        for name, tensor in copy.items():
            self._own(self._trained[name]).copy_(self._own(tensor))
