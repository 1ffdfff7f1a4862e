"""Keys and values in pages: where the tokens of requests lie while a device decodes them with fixed shapes (`static_decoding`).

All pages of a layer are one tensor, made once, so that its address never changes. A request has a row in a table of page numbers,
which an attention kernel follows. The full pages of a prefix that several requests share are stored once, and what is left of it
behind the last full page is copied for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slime_core.tensors.transfer import numbers_on, sent
from slime_engine_local.cache import CachedSequence, KVCache, Pool, Row
from slime_engine_local.layer_operations import Places

PAGE = 64
"""Tokens in a page: half of one is empty in every sequence, and attention reads 64 tokens of a head without looking at the table."""


@dataclass(eq=False)
class PagedSequence(CachedSequence):
    """A request whose tokens are in pages.

    Attributes:
        slot: its row in the table.
        pages: the numbers of its pages.
    """

    slot: int = 0
    pages: list[int] = field(default_factory=list)

    def __hash__(self) -> int:
        return id(self)


class Pages:
    """The pages of one engine. Page 0 and the last slot take what is computed only to fill a batch up.

    Args:
        tokens: how many tokens there is room for.
        requests: how many requests are decoded together at most.
        longest: tokens of the longest sequence.

    Attributes:
        table: (requests + 1, width) int32, the pages of every slot.
    """

    def __init__(self, tokens: int, requests: int, longest: int, device: torch.device) -> None:
        self.page, self.device = PAGE, device
        self.count = -(-tokens // PAGE) + requests + 1
        self.width = -(-longest // PAGE)
        self.table = torch.zeros(requests + 1, self.width, dtype=torch.int32, device=device)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._free = list(range(self.count - 1, 0, -1))
        self._slots = list(range(requests - 1, -1, -1))
        self._readers = [0] * self.count
        self._prefixes: dict[Row, list[int]] = {}
        self._sequences: set[PagedSequence] = set()

    def __len__(self) -> int:
        """How many tokens of requests are stored here, shared ones not counted."""
        return sum(sequence.row.length for sequence in self._sequences)

    @property
    def free(self) -> int:
        """How many pages are free."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """How many pages a request may take that adds so many tokens to what is stored: those of its last page may lie behind a part
        of a shared one."""
        return -(-tokens // self.page) + 1

    def missing(self, sequence: PagedSequence, tokens: int) -> int:
        """How many pages a sequence lacks for so many more tokens."""
        return max(0, -(-(sequence.length + tokens) // self.page) - len(sequence.pages))

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The pages of a layer's keys and values, (pages, page, heads, size).

        Args:
            key, value: (…, heads, size), from which a new layer takes heads, size and dtype.
        """
        if index not in self._layers:
            keys, values = (x.new_zeros(self.count, self.page, *x.shape[-2:]) for x in (key, value))
            self._layers[index] = keys, values
        return self._layers[index]

    def adopt(self, sequences: Sequence[CachedSequence], cache: KVCache) -> list[PagedSequence]:
        """Take over what a cache of rows holds of requests, whose own rows leave that cache. There must be pages for it."""
        moves: dict[Pool, list[Tensor]] = {}
        adopted = [self._adopted(sequence, moves) for sequence in sequences]
        if not adopted:
            return []
        table = torch.zeros(len(adopted), max(len(sequence.pages) for sequence in adopted), dtype=torch.int32)
        for row, found in zip(table, adopted, strict=True):
            row[: len(found.pages)] = torch.tensor(found.pages, dtype=torch.int32)
        slots = numbers_on(self.device, [sequence.slot for sequence in adopted])
        self.table[:, : table.shape[1]].index_copy_(0, slots, sent(table, self.device))
        for pool, places in moves.items():
            rows, tokens, at = sent(torch.cat(places, 1), self.device).unbind(0)
            for index, (key, value) in pool.gather(rows, tokens):
                Places(*self.layer(index, key, value), at).store(key, value)
        for sequence in sequences:
            cache.remove(sequence.row)
        self._sequences.update(adopted)
        return adopted

    def _adopted(self, sequence: CachedSequence, moves: dict[Pool, list[Tensor]]) -> PagedSequence:
        """Give pages to a request, and say what must be moved to them: per pool (3, tokens) rows, tokens and places."""
        prefix, shared, row = sequence.prefix, sequence.shared, sequence.row
        full = shared // self.page
        common = self._prefixes.setdefault(prefix, []) if prefix is not None else []
        # Of the whole prefix at once, however little of it this one reads: `needed` counts them where the prefix is made.
        new_common = range(len(common), prefix.length // self.page if prefix is not None else 0)
        common += [self._take() for _ in new_common]
        own_row = Row(Pool(0), -1, row.length)  # that pool would keep the memory of rows that nobody reads any more
        found = PagedSequence(own_row, prefix, shared, sequence.shift, slot=self._slots.pop(), pages=common[:full])
        for number in found.pages:
            self._readers[number] += 1
        for number in new_common:  # and one for the list of the prefix
            self._readers[common[number]] += 1
        self.grow(found, 0)
        parts = (
            (prefix, 0, common, range(new_common.start * self.page, new_common.stop * self.page)),
            (prefix, 0, found.pages, range(full * self.page, shared)),
            (row, shared, found.pages, range(shared, found.length)),
        )
        for source, begin, numbers, tokens in parts:
            if source is not None and tokens:
                token = torch.arange(tokens.start, tokens.stop)
                inside, at = token - begin, torch.tensor(numbers)[token // self.page] * self.page + token % self.page
                places = torch.stack([torch.full_like(inside, source.index), inside, at])
                moves.setdefault(source.pool, []).append(places)
        return found

    def grow(self, sequence: PagedSequence, tokens: int) -> None:
        """Make sure that a sequence has pages for so many more tokens. The step that writes the first token of one writes its number to
        the table."""
        for _ in range(self.missing(sequence, tokens)):
            sequence.pages.append(self._take())
            self._readers[sequence.pages[-1]] += 1

    def remove(self, sequence: PagedSequence) -> None:
        """Let go what is stored of a request."""
        self._sequences.discard(sequence)
        self._slots.append(sequence.slot)
        self._let_go(sequence.pages)

    def forget(self, prefix: Row) -> None:
        """No request reads this prefix any more."""
        self._let_go(self._prefixes.pop(prefix, []))

    def _take(self) -> int:
        return self._free.pop()

    def _let_go(self, pages: list[int]) -> None:
        for number in pages:
            self._readers[number] -= 1
            if not self._readers[number]:
                self._free.append(number)


class StaticPass:
    """One forward pass of one new token for each of B slots, whose attention reads pages. All its shapes are fixed by B and by the
    width of the table: what it computes may be captured once and replayed.

    Args:
        slots: (B,) int64.
        positions: (B,) int64, of the new tokens.
        page: (B,) int64, the numbers of the pages that they go to, which are written to the table.
        width: how many pages of a sequence are looked at.
        kernel: computes (B, heads, size) from queries, pages of keys and values, (B, width) page numbers, (B,) lengths, scale and
            window; `attention_over_pages` or a faster one.

    Attributes:
        settings: as those of `ForwardPass`.
    """

    def __init__(
        self, pages: Pages, slots: Tensor, positions: Tensor, page: Tensor, width: int, kernel: Kernel
    ) -> None:
        self.settings: dict[int, tuple[float, int | None]] = {}
        self._pages, self._kernel = pages, kernel
        pages.table.index_put_((slots, positions // pages.page), page.int())
        self._table = pages.table[:, :width].index_select(0, slots)
        self._at = page * pages.page + positions % pages.page
        self._lengths = (positions + 1).int()

    def places(self, layer: int, heads: int, size: int, like: Tensor) -> Places:
        """Where the new keys and values of a layer go, which are of the dtype of `like`."""
        return Places(*self._pages.layer(layer, *[like.new_empty(0, heads, size)] * 2), self._at)

    def attend_to(self, stored: Places, query: Tensor, scale: float, window: int | None) -> Tensor:
        """Compute attention to what is stored: (B, heads, size) to the same shape."""
        return self._kernel(query, stored.keys, stored.values, self._table, self._lengths, scale, window)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """Store keys and values, and compute attention: (1, heads, B, size) to (1, B, heads, size)."""
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        stored = Places(*self._pages.layer(layer, key, value), self._at)
        stored.store(key, value)
        return self.attend_to(stored, query, scale, window)[None]


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, int | None], Tensor]


def attention_over_pages(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, scale: float, window: int | None
) -> Tensor:
    """Attention of one query of each of B sequences to their pages, in plain operations: (B, heads, size)."""
    key, value = (x[table].flatten(1, 2) for x in (keys, values))  # (B, tokens, key heads, size)
    column = torch.arange(key.shape[1], device=query.device)
    seen = column < lengths[:, None]
    if window is not None:
        seen &= column >= lengths[:, None] - window
    grouped = query.view(len(query), key.shape[2], -1, query.shape[2])
    scores = torch.einsum("bhgd,bthd->bhgt", grouped, key) * scale
    scores = scores.masked_fill(~seen[:, None, None], torch.finfo(scores.dtype).min / 2)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return torch.einsum("bhgt,bthd->bhgd", weights, value).reshape(len(query), -1, value.shape[3])
