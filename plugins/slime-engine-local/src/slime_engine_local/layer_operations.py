"""What a decoder layer computes between its products, in plain operations of torch; `slime_engine_local.triton_operations` does the
same in one kernel each. Called by `slime_engine_local.decoder`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slime_core.tensors.rms_norm import rms_norm


@dataclass(frozen=True)
class HeadShape:
    """The heads of a layer.

    Attributes:
        norms: the RMS norms of its queries and of its keys; empty if it has none.
    """

    queries: int
    keys: int
    size: int
    norms: tuple[Any, ...]


@dataclass(frozen=True)
class Places:
    """Where the keys and values of T new tokens are stored.

    Attributes:
        keys, values: (pages, page, heads, size).
        at: (T,) int64, the numbers of the places, all pages in a row.
    """

    keys: Tensor
    values: Tensor
    at: Tensor

    def store(self, key: Tensor, value: Tensor) -> None:
        """Write both, (T, heads, size)."""
        for stored, new in ((self.keys, key), (self.values, value)):
            stored.view(-1, *stored.shape[2:]).index_copy_(0, self.at, new)


class LayerOperations(Protocol):
    """What lies between the products of a layer."""

    def residual(self, embedded: Tensor) -> Tensor:
        """What the layers add to, from (T, hidden) embeddings."""
        ...

    def add_norm(self, x: Tensor, added: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        """Return x + added and its RMS norm, which is read by a product."""
        ...

    def encode(
        self, projected: Tensor, heads: HeadShape, cosine: Tensor, sine: Tensor, places: Places | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (T, heads, size), with norms and positions. With `places` keys and values are stored
        there, and what is returned of them may be anything.

        Args:
            projected: (T, (queries + 2 keys) · size), contiguous.
            cosine, sine: (T, size), the encoding of positions; the first half of `sine` has its sign changed.
        """
        ...

    def gated(self, gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """Return activation(gate) · up from (T, 2 · size)."""
        ...


class PlainOperations:
    """In operations of torch."""

    def residual(self, embedded: Tensor) -> Tensor:
        """See `LayerOperations`."""
        return embedded

    def add_norm(self, x: Tensor, added: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        """See `LayerOperations`."""
        x = x if added is None else x + added
        return x, _norm(norm, x)

    def encode(
        self, projected: Tensor, heads: HeadShape, cosine: Tensor, sine: Tensor, places: Places | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `LayerOperations`."""
        queries, keys, size = heads.queries, heads.keys, heads.size
        projected = projected.view(len(projected), queries + 2 * keys, size)
        encoded = projected[:, : queries + keys]
        if heads.norms:
            parts = torch.split(encoded, [queries, keys], 1)
            encoded = torch.cat([_norm(norm, part) for norm, part in zip(heads.norms, parts, strict=True)], 1)
        encoded = (encoded * cosine[:, None]).addcmul_(encoded.roll(size // 2, -1), sine[:, None])
        query, key = torch.split(encoded, [queries, keys], 1)
        value = projected[:, queries + keys :]
        if places is not None:
            places.store(key, value)
        return query, key, value

    def gated(self, gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """See `LayerOperations`."""
        gate, up = gate_up.chunk(2, -1)
        return activation(gate) * up


def _norm(module: Any, x: Tensor) -> Tensor:
    """Normalise the last dimension as the RMS norm `module` does."""
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return rms_norm(x, module.weight, module.variance_epsilon)
    if x.dtype == torch.float32 or x.is_cuda:
        return torch.nn.functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
    normalised: Tensor = module(x)  # which computes in float32 in between
    return normalised
