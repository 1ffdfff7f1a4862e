"""`ForwardPass`: what the attention layers must know about one forward pass over one packed row of tokens.

The row begins with one token of every request that is being decoded; then come chunks of several new tokens. For the
decoded requests a plan is made once per kind of layer: which rows of the cache are read, by which queries, and with
which masks. It is used by all layers of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, product

import torch
from torch import Tensor

from slime_engine_local.cache import CachedSequence, KVCache, Pool, Row
from slime_engine_local.vision import ShownChunk

Mask = Callable[[Tensor], Tensor | None]
"""Makes the mask for the scores from what the queries may see, [rows, G, columns] of bool; None: all see everything."""
Nested = Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]


@dataclass(frozen=True, eq=False)
class Chunk:
    """New tokens that follow those of a sequence. They are stored in the sequence's own row, which has room for
    them.

    Attributes:
        shown: the images among them.
    """

    sequence: CachedSequence
    tokens: Sequence[int]
    shown: ShownChunk | None = None


@dataclass(frozen=True)
class OwnRows:
    """The first n rows of a pool, each the own row of one decoded request. H is the number of key heads.

    Attributes:
        requests: which of the B * H rows of queries belong to these requests.
        columns: the number of tokens of the longest of them, the new one included.
        slots: [n * H], where the new token goes, as an index into the pool's tensors with rows and capacity flattened.
        mask: see `ForwardPass.plan`.
    """

    pool: Pool
    requests: slice
    columns: int
    slots: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class SharedRows:
    """All rows of a pool of shared prefixes. Each has room for the queries of the same number of readers, G.

    Attributes:
        columns: the number of tokens of the longest prefix.
        readers: [rows * H * G], which of the B * H rows of queries read; where a row has fewer than G readers, any of
            them.
        mask: see `ForwardPass.plan`.
    """

    pool: Pool
    columns: int
    readers: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class DecodingPlan:
    """How a layer computes the attention of all decoded requests, B of them, with H key heads.

    Attributes:
        outputs: [B * H], where the output for each row of queries is among the outputs of all `shared`, one after the
            other.
        without_prefix: [B * H, 1, 1], 0, or a very low number for requests that have no shared prefix. None: all have
            one.
    """

    own: list[OwnRows]
    shared: list[SharedRows]
    outputs: Tensor
    without_prefix: Tensor | None


class ForwardPass:
    """One forward pass.

    Args:
        cache: holds the tokens before, and is written.
        decoded: the requests of which one token is computed. Their own rows are the first ones in their pools, and
            `decoded` is in the order of pools and of rows.
        chunks: the new tokens of other requests. A chunk may have the row of an earlier chunk as its prefix.

    Attributes:
        settings: scale and window of the attention of each layer that has run, by the layer's number.
    """

    def __init__(
        self, cache: KVCache, decoded: Sequence[CachedSequence], chunks: Sequence[Chunk], device: torch.device
    ) -> None:
        self.cache, self.decoded, self.chunks, self._device = cache, decoded, chunks, device
        self.settings: dict[int, tuple[float, int | None]] = {}
        self._plans: dict[tuple[int, int, int | None, torch.dtype], DecodingPlan] = {}

    def plan(self, heads: int, queries: int, window: int | None, dtype: torch.dtype) -> DecodingPlan:
        """Return the plan for layers with this number of key heads, and of queries for each of them.

        Masks are added to scores [rows * heads, G * queries, columns]. They are 0, or a very low number where a query
        must not look; None when all look everywhere. The number is not -inf, from which a query that sees nothing would
        make NaN.

        Args:
            window: the number of tokens that a query sees, itself included; None: all.
        """
        key = heads, queries, window, dtype
        if key not in self._plans:
            low = torch.finfo(dtype).min / 2

            def mask(visible: Tensor) -> Tensor | None:
                if visible.all():
                    return None
                full = torch.zeros(visible.shape, dtype=dtype, device=self._device).masked_fill_(~visible, low)
                return full.repeat_interleave(queries, 1).repeat_interleave(heads, 0)

            shared, outputs = self._shared_rows(heads, window, mask)
            missing = self._tensor([[[low if output is None else 0.0]] for output in outputs], dtype)
            self._plans[key] = DecodingPlan(
                self._own_rows(heads, window, mask),
                shared,
                self._tensor([output or 0 for output in outputs]),
                None if None not in outputs else missing,
            )
        return self._plans[key]

    def _own_rows(self, heads: int, window: int | None, mask: Mask) -> list[OwnRows]:
        """Return the decoded requests' own rows, one entry for each pool."""
        parts: list[OwnRows] = []
        start = 0
        for pool, group in groupby(self.decoded, key=lambda sequence: sequence.row.pool):
            stored = [sequence.row.length for sequence in group]
            requests = slice(start * heads, (start := start + len(stored)) * heads)
            lengths = self._tensor(stored)
            column = torch.arange(max(stored) + 1, device=self._device)
            visible = column <= lengths[:, None, None]
            if window is not None:
                visible &= column > lengths[:, None, None] - window
            rows = torch.arange(len(stored) * heads, device=self._device)
            slots = rows * pool.capacity + lengths.repeat_interleave(heads)
            parts.append(OwnRows(pool, requests, len(column), slots, mask(visible)))
        return parts

    def _shared_rows(self, heads: int, window: int | None, mask: Mask) -> tuple[list[SharedRows], list[int | None]]:
        """Return the shared rows that decoded requests read, one entry for each pool, and for each row of queries the
        index of its output; None if the request has no shared prefix."""
        readers: dict[Row, list[int]] = {}
        for number, sequence in enumerate(self.decoded):
            if sequence.prefix is not None:
                readers.setdefault(sequence.prefix, []).append(number)
        outputs: list[int | None] = [None] * (len(self.decoded) * heads)
        parts: list[SharedRows] = []
        before = 0
        for pool in dict.fromkeys(row.pool for row in readers):
            by_row = [readers.get(row, []) for row in pool.rows]
            most = max(map(len, by_row))
            asked: list[int] = []
            for number, head in product(range(len(by_row)), range(heads)):
                for member, request in enumerate(by_row[number]):
                    outputs[request * heads + head] = before + (number * heads + head) * most + member
                padded = [*by_row[number], *([0] * (most - len(by_row[number])))]
                asked += [request * heads + head for request in padded]
            before += len(asked)
            # The readers that only fill a row up see everything, so that no mask is needed for them.
            sequences: list[list[CachedSequence | None]] = [
                [*(self.decoded[request] for request in members), *([None] * (most - len(members)))]
                for members in by_row
            ]
            columns = max(sequence.shared for members in sequences for sequence in members if sequence)
            lengths = self._tensor([[s.shared if s else columns for s in members] for members in sequences])
            column = torch.arange(columns, device=self._device)
            visible = column < lengths[..., None]
            if window is not None:
                ends = self._tensor([[s.length if s else 0 for s in members] for members in sequences])
                visible &= column > ends[..., None] - window
            parts.append(SharedRows(pool, columns, self._tensor(asked), mask(visible)))
        return parts, outputs

    def _tensor(self, numbers: Nested, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(numbers, dtype=dtype, device=self._device)
