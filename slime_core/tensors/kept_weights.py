"""`KeptWeights`: copies of a model's trained weights in host memory, which the model can have again for a while, and
`HasKeptWeights`, by which a train backend has them. For those that offer `slime_core.contracts.train_backend.KeepsWeights`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """Copies by name. What is not trained does not change, and is not copied; a run that goes on may train others than before.

    Args:
        parameters: the model's parameters by name.
        own: this rank's part of a tensor that may be spread, in the same memory.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], own: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> None:
        self._parameters = {name: tensor.detach() for name, tensor in parameters.items()}
        self._trained = [name for name, tensor in parameters.items() if tensor.requires_grad]
        self._own = own
        self.copies: dict[str, Copy] = {}

    def keep(self, name: str) -> None:
        """Keep a copy of the present weights under this name, in place of one that has it."""
        self.copies[name] = self._copied(self._trained)

    def forget(self, name: str) -> None:
        """Let a copy go; does nothing if there is none."""
        self.copies.pop(name, None)

    def bring_back(self, copies: Mapping[str, Copy]) -> None:
        """Have the copies of a stopped run, and no other. What that did not train was always what the model has now."""
        self.copies = {
            name: {**self._copied([own for own in self._trained if own not in copy]), **copy}
            for name, copy in copies.items()
        }

    def read(self, name: str, fill: Callable[[], None]) -> None:
        """Keep what `fill` makes of the weights, which are what they were afterwards."""
        present = self._copied(self._trained)
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
        kept = self.copies[name]
        present = self._copied(kept)
        try:
            self._set(kept)
            yield
        finally:
            self._set(present)

    def _copied(self, names: Iterable[str]) -> Copy:
        return {name: self._parameters[name].to("cpu", copy=True) for name in names}

    @torch.no_grad()
    def _set(self, copy: Copy) -> None:
        for name, tensor in copy.items():
            self._own(self._parameters[name]).copy_(self._own(tensor))
