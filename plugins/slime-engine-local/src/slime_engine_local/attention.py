"""One forward pass over one packed row of tokens: the attention that keeps requests apart.

First in the row comes one token of every request that is being decoded, then pieces of several tokens that are new. The
model's attention layers hand their queries, keys and values to `attend` through transformers' `AttentionInterface`;
everything else in a model works on each token alone. So requests never see each other, and the large matrix products
are done once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
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
    """The first rows of a pool, each the own row of one decoded request: those of `requests`, in their order.

    Attributes:
        columns: tokens of the longest, the new one included.
        lengths: [n] tokens stored before.
    """

    pool: Pool
    requests: slice
    columns: int
    lengths: Tensor

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens ([B, heads, size] of all requests) and return the keys [n, heads, size, columns] and values
        [n, heads, columns, size]."""
        keys, values = self.pool.layer(layer, key[:, :, None], value[:, :, None])
        rows = torch.arange(len(self.lengths), device=key.device)
        keys[rows, :, :, self.lengths] = key[self.requests]
        values[rows, :, self.lengths] = value[self.requests]
        return keys[: len(rows), :, :, : self.columns], values[: len(rows), :, : self.columns]

    def visible(self, window: int | None) -> Tensor:
        """[n, 1, columns] of a query, true where it may look: at what is stored and itself, `window` tokens in all."""
        column = torch.arange(self.columns, device=self.lengths.device)
        last = self.lengths[:, None, None]
        visible = column <= last
        return visible if window is None else visible & (column > last - window)


@dataclass(frozen=True)
class _Shared:
    """All rows of a pool of beginnings, and who reads them. Each row has room for the queries of G readers.

    Attributes:
        columns: tokens of the longest beginning.
        members: [rows * G] numbers of the decoded requests that read each row; any number where there are fewer than G.
        lengths, ends: [rows, G] tokens of the beginning that each member reads, and place of its newest token.
        readers: [R] numbers of all that read one.
        places: [R] where each of them is in `members`.
    """

    pool: Pool
    columns: int
    members: Tensor
    lengths: Tensor
    ends: Tensor
    readers: Tensor
    places: Tensor

    def stored(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [rows, heads, size, columns] and values [rows, heads, columns, size]."""
        keys, values = self.pool.layer(layer, key[:, :, None], value[:, :, None])
        rows = len(self.lengths)
        return keys[:rows, :, :, : self.columns], values[:rows, :, : self.columns]

    def visible(self, window: int | None) -> Tensor:
        """[rows, G, columns], true where a member may look; some may see nothing at all."""
        column = torch.arange(self.columns, device=self.lengths.device)
        visible = column < self.lengths[..., None]
        return visible if window is None else visible & (column > self.ends[..., None] - window)

    def together(self, x: Tensor) -> Tensor:
        """What the requests ask ([B, heads, queries, size]), by row: [rows, heads, G * queries, size]."""
        return x.index_select(0, self.members).unflatten(0, self.lengths.shape).transpose(1, 2).flatten(2, 3)

    def apart(self, x: Tensor) -> Tensor:
        """The inverse for the readers: [R, heads, queries, size]."""
        return x.unflatten(2, (self.lengths.shape[1], -1)).transpose(1, 2).flatten(0, 1).index_select(0, self.places)


class Pass:
    """What the attention layers need to know about one forward pass.

    Args:
        cache: holds what came before, and is written.
        decoded: one token each. Their own rows are the first in their pools, and `decoded` is in the order of pools and
            of rows.
        pieces: tokens that are new. A piece may have as its prefix the row of a piece before it.
    """

    def __init__(self, cache: KVCache, decoded: Sequence[Chain], pieces: Sequence[Piece], device: torch.device) -> None:
        self.cache, self.decoded, self.pieces, self._device = cache, decoded, pieces, device
        self.own = self._own_rows()
        self.shared = self._shared_rows()
        self._masks: dict[Any, Tensor | None] = {}

    def _own_rows(self) -> list[_Own]:
        parts: list[_Own] = []
        start = 0
        for pool, group in groupby(self.decoded, key=lambda chain: chain.row.pool):
            lengths = [chain.row.length for chain in group]
            requests = slice(start, start := start + len(lengths))
            parts.append(_Own(pool, requests, max(lengths) + 1, self._tensor(lengths)))
        return parts

    def _shared_rows(self) -> list[_Shared]:
        pools: dict[Pool, dict[Row, list[int]]] = {}
        for number, chain in enumerate(self.decoded):
            if chain.prefix is not None:
                pools.setdefault(chain.prefix.pool, {}).setdefault(chain.prefix, []).append(number)
        parts = []
        for pool, rows in pools.items():
            most = max(map(len, rows.values()))
            by_row = [rows.get(row, []) for row in pool.rows]
            padded = [[*numbers, *([numbers[0] if numbers else 0] * (most - len(numbers)))] for numbers in by_row]
            chains = [[self.decoded[number] for number in numbers] for numbers in padded]
            lengths = [
                [chain.shared if chain.prefix is row else row.length for chain in members]
                for row, members in zip(pool.rows, chains, strict=True)
            ]
            parts.append(
                _Shared(
                    pool,
                    max(self.decoded[number].shared for numbers in by_row for number in numbers),
                    self._tensor(padded).flatten(),
                    self._tensor(lengths),
                    self._tensor([[chain.length for chain in members] for members in chains]),
                    self._tensor([number for numbers in by_row for number in numbers]),
                    self._tensor([row * most + i for row, numbers in enumerate(by_row) for i in range(len(numbers))]),
                )
            )
        return parts

    def _tensor(self, numbers: Sequence[Any]) -> Tensor:
        return torch.tensor(numbers, device=self._device)

    def mask(self, part: _Own | _Shared, window: int | None, queries: int, dtype: torch.dtype) -> Tensor | None:
        """What to add to scores [rows, heads, G * queries, columns]: 0, or a very low number where a query must not look.
        None when all look everywhere."""
        key = (part.pool, window, queries, dtype)
        if key not in self._masks:
            visible = part.visible(window)
            mask = torch.zeros(visible.shape, dtype=dtype, device=self._device)
            # Not -inf, of which a query that sees nothing would make NaN.
            mask.masked_fill_(~visible, torch.finfo(dtype).min / 2)
            mask = mask.repeat_interleave(queries, 1)[:, None]
            self._masks[key] = None if visible.all() else mask
        return self._masks[key]


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
    slime_pass.cache.layers.add(layer)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    start = len(slime_pass.decoded)
    outputs = []
    if start:
        q, k, v = (x[0, :, :start].transpose(0, 1) for x in (query, key, value))
        outputs.append(_decode(slime_pass, layer, q * scale, k, v, sliding_window))
    for piece in slime_pass.pieces:
        own = slice(start, start := start + len(piece.tokens))
        seen = _read_piece(
            piece.chain, layer, query[:, :, own], key[:, :, own], value[:, :, own], scale, sliding_window
        )
        outputs.append(seen[0].transpose(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


def _decode(step: Pass, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """One token of each request. Its attention to its own row and to its beginning are computed apart, the latter for
    all that read the same row in one product, and put together by their shares of the sum of exponentials.

    Args:
        query: [B, heads, size], scaled.
        key, value: [B, key heads, size].

    Returns:
        [B, heads, size].
    """
    # The heads that share keys become the queries of those keys, so that nothing is repeated in memory.
    grouped = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    queries = grouped.shape[2]
    outputs, sums = [], []
    for part in step.own:
        keys, values = part.store(layer, key, value)
        mask = step.mask(part, window, queries, query.dtype)
        output, total = _softmax_product(grouped[part.requests] @ keys, mask, values, want_sums=bool(step.shared))
        outputs.append(output)
        sums.append(total)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if step.shared:
        own_sums = sums[0] if len(sums) == 1 else torch.cat(sums)
        for shared in step.shared:
            keys, values = shared.stored(layer, key, value)
            mask = step.mask(shared, window, queries, query.dtype)
            seen, total = _softmax_product(shared.together(grouped) @ keys, mask, values, want_sums=True)
            share = torch.sigmoid(shared.apart(total) - own_sums.index_select(0, shared.readers))
            own = output.index_select(0, shared.readers)
            output.index_copy_(0, shared.readers, torch.lerp(own, shared.apart(seen), share.to(own.dtype)))
    return output.reshape(*query.shape[:2], -1)


def _softmax_product(scores: Tensor, mask: Tensor | None, values: Tensor, want_sums: bool) -> tuple[Tensor, Tensor]:
    """softmax(scores + mask) @ values, and the logarithm of the sum of exponentials [..., 1] if that is wanted."""
    if mask is not None:
        scores = scores.add_(mask)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
    # The largest weight is exp(largest score) / sum.
    sums = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log() if want_sums else scores
    return weights.to(values.dtype) @ values, sums


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
    keys, values = row.pool.layer(layer, key, value)
    keys[row.index, :, :, before : before + new] = key[0].mT
    values[row.index, :, before : before + new] = value[0]
    shared_heads = query.shape[1] != key.shape[1]
    if not chain.length and (window is None or new <= window):
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared_heads)
    key, value = keys[None, row.index, :, :, : before + new].mT, values[None, row.index, :, : before + new]
    if chain.prefix is not None:
        keys, values = chain.prefix.pool.layer(layer, key, value)
        number, shared = chain.prefix.index, chain.shared
        key = torch.cat([keys[None, number, :, :, :shared].mT, key], 2)
        value = torch.cat([values[None, number, :, :shared], value], 2)
    column = torch.arange(chain.length + new, device=query.device)
    place = column[chain.length :, None]
    mask = column <= place
    if window is not None:
        mask &= column > place - window
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=shared_heads)


AttentionInterface.register(NAME, attend)
