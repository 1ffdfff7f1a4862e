"""One forward pass over one packed row of tokens: the attention that keeps requests apart.

First in the row comes one token of every request that is being decoded, then pieces of several tokens that are new. The
model's attention layers hand their queries, keys and values to `attend` through transformers' `AttentionInterface`;
everything else in a model works on each token alone. So requests never see each other, and the large matrix products
are done once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from slime_engine_local.cache import Chain, KVCache, Pool, Row
from slime_engine_local.errors import EngineError

NAME = "slime_engine_local"


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens that follow those of a chain. They are stored in its own row, which has room for them."""

    chain: Chain
    tokens: Sequence[int]


@dataclass(frozen=True)
class _Own:
    """The first n rows of a pool, each the own row of one decoded request. `heads` are those of keys.

    Attributes:
        requests: which of the B * heads rows of queries these are.
        columns: tokens of the longest, the new one included.
        rows, lengths: [n * heads] row of the pool's tensors, and the tokens stored there before.
        places: [n * heads] the same as one number, counting all tokens that there is room for.
        mask: see `Pass.plan`.
    """

    pool: Pool
    requests: slice
    columns: int
    rows: Tensor
    lengths: Tensor
    places: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Shared:
    """All rows of a pool of beginnings. Each has room for the queries of the same number of readers, G.

    Attributes:
        columns: tokens of the longest beginning.
        readers: [rows * heads * G] which of the B * heads rows of queries to ask with; any where there are fewer than G.
        mask: see `Pass.plan`.
    """

    pool: Pool
    columns: int
    readers: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Plan:
    """How a layer decodes.

    Attributes:
        places: [B * heads] where each row of queries is among those of `shared`, one after the other.
        without: [B * heads, 1, 1] 0, or a very low number for requests that have no shared beginning. None: all have.
    """

    own: list[_Own]
    shared: list[_Shared]
    places: Tensor
    without: Tensor | None


class Pass:
    """What the attention layers need to know about one forward pass.

    Args:
        cache: holds what came before, and is written.
        decoded: one token each. Their own rows are the first in their pools, and `decoded` is in the order of pools and
            of rows.
        pieces: tokens that are new. A piece may have as its prefix the row of a piece before it.

    Attributes:
        settings: scale and window of the layers that have attended.
    """

    def __init__(self, cache: KVCache, decoded: Sequence[Chain], pieces: Sequence[Piece], device: torch.device) -> None:
        self.cache, self.decoded, self.pieces, self._device = cache, decoded, pieces, device
        self.settings: dict[int, tuple[float, int | None]] = {}
        self._plans: dict[Any, _Plan] = {}

    def plan(self, heads: int, queries: int, window: int | None, dtype: torch.dtype) -> _Plan:
        """For layers with so many heads of keys, and queries for each of them.

        Masks are added to scores [rows * heads, G * queries, columns]: 0, or a very low number where a query must not
        look; None when all look everywhere. Not -inf, of which a query that sees nothing would make NaN.
        """
        key = heads, queries, window, dtype
        if key not in self._plans:
            low = torch.finfo(dtype).min / 2

            def mask(visible: Tensor) -> Tensor | None:
                """From [rows, G, columns]."""
                if visible.all():
                    return None
                full = torch.zeros(visible.shape, dtype=dtype, device=self._device).masked_fill_(~visible, low)
                return full.repeat_interleave(queries, 1).repeat_interleave(heads, 0)

            shared, places = self._shared_rows(heads, window, mask)
            missing = self._tensor([[[low if place is None else 0.0]] for place in places], dtype)
            self._plans[key] = _Plan(
                self._own_rows(heads, window, mask),
                shared,
                self._tensor([place or 0 for place in places]),
                None if None not in places else missing,
            )
        return self._plans[key]

    def _own_rows(self, heads: int, window: int | None, mask: Callable[[Tensor], Tensor | None]) -> list[_Own]:
        parts: list[_Own] = []
        start = 0
        for pool, group in groupby(self.decoded, key=lambda chain: chain.row.pool):
            stored = [chain.row.length for chain in group]
            requests = slice(start * heads, (start := start + len(stored)) * heads)
            lengths = self._tensor(stored)
            column = torch.arange(max(stored) + 1, device=self._device)
            visible = column <= lengths[:, None, None]
            if window is not None:
                visible &= column > lengths[:, None, None] - window
            rows = torch.arange(len(stored) * heads, device=self._device)
            lengths = lengths.repeat_interleave(heads)
            places = rows * pool.capacity + lengths
            parts.append(_Own(pool, requests, len(column), rows, lengths, places, mask(visible)))
        return parts

    def _shared_rows(
        self, heads: int, window: int | None, mask: Callable[[Tensor], Tensor | None]
    ) -> tuple[list[_Shared], list[int | None]]:
        readers: dict[Row, list[int]] = {}
        for number, chain in enumerate(self.decoded):
            if chain.prefix is not None:
                readers.setdefault(chain.prefix, []).append(number)
        places: list[int | None] = [None] * (len(self.decoded) * heads)
        parts: list[_Shared] = []
        before = 0
        for pool in dict.fromkeys(row.pool for row in readers):
            by_row = [readers.get(row, []) for row in pool.rows]
            most = max(map(len, by_row))
            asked = []
            for number, head in product(range(len(by_row)), range(heads)):
                for member, request in enumerate(by_row[number]):
                    places[request * heads + head] = before + (number * heads + head) * most + member
                padded = [*by_row[number], *([0] * (most - len(by_row[number])))]
                asked += [request * heads + head for request in padded]
            before += len(asked)
            # Who is there to fill a row sees everything, so that no mask is needed for it.
            every = [[None] * (most - len(members)) for members in by_row]
            chains = [
                [*(self.decoded[request] for request in members), *rest]
                for members, rest in zip(by_row, every, strict=True)
            ]
            columns = max(chain.shared for members in chains for chain in members if chain)
            lengths = self._tensor([[chain.shared if chain else columns for chain in members] for members in chains])
            column = torch.arange(columns, device=self._device)
            visible = column < lengths[..., None]
            if window is not None:
                ends = self._tensor([[chain.length if chain else 0 for chain in members] for members in chains])
                visible &= column > ends[..., None] - window
            parts.append(_Shared(pool, columns, self._tensor(asked), mask(visible)))
        return parts, places

    def _tensor(self, numbers: Sequence[Any], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(numbers, dtype=dtype, device=self._device)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    slime_pass: Pass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one packed row, as `AttentionInterface` calls it.

    Args:
        module: the attention layer, with its number in `layer_idx`.
        query, key, value: [1, heads, T, head size], positions already encoded; keys and values may have fewer heads.
        slime_pass: how the T tokens belong to requests.

    Returns:
        [1, T, heads, head size], and no attention weights.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise EngineError(f"The engine 'local' cannot serve this model: its attention uses {name}.")
    if slime_pass is None or attention_mask is not None or not getattr(module, "is_causal", True):
        raise EngineError("The engine 'local' cannot serve this model: its attention is not plain and causal.")
    layer: int = module.layer_idx
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    slime_pass.settings[layer] = scale, sliding_window
    start = len(slime_pass.decoded)
    outputs = []
    if start:
        q, k, v = (x[0, :, :start].transpose(0, 1) for x in (query, key, value))
        outputs.append(_decode(slime_pass, layer, q, k, v, scale, sliding_window))
    for piece in slime_pass.pieces:
        own = slice(start, start := start + len(piece.tokens))
        seen = _read_piece(
            piece.chain, layer, query[:, :, own], key[:, :, own], value[:, :, own], scale, sliding_window
        )
        outputs.append(seen[0].transpose(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _decode(
    step: Pass, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
) -> Tensor:
    """One token of each request. Its attention to its own row and to its beginning are computed apart, the latter for
    all that read the same row in one product, and put together by their shares of the sum of exponentials.

    Each operation costs more than what it computes, so there are few: the rows of all tensors are requests times heads of
    keys, and the heads that share keys are the queries of a row.

    Args:
        query: [B, heads, size]. `key`, `value`: [B, key heads, size].

    Returns:
        [B, heads, size].
    """
    heads = key.shape[1]
    asked = query.reshape(len(key) * heads, -1, query.shape[2])
    plan = step.plan(heads, asked.shape[1], window, query.dtype)
    key, value = key.reshape(-1, key.shape[2]), value.reshape(-1, value.shape[2])
    outputs, sums = [], []
    for own in plan.own:
        keys, values = own.pool.layer(layer, heads, key, value)
        keys[own.rows, :, own.lengths] = key[own.requests]
        values.view(-1, values.shape[2]).index_copy_(0, own.places, value[own.requests])
        _attend_to(keys, values, len(own.rows), own, asked[own.requests], scale, outputs, sums if plan.shared else None)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if plan.shared:
        seen, totals = [], []
        for shared in plan.shared:
            keys, values = shared.pool.layer(layer, heads, key, value)
            rows = len(shared.pool.rows) * heads
            queries = asked.index_select(0, shared.readers).view(rows, -1, asked.shape[2])
            _attend_to(keys, values, rows, shared, queries, scale, seen, totals)
        size = asked.shape[1]
        both = [torch.cat([x.view(-1, size, x.shape[2]) for x in xs]) for xs in (seen, totals)]
        beginning, total = (x.index_select(0, plan.places) for x in both)
        total -= sums[0] if len(sums) == 1 else torch.cat(sums)
        if plan.without is not None:
            total += plan.without
        output = torch.lerp(output, beginning, torch.sigmoid(total).to(output.dtype))
    return output.view(query.shape[0], query.shape[1], -1)


def _attend_to(
    keys: Tensor,
    values: Tensor,
    rows: int,
    part: _Own | _Shared,
    queries: Tensor,
    scale: float,
    outputs: list[Tensor],
    sums: list[Tensor] | None,
) -> None:
    """Attention of `queries` [rows, n, size] to the first rows and columns of a pool. Appends the output [rows, n, size],
    and to `sums`, if it is wanted, the logarithm of the sum of exponentials [rows, n, 1]."""
    keys, values = keys[:rows, :, : part.columns], values[:rows, : part.columns]
    if part.mask is None:
        scores = torch.bmm(queries, keys).mul_(scale)
    else:
        scores = torch.baddbmm(part.mask, queries, keys, alpha=scale)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
    outputs.append(torch.bmm(weights.to(values.dtype), values))
    if sums is not None:  # the largest weight is exp(largest score) / sum
        sums.append(scores.amax(-1, keepdim=True).sub_(weights.amax(-1, keepdim=True).log_()))


def _read_piece(
    chain: Chain, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
) -> Tensor:
    """Several tokens of one request, which see what is stored of it and those before them among themselves.

    Args:
        query, key, value: [1, heads, n, size].

    Returns:
        [1, heads, n, size].
    """
    row, (before, new) = chain.row, (chain.row.length, query.shape[2])
    heads = key.shape[1]
    keys, values = (x[row.index * heads :][:heads] for x in row.pool.layer(layer, heads, key, value))
    keys[:, :, before : before + new] = key[0].mT
    values[:, before : before + new] = value[0]
    shared_heads = query.shape[1] != heads
    if not chain.length and (window is None or new <= window):
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared_heads)
    key, value = keys[None, :, :, : before + new].mT, values[None, :, : before + new]
    if chain.prefix is not None:
        first, shared = chain.prefix.index * heads, chain.shared
        keys, values = (x[first : first + heads] for x in chain.prefix.pool.layer(layer, heads, key, value))
        key = torch.cat([keys[None, :, :, :shared].mT, key], 2)
        value = torch.cat([values[None, :, :shared], value], 2)
    column = torch.arange(chain.length + new, device=query.device)
    place = column[chain.length :, None]
    mask = column <= place
    if window is not None:
        mask &= column > place - window
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=shared_heads)


AttentionInterface.register(NAME, attend)
