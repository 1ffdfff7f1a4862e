"""Causal flash attention of sequences that lie end to end, by torch's operators themselves. Called by `slime_torch.attention`.

`torch.nn.attention.varlen` calls the same operators through layers of Python that take a processor longer than a GPU takes for the
attention of a small model. They are not public, so they are compared with it once.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from slime_core.tensors.sequences import Sequences

_log = logging.getLogger(__name__)


class Flash(torch.autograd.Function):
    """(N, heads, D) queries, (M, key heads, D) keys and values, their sequences, the scale of scores (None: D ** -0.5)
    → (N, heads, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, scale: float | None) -> Tensor:
        bounds = sequences.query_bounds, sequences.key_bounds
        longest = sequences.longest_query, sequences.longest_key
        out: Tensor
        out, sums, *random, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, *bounds, *longest, 0.0, True, False, scale=scale
        )
        ctx.save_for_backward(q, k, v, out, sums, *bounds, *random)
        ctx.longest, ctx.scale = longest, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums, first, second, *random = ctx.saved_tensors
        grads = torch.ops.aten._flash_attention_backward(
            grad.contiguous(), q, k, v, out, sums, first, second, *ctx.longest, 0.0, True, *random, scale=ctx.scale
        )
        return (*grads, None, None)


@cache
def flash_is_right(device: torch.device) -> bool:
    """Whether the operators give what `varlen_attn` gives: the same output, and gradients that differ by the order of sums."""
    from torch.nn.attention import varlen

    bounds = torch.tensor([0, 21, 48], dtype=torch.int32, device=device)
    sequences = Sequences(bounds, bounds, 27, 27)
    random = torch.Generator(device).manual_seed(0)
    q, k, v, seed = (
        torch.randn(48, heads, 64, generator=random, device=device).bfloat16().requires_grad_()
        for heads in (4, 2, 2, 4)
    )
    attend: Any = varlen.varlen_attn
    try:
        with torch.enable_grad():
            mine: Any = Flash.apply(q, k, v, sequences, 0.1)  # type: ignore[no-untyped-call]  # torch does not annotate it
            every_k, every_v = (t.repeat_interleave(2, 1) for t in (k, v))
            theirs = attend(q, every_k, every_v, bounds, bounds, 27, 27, scale=0.1, window_size=(-1, 0))
            pairs = [
                (mine, theirs),
                *zip(*(torch.autograd.grad(o, (q, k, v), seed) for o in (mine, theirs)), strict=True),
            ]
            right = all(((a - b).float().norm() <= 2.0**-7 * b.float().norm()).item() for a, b in pairs)
    except Exception as error:  # operators of another torch may take or give something else
        _log.info("Attention goes through torch.nn.attention.varlen: %s: %s", type(error).__name__, error)
        return False
    if not right:
        _log.warning(
            "Attention goes through torch.nn.attention.varlen: torch's operators give something else when called alone."
        )
    return right
