"""Attention over packed rows: every token sees the earlier tokens of its own segment and nothing else.

Registered with transformers under `PACKED` and selected by `model.set_attn_implementation(PACKED)`. The backend passes
`segments` (`packing.Segments`) to the model's forward, and transformers hands it on to `packed_attention`. No mask over
the whole row is ever built. What a model asks of its attention is computed exactly or refused, never ignored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from slime_core.errors import PluginError
from slime_torch.packing import Segments

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
    """Causal attention inside each segment.

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
    groups = query.shape[1] // key.shape[1]
    if _varlen_kernel_fits(query, value, softcap, dropout):
        return _varlen(query, key, value, segments, scaling, sliding_window)[None], None
    pieces = []
    # split and cat are each other's backward: slicing would make one row-sized gradient per segment.
    for q, k, v in zip(*(t.split(segments.lengths, dim=2) for t in (query, key, value)), strict=True):
        length = q.shape[2]
        mask = None
        if sliding_window is not None and sliding_window < length:
            position = torch.arange(length, device=q.device)
            distance = position[:, None] - position
            mask = (distance >= 0) & (distance < sliding_window)
        if softcap is None:
            out = scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=groups > 1
            )
        else:
            out = _softcapped(q, k, v, mask, dropout, scaling, softcap, groups)
        pieces.append(out.transpose(1, 2))
    return torch.cat(pieces, dim=1), None


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


def _varlen_kernel_fits(query: Tensor, value: Tensor, softcap: float | None, dropout: float) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and softcap is None
        and dropout == 0
        and query.shape[-1] == value.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _has_varlen()
    )


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return True


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, window: int | None
) -> Tensor:
    """All segments in one flash-attention call: (N, heads, D)."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(segments.lengths)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    return varlen_attn(
        q,
        k,
        v,
        segments.bounds,
        segments.bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _refuse_what_is_unknown(
    module: nn.Module, mask: Tensor | None, segments: Segments | None, window: int | None, kwargs: dict[str, Any]
) -> None:
    name = type(module).__name__
    layer_types = getattr(getattr(module, "config", None), "layer_types", None)
    layer = layer_types[module.layer_idx] if layer_types and hasattr(module, "layer_idx") else "full_attention"
    problem = None
    if segments is None:
        problem = "does not hand on the keyword arguments of its model's forward"
    elif mask is not None:
        problem = "is given a mask of its own"
    elif kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        problem = "is not causal"
    elif layer not in ("full_attention", "sliding_attention"):
        problem = f"is of the kind {layer!r}"
    elif layer == "sliding_attention" and window is None:
        problem = "does not say how long its sliding window is"
    elif extra := [k for k in _REFUSED if kwargs.get(k) is not None]:
        problem = f"uses {', '.join(extra)}"
    if problem:
        raise PluginError(
            f"The torch backend cannot train this model: its attention ({name}) {problem}. It supports causal attention, "
            "full or with a sliding window, with grouped key heads and soft-capped scores."
        )


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Tells transformers that `packed_attention` needs no mask."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
