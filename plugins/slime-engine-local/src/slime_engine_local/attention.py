"""The keys and values of all running requests, and the attention that reads them.

One forward pass works on one packed row of tokens: first one token of every request that is being decoded, then the
whole prompts of the requests that join. The model's attention layers hand their queries, keys and values to `attend`
through transformers' `AttentionInterface`; everything else in a model works on each token alone. So requests never see
each other, and the large matrix products are done once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from slime_engine_local.errors import EngineError

NAME = "slime_engine_local"


class KVCache:
    """Keys and values of the running requests: request number `slot` owns row `slot` in every layer.

    Layers appear at their first write. Rows and columns grow by doubling and hold zeros where nothing was written:
    masked positions are multiplied by a weight of 0, which must not meet a NaN.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Layers that have been written."""
        return len(self._layers)

    def layer(self, index: int, key: Tensor, value: Tensor, slots: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [≥ slots, heads, ≥ length, head size] of a layer. `key` and `value` ([…, heads, n, size])
        tell the shape, type and device of a new one."""
        if index not in self._layers:
            shapes = [(slots, x.shape[-3], length, x.shape[-1]) for x in (key, value)]
            self._layers[index] = key.new_zeros(shapes[0]), value.new_zeros(shapes[1])
        keys, values = self._layers[index]
        if keys.shape[0] < slots or keys.shape[2] < length:
            self._layers[index] = keys, values = _grown(keys, slots, length), _grown(values, slots, length)
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row over another."""
        for tensors in self._layers.values():
            for tensor in tensors:
                tensor[target, :, :length] = tensor[source, :, :length]


def _grown(tensor: Tensor, slots: int, length: int) -> Tensor:
    rows, heads, columns, size = tensor.shape
    new_rows = rows if slots <= rows else max(slots, 2 * rows)
    new_columns = columns if length <= columns else max(length, 2 * columns)
    larger = tensor.new_zeros(new_rows, heads, new_columns, size)
    larger[:rows, :, :columns] = tensor
    return larger


@dataclass
class Pass:
    """What the attention layers need to know about one forward pass.

    Attributes:
        cache: written and read.
        positions: [B] on the model's device, where in its sequence each decoded token stands. Request b owns slot b.
        longest: the longest decoded sequence, its new token included.
        prompts: lengths of the joining prompts in the order in which they follow; they get the slots after B.
    """

    cache: KVCache
    positions: Tensor
    longest: int
    prompts: list[int]
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Requests in this pass."""
        return len(self.positions) + len(self.prompts)

    @property
    def columns(self) -> int:
        """Positions that the cache must hold."""
        return max([self.longest, *self.prompts])

    def decoding_mask(self, window: int | None) -> Tensor:
        """[B, 1, 1, longest], true where a decoded token may look: not ahead, and not further back than `window`."""
        if window not in self._masks:
            columns = torch.arange(self.longest, device=self.positions.device)
            mask = columns <= self.positions[:, None]
            if window is not None:
                mask &= columns > self.positions[:, None] - window
            self._masks[window] = mask[:, None, None]
        return self._masks[window]


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
    batch = len(slime_pass.positions)
    keys, values = slime_pass.cache.layer(module.layer_idx, key, value, slime_pass.slots, slime_pass.columns)
    outputs = []
    if batch:
        rows, longest = torch.arange(batch, device=query.device), slime_pass.longest
        keys[rows, :, slime_pass.positions] = key[0, :, :batch].transpose(0, 1)
        values[rows, :, slime_pass.positions] = value[0, :, :batch].transpose(0, 1)
        # The heads that share keys become the queries of those keys, so that nothing is repeated in memory.
        grouped = query[0, :, :batch].transpose(0, 1).reshape(batch, key.shape[1], -1, query.shape[-1])
        mask = slime_pass.decoding_mask(sliding_window)
        seen = scaled_dot_product_attention(
            grouped, keys[:batch, :, :longest], values[:batch, :, :longest], attn_mask=mask, scale=scaling
        )
        outputs.append(seen.reshape(batch, query.shape[1], -1))
    start = batch
    for slot, length in enumerate(slime_pass.prompts, start=batch):
        own = slice(start, start + length)
        q, k, v = query[:, :, own], key[:, :, own], value[:, :, own]
        keys[slot, :, :length], values[slot, :, :length] = k[0], v[0]
        outputs.append(_attend_to_prompt(q, k, v, scaling, sliding_window)[0].transpose(0, 1))
        start += length
    return torch.cat(outputs)[None], None


def _attend_to_prompt(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    length, shared = query.shape[2], query.shape[1] != key.shape[1]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared)
    rows = torch.arange(length, device=query.device)
    mask = (rows <= rows[:, None]) & (rows > rows[:, None] - window)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=shared)


AttentionInterface.register(NAME, attend)
