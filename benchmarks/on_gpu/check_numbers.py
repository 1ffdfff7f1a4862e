"""Attention and chunked cross-entropy of the trainer on this device against plain references in float64.

The unit of bfloat16 is U = 2^-8 (a rounding is off by at most U / 2). Attention rounds its weights and its output once each, and its
gradients go through three roundings, each of random sign over many terms: relative distances of U for outputs and 3 U for gradients
leave room for kernels that sum in other orders, while a wrong mask or a wrong head is off by a tenth or more.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.on_gpu.job import Findings
from benchmarks.on_gpu.machine import Machine
from slime_core.tensors.linear_cross_entropy import Head, token_log_probs
from slime_core.tensors.packed_rows import Segments

U = 2.0**-8
PLAIN = [(1,), (7,), (333,), (64,), (129,)]
SHARED = [(37, 5, 1, 130), (64,), (1, 2, 2)]


def distance(some: Tensor, others: Tensor) -> float:
    """‖some − others‖ / ‖others‖ in float64."""
    exact = others.double()
    return float((some.double() - exact).norm() / exact.norm())


def attention(machine: Machine, found: Findings) -> None:
    """Packed attention with windows, grouped heads, shared prompts, sizes of heads and odd lengths, forward and backward."""
    import slime_torch.attention as own

    kernel, calls = own._varlen, []
    torch.manual_seed(0)
    for size, (heads, key_heads), window, (laid, shapes), dtype in product(
        (64, 128, 256) if machine.on_gpu else (16,),
        ((4, 4), (8, 2)),
        (None, 17),
        (("plain", PLAIN), ("shared", SHARED)),
        (torch.bfloat16, torch.float32),
    ):
        segments = Segments.of(shapes, machine.device)
        tokens = sum(segments.lengths)
        q, k, v, g = (
            torch.randn(1, n, tokens, size, device=machine.device).to(dtype)
            for n in (heads, key_heads, key_heads, heads)
        )
        calls.clear()
        try:
            own._varlen = lambda *given: calls.append(1) or kernel(*given)
            mine = _with_gradients(partial(_packed, own, segments, window), q, k, v, g)
        finally:
            own._varlen = kernel
        exact = _with_gradients(partial(_reference, segments, window), *(t.double() for t in (q, k, v, g)))
        unit = U if dtype == torch.bfloat16 else 3e-5
        name = f"{laid}, {'bf16' if unit == U else 'fp32'}, heads {heads}/{key_heads} × {size}, window {window}"
        found.within(f"{name}{', varlen kernel' if calls else ''}", distance(mine[0], exact[0]), unit)
        found.within(f"{name}, gradients", max(map(distance, mine[1:], exact[1:])), 3 * unit)
        if machine.on_gpu and dtype == torch.bfloat16 and laid == "plain":
            found.holds(f"{name}, computed by the varlen kernel", bool(calls))


def _with_gradients(attend: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
    given = [t.detach().requires_grad_() for t in (q, k, v)]
    out = attend(*given)
    return [out.detach(), *torch.autograd.grad(out, given, g.transpose(1, 2))]


def _packed(own: Any, segments: Segments, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = own.packed_attention(nn.Module(), q, k, v, None, sliding_window=window, segments=segments)[0]
    return out


def _reference(segments: Segments, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores of all pairs, those that a token does not see masked: (1, N, heads, D)."""
    place = torch.arange(sum(segments.lengths), device=q.device)
    segment = torch.searchsorted(segments.bounds[1:].long(), place, right=True)
    position = place - segments.bounds.long()[segment]
    owner = torch.zeros_like(place)
    for number, branches in enumerate(segments.branches):
        if branches is not None:
            owner[segment == number], position[segment == number] = branches.owner, branches.position
    far = position[:, None] - position
    seen = (segment[:, None] == segment) & (far >= 0) & ((owner == 0) | (owner[:, None] == owner))
    seen = seen if window is None else seen & (far < window)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def cross_entropy(machine: Machine, found: Findings) -> None:
    """Log-probs, entropies and their gradients by chunks against the whole logits in float64.

    In bfloat16 a logit z is off by |z| U / 2, so a log-prob by U · max |z|, and a probability by that factor.
    """
    torch.manual_seed(0)
    rows, width, vocabulary = (1000, 1024, 50_257) if machine.on_gpu else (50, 64, 501)
    targets = torch.randint(vocabulary, (rows,), device=machine.device)
    for dtype, chunk, softcap in product((torch.bfloat16, torch.float32), (-1, rows // 3), (None, 5.0)):
        hidden = torch.randn(rows, width, device=machine.device).to(dtype)
        weight = torch.randn(vocabulary, width, device=machine.device) * width**-0.5
        seen = weight.to(dtype)  # the numbers that are multiplied
        weights = torch.randn(2, rows, device=machine.device)
        h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        head = Head(w, softcap=softcap)
        log_probs, entropies = token_log_probs(
            h, head, targets, temperature=0.8, entropy=True, chunk_size=chunk, product=dtype
        )
        assert entropies is not None  # asked for
        mine = torch.autograd.grad((weights[0] * log_probs + weights[1] * entropies).sum(), (h, w))
        h64, w64 = hidden.double().requires_grad_(), seen.double().requires_grad_()
        # The hidden states are divided by the temperature before they are rounded, where there is no soft cap.
        if softcap is None:
            used = (hidden * (1 / 0.8)).to(dtype).double()
            z = (used + (h64 - hidden.double()) / 0.8) @ w64.T
        else:
            z = torch.tanh(h64 @ w64.T / softcap) * softcap / 0.8
        p = z.log_softmax(-1)
        exact, entropy = p.gather(1, targets[:, None])[:, 0], -(p.exp() * p).sum(-1)
        wanted = torch.autograd.grad((weights[0] * exact + weights[1] * entropy).sum(), (h64, w64))
        unit = U if dtype == torch.bfloat16 else 1e-5
        largest = float(z.detach().abs().max())
        name = f"{'bf16' if unit == U else 'fp32'}, chunks of {chunk}, softcap {softcap}"
        found.within(f"{name}: log-probs", float((log_probs - exact).detach().abs().max()), unit * largest)
        found.within(f"{name}: entropies", float((entropies - entropy).detach().abs().max()), unit * largest)
        found.within(f"{name}: gradients", max(map(distance, mine, wanted)), unit * (1 + largest))
        del z, p, exact, entropy, h64, w64, wanted, mine
