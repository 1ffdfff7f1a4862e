"""Where the keys and values of tokens lie. The scheduler decides what is stored; `slime_engine_local.attention` reads it.

A row holds consecutive tokens. The tokens of a request are in one row of its own, and the beginning that it has in
common with other requests may be in a row that all of them read. Rows of similar capacity (a power of two) lie together
in a pool, one tensor for the keys of a layer and one for its values, so that one product serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 64
ROWS_AT_ONCE = 8
"""A pool grows by so many rows more than it needs, so that requests that come one by one seldom make it move."""


@dataclass(eq=False)
class Row:
    """Consecutive tokens.

    Attributes:
        index: which row of its pool this is; it changes when other rows leave.
        length: tokens stored.
        readers: requests whose beginning this is; 0 for a request's own row.
    """

    pool: Pool
    index: int
    length: int = 0
    readers: int = 0


@dataclass(eq=False)
class Chain:
    """The tokens of one request: `shared` tokens at the beginning of the row `prefix`, then its own row."""

    row: Row
    prefix: Row | None = None
    shared: int = 0

    @property
    def length(self) -> int:
        return self.shared + self.row.length


class Pool:
    """Rows of one capacity. Layers appear when they are first asked for.

    Keys are stored transposed, [rows * heads, size, capacity], which is how the product with few queries is fastest;
    values are [rows * heads, capacity, size]. Where nothing was written they hold zeros: masked positions are multiplied
    by a weight of 0, which must not meet a NaN.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[Row] = []
        self._layers: dict[int, tuple[int, Tensor, Tensor]] = {}

    def layer(self, index: int, heads: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, with room for all rows.

        Args:
            heads: of the keys.
            key, value: [..., size]; tell the size, type and device of a new layer.
        """
        if index not in self._layers:
            keys = key.new_zeros(0, key.shape[-1], self.capacity)
            self._layers[index] = heads, keys, value.new_zeros(0, self.capacity, value.shape[-1])
        _, keys, values = self._layers[index]
        if len(keys) < len(self.rows) * heads:
            more = (len(self.rows) + ROWS_AT_ONCE) * heads - len(keys)
            keys, values = (torch.cat([x, x.new_zeros(more, *x.shape[1:])]) for x in (keys, values))
            self._layers[index] = heads, keys, values
        return keys, values

    def copy_from(self, other: Pool, source: int, target: int, length: int) -> None:
        """Copy the first tokens of row `source` of another pool (or of this) to row `target` of this."""
        for index, (heads, keys, values) in list(other._layers.items()):
            own_keys, own_values = self.layer(index, heads, keys.mT, values)
            mine, theirs = (slice(row * heads, (row + 1) * heads) for row in (target, source))
            own_keys[mine, :, :length] = keys[theirs, :, :length]
            own_values[mine, :length] = values[theirs, :length]


class KVCache:
    """All rows. Counts tokens, not the room around them: the memory is at most about twice that of the tokens, and that
    of a few rows."""

    def __init__(self) -> None:
        self._pools: dict[tuple[bool, int], Pool] = {}

    def __len__(self) -> int:
        """Tokens stored."""
        return sum(row.length for pool in self._pools.values() for row in pool.rows)

    def add(self, length: int, shared: bool = False) -> Row:
        """A row with room for `length` tokens, none of them stored yet."""
        pool = self._pool(length, shared)
        pool.rows.append(Row(pool, len(pool.rows)))
        return pool.rows[-1]

    def grow(self, row: Row, length: int) -> None:
        """Let a request's own row have room for `length` tokens."""
        if length <= row.pool.capacity:
            return
        old, index, new = row.pool, row.index, self._pool(length, shared=False)
        row.pool, row.index = new, len(new.rows)
        new.rows.append(row)
        new.copy_from(old, index, row.index, row.length)
        self._close_gap(old, index)

    def remove(self, row: Row) -> None:
        self._close_gap(row.pool, row.index)

    def copy(self, source: Row, target: Row, length: int) -> None:
        """Begin an empty row with the first tokens of another."""
        target.pool.copy_from(source.pool, source.index, target.index, length)
        target.length = length

    def _pool(self, length: int, shared: bool) -> Pool:
        capacity = max(SMALLEST, 1 << (length - 1).bit_length())
        return self._pools.setdefault((shared, capacity), Pool(capacity))

    def _close_gap(self, pool: Pool, index: int) -> None:
        """The last row of a pool takes the place of one that left; an empty pool gives its memory back."""
        last = pool.rows.pop()
        if index < len(pool.rows):
            pool.copy_from(pool, last.index, index, last.length)
            pool.rows[index], last.index = last, index
        if not pool.rows:
            self._pools = {key: other for key, other in self._pools.items() if other is not pool}
