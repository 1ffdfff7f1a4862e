"""Attention over one packed row of tokens, which keeps the requests in it apart.

The model's attention layers hand their queries, keys and values to `attend` through transformers' `AttentionInterface`;
everything else in a model works on each token alone. So requests never see each other, and the large matrix products
are done once for all of them. How the tokens of the row belong to requests is in `slime_engine_local.forward_pass`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from slime_engine_local.cache import CachedSequence
from slime_engine_local.errors import EngineError
from slime_engine_local.forward_pass import ForwardPass, OwnRows, SharedRows
from slime_engine_local.pages import StaticPass

NAME = "slime_engine_local"
"""The name of this attention in transformers' `attn_implementation`."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    slime_pass: ForwardPass | StaticPass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one packed row of T tokens. `AttentionInterface` calls it.

    Args:
        module: the attention layer, with its number in `layer_idx`.
        query, key, value: [1, heads, T, head size] with positions already encoded; keys and values may have fewer
            heads.
        slime_pass: how the T tokens belong to requests.

    Returns:
        [1, T, heads, head size], and no attention weights.

    Raises:
        EngineError: the layer's attention is of a kind that the engine cannot compute.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise EngineError(f"The engine 'local' cannot serve this model: its attention uses {name}.")
    if slime_pass is None or attention_mask is not None or not getattr(module, "is_causal", True):
        raise EngineError("The engine 'local' cannot serve this model: its attention is not plain and causal.")
    layer: int = module.layer_idx
    if isinstance(slime_pass, ForwardPass) and layer in slime_pass.settings:
        raise EngineError("The engine 'local' cannot serve this model: a layer attends more than once.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    slime_pass.settings[layer] = scale, sliding_window
    if isinstance(slime_pass, StaticPass):
        return slime_pass.attend(layer, query, key, value, scale, sliding_window), None
    start = len(slime_pass.decoded)
    outputs = []
    if start:
        q, k, v = (x[0, :, :start].transpose(0, 1) for x in (query, key, value))
        outputs.append(_decode(slime_pass, layer, q, k, v, scale, sliding_window))
    for chunk in slime_pass.chunks:
        own = slice(start, start := start + len(chunk.tokens))
        blocks = None if chunk.shown is None else chunk.shown.blocks
        output = _prefill(
            chunk.sequence, layer, query[:, :, own], key[:, :, own], value[:, :, own], scale, sliding_window, blocks
        )
        outputs.append(output[0].transpose(0, 1))
    return _joined(outputs)[None], None


def _decode(
    step: ForwardPass, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
) -> Tensor:
    """Compute the attention of one token of each decoded request, and store its key and value.

    The attention to a request's own row and that to its shared prefix are computed separately, the latter for all
    readers of a row in one product. They are combined by their shares of the sum of exponentials.

    An operation costs more than what it computes, so there are few of them: the rows of all tensors are requests times
    key heads, and the query heads that share a key head are the queries of a row.

    Args:
        query: [B, heads, size].
        key, value: [B, key heads, size].

    Returns:
        [B, heads, size].
    """
    heads = key.shape[1]
    asked = query.reshape(len(key) * heads, -1, query.shape[2])
    plan = step.plan(heads, asked.shape[1], window, query.dtype)
    key, value = key.reshape(-1, key.shape[2]), value.reshape(-1, value.shape[2])
    outputs: list[Tensor] = []
    sums: list[Tensor] = []
    for own in plan.own:
        keys, values = own.pool.layer(layer, heads, key, value)
        for stored, new in ((keys, key), (values, value)):
            stored.view(-1, stored.shape[2]).index_copy_(0, own.slots, new[own.requests])
        _attend_to(
            keys, values, len(own.slots), own, asked[own.requests], scale, outputs, sums if plan.shared else None
        )
    output = _joined(outputs)
    if plan.shared:
        prefix_outputs: list[Tensor] = []
        prefix_sums: list[Tensor] = []
        for shared in plan.shared:
            keys, values = shared.pool.layer(layer, heads, key, value)
            rows = len(shared.pool.rows) * heads
            queries = asked.index_select(0, shared.readers).view(rows, -1, asked.shape[2])
            _attend_to(keys, values, rows, shared, queries, scale, prefix_outputs, prefix_sums)
        size = asked.shape[1]
        both = [_joined([x.view(-1, size, x.shape[2]) for x in xs]) for xs in (prefix_outputs, prefix_sums)]
        of_prefix, total = (x.index_select(0, plan.outputs) for x in both)
        total -= _joined(sums)
        if plan.without_prefix is not None:
            total += plan.without_prefix
        output = torch.lerp(output, of_prefix, torch.sigmoid(total).to(output.dtype))
    return output.view(query.shape[0], query.shape[1], -1)


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts one after the other, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_to(
    keys: Tensor,
    values: Tensor,
    rows: int,
    part: OwnRows | SharedRows,
    queries: Tensor,
    scale: float,
    outputs: list[Tensor],
    sums: list[Tensor] | None,
) -> None:
    """Compute the attention of `queries` [rows, n, size] to the first rows and columns of a pool.

    Appends the output [rows, n, size] to `outputs`, and the logarithm of the sum of exponentials [rows, n, 1] to `sums`
    unless that is None.
    """
    keys, values = keys[:rows, : part.columns].mT, values[:rows, : part.columns]
    if part.mask is None:
        scores = torch.bmm(queries, keys).mul_(scale)
    else:
        scores = torch.baddbmm(part.mask, queries, keys, alpha=scale)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
    outputs.append(torch.bmm(weights.to(values.dtype), values))
    if sums is not None:  # the largest weight is exp(largest score) / sum
        sums.append(scores.amax(-1, keepdim=True).sub_(weights.amax(-1, keepdim=True).log_()))


def _prefill(
    sequence: CachedSequence,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    blocks: Tensor | None = None,
) -> Tensor:
    """Compute the attention of n new tokens of one request, and store their keys and values.

    Each token sees what is stored of the request, and the new tokens before it; those of an image see one another.

    Args:
        query, key, value: [1, heads, n, size].
        blocks: [n], the number of the image that a token belongs to, 0 for text; None: there is none but text.

    Returns:
        [1, heads, n, size].
    """
    row, (before, new) = sequence.row, (sequence.row.length, query.shape[2])
    heads = key.shape[1]
    keys, values = (x[row.index * heads :][:heads] for x in row.pool.layer(layer, heads, key, value))
    keys[:, before : before + new], values[:, before : before + new] = key[0], value[0]
    shared_heads = query.shape[1] != heads
    if blocks is None and not sequence.length and (window is None or new <= window):
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=shared_heads)
    key, value = keys[None, :, : before + new], values[None, :, : before + new]
    if sequence.prefix is not None:
        first, shared = sequence.prefix.index * heads, sequence.shared
        keys, values = (x[first : first + heads] for x in sequence.prefix.pool.layer(layer, heads, key, value))
        key, value = torch.cat([keys[None, :, :shared], key], 2), torch.cat([values[None, :, :shared], value], 2)
    column = torch.arange(sequence.length + new, device=query.device)
    position = column[sequence.length :, None]
    mask = column <= position
    if blocks is not None:
        blocks = blocks.to(query.device)
        mask[:, sequence.length :] |= (blocks[:, None] == blocks) & (blocks[:, None] > 0)
    if window is not None:
        mask &= column > position - window
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=shared_heads)


@cache
def register() -> None:
    """Let transformers find the attention under `NAME`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
