"""The key-value cache. The scheduler decides what is stored in it; `slime_engine_local.attention` reads and writes it.

The cache consists of rows. A row holds the keys and values of consecutive tokens. Every request has a row of its own
for its tokens; the prefix that it has in common with other requests may be in a row that all of them read. Rows of
similar capacity (a power of two) lie together in a pool, which has one tensor for the keys of a layer and one for its
values, so that one matrix product serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_CAPACITY = 64
"""The capacity of the smallest rows, in tokens."""
SPARE_ROWS = 8
"""When the tensors of a pool must grow, they get room for so many rows more than needed. So requests that come one by
one seldom cause them to be copied."""


@dataclass(eq=False)
class Row:
    """The place in the cache for the keys and values of consecutive tokens.

    Attributes:
        index: the number of the row in its pool; it changes when other rows are removed.
        length: how many tokens are stored.
        readers: how many requests read the row as their shared prefix; 0 for a request's own row.
    """

    pool: Pool
    index: int
    length: int = 0
    readers: int = 0


@dataclass(eq=False)
class CachedSequence:
    """Where the tokens of one request are stored: the first `shared` tokens of the row `prefix`, then its own row.

    Attributes:
        shift: what is added to the number of a token for its position, behind the images of the request.
    """

    row: Row
    prefix: Row | None = None
    shared: int = 0
    shift: int = 0

    @property
    def length(self) -> int:
        """How many tokens are stored."""
        return self.shared + self.row.length


class Pool:
    """Rows of one capacity. The tensors of a layer are made when the layer first asks for them.

    Keys and values are [rows * heads, capacity, size]. Where nothing was written they hold zeros: a masked position is
    multiplied by a weight of 0, which must not meet a NaN.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[Row] = []
        self._layers: dict[int, tuple[int, Tensor, Tensor]] = {}

    def layer(self, index: int, heads: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tensors with the keys and the values of a layer, with room for all rows.

        Args:
            index: the number of the layer.
            heads: the number of key heads.
            key, value: [..., size], from which a new layer takes the head size, the dtype and the device.
        """
        if index not in self._layers:
            keys, values = (x.new_zeros(0, self.capacity, x.shape[-1]) for x in (key, value))
            self._layers[index] = heads, keys, values
        _, keys, values = self._layers[index]
        if len(keys) < len(self.rows) * heads:
            more = (len(self.rows) + SPARE_ROWS) * heads - len(keys)
            keys, values = (_with_room(x, more) for x in (keys, values))
            self._layers[index] = heads, keys, values
        return keys, values

    def gather(self, rows: Tensor, tokens: Tensor) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Yield for every layer its number and the keys and values of n tokens, each (n, heads, size).

        Args:
            rows, tokens: (n,), the rows and the places in them.
        """
        for index, (heads, keys, values) in self._layers.items():
            keys, values = (x.view(-1, heads, *x.shape[1:]) for x in (keys, values))
            yield index, (keys[rows, :, tokens], values[rows, :, tokens])

    def copy_from(self, other: Pool, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of row `source` of a pool, which may be this one, to row `target` of this
        one."""
        for index, (heads, keys, values) in list(other._layers.items()):
            own_keys, own_values = self.layer(index, heads, keys, values)
            mine, theirs = (slice(row * heads, (row + 1) * heads) for row in (target, source))
            own_keys[mine, :length] = keys[theirs, :length]
            own_values[mine, :length] = values[theirs, :length]


class KVCache:
    """All rows. Its length counts tokens, not the room around them: the memory is at most about twice that of the
    tokens, and that of a few rows."""

    def __init__(self) -> None:
        self._pools: dict[tuple[bool, int], Pool] = {}

    def __len__(self) -> int:
        """Return how many tokens are stored."""
        return sum(row.length for pool in self._pools.values() for row in pool.rows)

    def add(self, length: int, shared: bool = False) -> Row:
        """Add an empty row with room for `length` tokens."""
        pool = self._pool(length, shared)
        pool.rows.append(Row(pool, len(pool.rows)))
        return pool.rows[-1]

    def grow(self, row: Row, length: int) -> None:
        """Make sure that a request's own row has room for `length` tokens."""
        if length <= row.pool.capacity:
            return
        old, index, new = row.pool, row.index, self._pool(length, shared=False)
        row.pool, row.index = new, len(new.rows)
        new.rows.append(row)
        new.copy_from(old, index, row.index, row.length)
        self._close_gap(old, index)

    def remove(self, row: Row) -> None:
        """Remove a row."""
        self._close_gap(row.pool, row.index)

    def copy(self, source: Row, target: Row, length: int) -> None:
        """Fill the empty row `target` with the first `length` tokens of `source`."""
        target.pool.copy_from(source.pool, source.index, target.index, length)
        target.length = length

    def _pool(self, length: int, shared: bool) -> Pool:
        """The pool for rows of this length; shared rows have pools of their own."""
        capacity = max(SMALLEST_CAPACITY, 1 << (length - 1).bit_length())
        return self._pools.setdefault((shared, capacity), Pool(capacity))

    def _close_gap(self, pool: Pool, index: int) -> None:
        """Move the last row of a pool to the index of one that left. An empty pool gives its memory back."""
        last = pool.rows.pop()
        if index < len(pool.rows):
            pool.copy_from(pool, last.index, index, last.length)
            pool.rows[index], last.index = last, index
        if not pool.rows:
            self._pools = {key: other for key, other in self._pools.items() if other is not pool}


def _with_room(stored: Tensor, more: int) -> Tensor:
    """What is stored, followed by so many rows of zeros."""
    room = stored.new_zeros(more, *stored.shape[1:])
    return torch.cat([stored, room]) if len(stored) else room
