"""Attention over packed rows: every token sees the earlier tokens of its own sample and nothing else.

It is registered with transformers under the name `PACKED` and selected by `model.set_attn_implementation(PACKED)`. The
backend passes `segments` (`slime_core.tensors.packed_rows.Segments`) to the model's forward, and transformers hands it
on to `packed_attention`. No mask over the whole row is ever built. What a model asks of its attention is computed
exactly or refused, never ignored.

A row, with shared prompts or without, is one call of the variable-length kernel where it fits (half precision on CUDA, which
--bf16 brings: a model's positions and norms leave queries and keys in float32, and they are rounded here as its linear layers
round what they read). Everything else is `scaled_dot_product_attention` segment by segment.
"""

from __future__ import annotations

from functools import cache, partial
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from slime_core.errors import PluginError
from slime_core.tensors.packed_rows import Branches, Segments
from slime_core.tensors.sequences import Sequences, with_stems
from slime_core.tensors.windows import slides
from slime_torch.flash import Flash, flash_is_right

PACKED = "slime_packed"
_REFUSED = ("position_bias", "s_aux", "cache", "head_mask", "indices", "block_mask")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention inside each segment.

    Args:
        query: (1, heads, N, D).
        key, value: (1, key heads, N, D); every key head serves heads / key heads neighbouring query heads.
        scaling: of the scores; D ** -0.5 if None.
        sliding_window: how many tokens, itself included, a token sees.
        softcap: scores are bounded to ±softcap by tanh.

    Returns:
        (1, N, heads, D) and, in place of the attention weights, None.

    Raises:
        PluginError: the model asks for something that is not implemented here.
    """
    _refuse_what_is_unknown(module, attention_mask, segments, sliding_window, kwargs)
    assert segments is not None  # for the type checker: refused above
    dtype = _product_dtype(query)
    two_ways = any(blocks is not None for blocks in segments.blocks)
    if not two_ways and _varlen_kernel_fits(query, value, dtype, softcap, dropout):
        query, key, value = (t.to(dtype) for t in (query, key, value))
        return _varlen(query, key, value, segments, scaling, sliding_window)[None], None
    attend = partial(_attend, dropout=dropout, scaling=scaling, softcap=softcap)
    pieces = []
    # split and cat are each other's backward: slicing would make one row-sized gradient per segment.
    split = (torch.split(t, list(segments.lengths), dim=2) for t in (query, key, value))
    every_block = segments.blocks or (None,) * len(segments.lengths)
    for q, k, v, branches, blocks in zip(*split, segments.branches, every_block, strict=True):
        if branches is None:
            out = attend(q, k, v, _with_blocks(_window_mask(q, k, sliding_window), q, blocks, blocks, sliding_window))
        else:
            out = _branched(attend, q, k, v, branches, sliding_window, blocks)
        pieces.append(out.transpose(1, 2))
    return torch.cat(pieces, dim=1), None


class _Attention(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of Q queries to K keys. `mask` is (Q, K), true where a query sees a key; None: causal, Q = K."""


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scaling: float | None, softcap: float | None
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if softcap is not None:
        return _softcapped(q, k, v, mask, dropout, scaling, softcap, groups)
    return scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=groups > 1
    )


def _window_mask(q: Tensor, k: Tensor, window: int | None) -> Tensor | None:
    """The mask for queries that are the last ones of their keys' sequence; None where plain causal attention does."""
    queries, keys = q.shape[2], k.shape[2]
    if queries == keys and (window is None or window >= keys):
        return None
    past = keys - queries
    mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(past)
    return mask if window is None else mask.triu(past - window + 1)


def _with_blocks(
    mask: Tensor | None, q: Tensor, blocks: Tensor | None, seen: Tensor | None, window: int | None
) -> Tensor | None:
    """The mask in which the tokens of an image see all others of it besides, as far back as the window reaches.

    Args:
        mask: without that; None: causal.
        blocks: (Q,) the number of the image that each query belongs to, 0 for text; None: there are no images.
        seen: (K,) those of the keys, of which the queries are the last ones.
    """
    if blocks is None or seen is None:
        return mask
    queries, past = len(blocks), len(seen) - len(blocks)
    if mask is None:
        mask = torch.ones(queries, len(seen), dtype=torch.bool, device=q.device).tril(past)
    together = (blocks[:, None] == seen) & (blocks[:, None] > 0)
    return mask | (together if window is None else together.triu(past - window + 1))


_CALL_COST = 4096
"""The cost of one more call, in scores that are computed for one head in the same time, measured on the CPU."""


def _branched(
    attend: _Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    branches: Branches,
    window: int | None,
    blocks: Tensor | None = None,
) -> Tensor:
    """Attention of a stem, and of branches each of which sees the stem and itself: (1, heads, L, D).

    The branches are attended to in one call, most of whose scores may be masked, or each in a call of its own with a
    copy of the stem's keys: whichever is cheaper.
    """
    stem, *others = branches.lengths
    answers = sum(others)
    together = answers * (stem + answers) <= sum(n * (stem + n) + _CALL_COST for n in others)
    cut = [stem, answers] if together else [stem, *others]
    (q_stem, *q_rest), (k_stem, *k_rest), (v_stem, *v_rest) = (torch.split(t, cut, dim=2) for t in (q, k, v))
    of_stem, *of_rest = (None,) * len(cut) if blocks is None else torch.split(blocks, cut)
    outs = [
        attend(q_stem, k_stem, v_stem, _with_blocks(_window_mask(q_stem, k_stem, window), q, of_stem, of_stem, window))
    ]
    if together:
        outs.append(attend(q_rest[0], k, v, _branch_mask(branches, stem, window, blocks)))
    else:
        for q_own, k_own, v_own, own in zip(q_rest, k_rest, v_rest, of_rest, strict=True):
            k_seen, v_seen = torch.cat((k_stem, k_own), 2), torch.cat((v_stem, v_own), 2)
            seen = None if own is None or of_stem is None else torch.cat((of_stem, own))
            outs.append(
                attend(q_own, k_seen, v_seen, _with_blocks(_window_mask(q_own, k_seen, window), q, own, seen, window))
            )
    return torch.cat(outs, dim=2)


def _branch_mask(branches: Branches, stem: int, window: int | None, blocks: Tensor | None) -> Tensor:
    """(L - stem, L): which tokens of the segment each token of a branch sees."""
    owner, position = branches.owner, branches.position
    distance = position[stem:, None] - position
    same = owner[stem:, None] == owner
    order = distance >= 0
    if blocks is not None:  # images have their numbers in their sample alone
        order = order | (same & (blocks[stem:, None] == blocks) & (blocks[stem:, None] > 0))
    seen = ((owner == 0) | same) & order
    return seen if window is None else seen & (distance < window)


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scaling: float | None, cap: float, groups: int
) -> Tensor:
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / cap) * cap
    if mask is None:
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill(~mask, -torch.inf)
    weights = weights.softmax(-1, dtype=torch.promote_types(weights.dtype, torch.float32)).to(q.dtype)
    return nn.functional.dropout(weights, dropout) @ v


def _product_dtype(query: Tensor) -> torch.dtype:
    """What matrix products are computed in: under autocast its dtype, whatever the operands have."""
    kind = query.device.type
    autocast = kind == "cuda" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else query.dtype


def _varlen_kernel_fits(
    query: Tensor, value: Tensor, dtype: torch.dtype, softcap: float | None, dropout: float
) -> bool:
    size = query.shape[-1]
    return (
        query.is_cuda
        and dtype in (torch.bfloat16, torch.float16)
        and softcap is None
        and dropout == 0
        and size == value.shape[-1]
        and size <= 256
        and size % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _has_varlen()
    )


@cache
def _has_varlen() -> bool:
    return "window_size" in _varlen_options()


@cache
def _varlen_options() -> frozenset[str]:
    """What the kernel of this torch can be told: 2.11 takes grouped heads as they are, 2.13 wants to be told of them, and earlier ones
    know no windows. Empty: there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(signature(varlen_attn).parameters)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    """Attention of all segments in one call of flash attention: (N, heads, D)."""
    from torch.nn.attention.varlen import varlen_attn

    sequences = segments.sequences or Sequences.of(segments, query.device)
    q, k, v = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
    if sequences.stems is not None:
        k, v = with_stems(k, v, sequences.stems)
    if window is None and flash_is_right(query.device):
        attended: Tensor = Flash.apply(q, k, v, sequences, scaling)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return attended
    grouped: dict[str, Any] = {"enable_gqa": q.shape[1] != k.shape[1]} if "enable_gqa" in _varlen_options() else {}
    out = varlen_attn(
        q,
        k,
        v,
        sequences.query_bounds,
        sequences.key_bounds,
        sequences.longest_query,
        sequences.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(out, Tensor)  # a pair only where more is asked for
    return out


def _refuse_what_is_unknown(
    module: nn.Module, mask: Tensor | None, segments: Segments | None, window: int | None, kwargs: dict[str, Any]
) -> None:
    name = type(module).__name__
    config, number = getattr(module, "config", None), getattr(module, "layer_idx", None)
    types = getattr(config, "layer_types", None)
    layer = types[number] if types and number is not None else "full_attention"
    problem = None
    if segments is None:
        problem = "does not hand on the keyword arguments of its model's forward"
    elif mask is not None:
        problem = "is given a mask of its own"
    elif kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        problem = "is not causal"
    elif layer not in ("full_attention", "sliding_attention"):
        problem = f"is of the kind {layer!r}"
    elif window is None and slides(config, number):
        problem = "does not say how long its sliding window is"
    elif extra := [k for k in _REFUSED if kwargs.get(k) is not None]:
        problem = f"uses {', '.join(extra)}"
    if problem:
        raise PluginError(
            f"The torch backend cannot train this model: its attention ({name}) {problem}. It supports causal "
            "attention, full or with a sliding window, with grouped key heads and soft-capped scores."
        )


@cache
def register() -> None:
    """Let transformers find the attention under the name `PACKED`. torch.compile leaves it as it is.

    No mask function is registered beside it, so that transformers makes no mask: it would read the positions of every row.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]  # not annotated
