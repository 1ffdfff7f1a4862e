"""The weights of products, rounded once for all micro-batches of a step. A train backend makes one for its model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class RoundedWeights:
    """Copies of weights in half precision.

    Args:
        dtype: of the copies.
        keep: copies are kept inside of `unchanged`; else each is made anew whenever it is read.
    """

    def __init__(self, dtype: torch.dtype, keep: bool = True) -> None:
        self.dtype, self._keep = dtype, keep
        self._kept: dict[Hashable, Tensor] | None = None

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """No weight changes inside of this context, so that copies stay right; behind it they are gone."""
        if not self._keep or self._kept is not None:
            yield
            return
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def of(self, weights: Sequence[Tensor]) -> Tensor:
        """The weights below one another, rounded."""
        key = tuple(map(id, weights))
        if self._kept is not None and (kept := self._kept.get(key)) is not None:
            return kept
        with torch.no_grad():
            first = weights[0]
            rows = sum(len(weight) for weight in weights)
            copy = torch.empty(rows, *first.shape[1:], dtype=self.dtype, device=first.device)
            for part, weight in zip(torch.split(copy, [len(weight) for weight in weights]), weights, strict=True):
                part.copy_(weight)
        if self._kept is not None:
            self._kept[key] = copy
        return copy
