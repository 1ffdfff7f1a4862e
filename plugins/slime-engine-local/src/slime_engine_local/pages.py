"""Keys and values in pages: where the tokens of requests lie while a device decodes them with fixed shapes (`static_decoding`).

All pages of a layer are one tensor, made once, so that its address never changes. A request has a row in a table of page numbers,
which an attention kernel follows. The full pages of a prefix that several requests share are stored once, and what is left of it
behind the last full page is copied for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from slime_core.tensors.transfer import numbers_on
from slime_engine_local.cache import CachedSequence, KVCache, Row

PAGE = 256
"""Tokens in a page: what flash attention asks of paged keys."""


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
        """How many pages a request may take that brings so many tokens."""
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

    def adopt(self, sequence: CachedSequence, cache: KVCache) -> PagedSequence:
        """Take over what a cache of rows holds of a request, whose own row leaves that cache. There must be pages for it."""
        prefix, shared, row = sequence.prefix, sequence.shared, sequence.row
        full = shared // self.page
        common = self._prefixes.setdefault(prefix, []) if prefix is not None else []
        new_common = range(len(common), full)
        common += [self._take() for _ in new_common]
        own_row = Row(row.pool, -1, row.length)
        found = PagedSequence(own_row, prefix, shared, sequence.shift, slot=self._slots.pop(), pages=common[:full])
        for number in found.pages:
            self._readers[number] += 1
        for number in new_common:  # and one for the list of the prefix
            self._readers[common[number]] += 1
        self.grow(found, 0)
        first = new_common.start * self.page if new_common else full * self.page
        pages = [*common[new_common.start : full], *found.pages[full:]]
        places = [page * self.page + j for page in pages for j in range(self.page)][: found.length - first]
        at = numbers_on(self.device, places)
        held = [(prefix, 0, shared)] if prefix is not None and first < shared else []
        held += [(row, shared, row.length)] if row.length else []
        stored = [dict(one.pool.stored(one.index, length)) for one, _, length in held]
        for index in stored[0] if stored else ():
            parts = [layers[index] for layers in stored]
            for number, own in enumerate(self.layer(index, *parts[0])):
                new = torch.cat([part[number] for part in parts])[first - held[0][1] :]
                own.view(-1, *own.shape[2:]).index_copy_(0, at, new)
        cache.remove(row)
        self._sequences.add(found)
        return found

    def grow(self, sequence: PagedSequence, tokens: int) -> None:
        """Make sure that a sequence has pages for so many more tokens."""
        if more := self.missing(sequence, tokens):
            sequence.pages += [self._take() for _ in range(more)]
            for number in sequence.pages[-more:]:
                self._readers[number] += 1
        if more or not tokens:
            row = numbers_on(self.device, sequence.pages, torch.int32)
            self.table[sequence.slot, : len(sequence.pages)].copy_(row, non_blocking=True)

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
        width: how many pages of a sequence are looked at.
        kernel: computes (B, heads, size) from queries, pages of keys and values, (B, width) page numbers, (B,) lengths, scale and
            window; `attention_over_pages` or a faster one.

    Attributes:
        settings: as those of `ForwardPass`.
    """

    def __init__(self, pages: Pages, slots: Tensor, positions: Tensor, width: int, kernel: Kernel) -> None:
        self.settings: dict[int, tuple[float, int | None]] = {}
        self._pages, self._kernel = pages, kernel
        self._table = pages.table[:, :width].index_select(0, slots)
        page = self._table.gather(1, (positions // pages.page)[:, None])[:, 0]
        self._at = page.long() * pages.page + positions % pages.page
        self._lengths = (positions + 1).int()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """Store keys and values, and compute attention: (1, heads, B, size) to (1, B, heads, size)."""
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        both = self._pages.layer(layer, key, value)
        for pages, new in zip(both, (key, value), strict=True):
            pages.view(-1, *pages.shape[2:]).index_copy_(0, self._at, new)
        return self._kernel(query, *both, self._table, self._lengths, scale, window)[None]


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


def flash_over_pages(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, scale: float, window: int | None
) -> Tensor:
    """The same by torch's flash attention, which reads no more than the tokens that there are."""
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 takes grouped heads as they are, and does not know the word.
    grouped: dict[str, Any] = (
        {"enable_gqa": query.shape[1] != keys.shape[2]} if "enable_gqa" in kernel_options() else {}
    )
    bounds = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
    out = varlen_attn(
        query.contiguous(),
        keys,
        values,
        bounds,
        None,
        1,
        table.shape[1] * keys.shape[1],
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
        seqused_k=lengths,
        block_table=table,
    )
    assert isinstance(out, Tensor)  # a pair only where more is asked for
    return out


@cache
def kernel_options() -> frozenset[str]:
    """What flash attention of variable lengths can be told in this torch; nothing where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(signature(varlen_attn).parameters)
