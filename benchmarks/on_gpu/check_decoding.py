"""The Triton kernels of the embedded engine on this device against plain operations in float64.

A number that is rounded once to bfloat16 is off by at most U / 2 of itself (U = 2^-8). The kernels round queries and keys twice or
three times, as a layer under autocast does, attention rounds its weights too, and experts what lies between their products.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.on_gpu.check_numbers import U, distance
from benchmarks.on_gpu.job import Findings, NotHere
from benchmarks.on_gpu.machine import Machine

ATTENTION = [
    (32, 8, 128, None, None),
    (32, 8, 128, 200, 8),
    (4, 4, 64, None, 1),
    (16, 8, 128, 17, 2),
    (8, 2, 96, None, 4),
    (16, 2, 256, 17, 1),
]
"""(heads, key heads, size, window, parts)."""
HEADS = [(32, 8, 128, 1), (40, 8, 64, 0), (3, 1, 80, 1)]
"""(heads, key heads, size, whether queries and keys have norms)."""
LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300, 1000]


class Norm(nn.Module):
    """An RMS norm as transformers has it."""

    variance_epsilon = 1e-6

    def __init__(self, size: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(size, device=like.device).to(like.dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it in the dtype of `x`."""
        return x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt() * self.weight.to(x.dtype)


def kernels(machine: Machine, found: Findings) -> None:
    """Attention over pages (windows, grouped heads, sizes of heads, lengths about the ends of pages, parts), norms, positions, stores,
    gates, and the choice of tokens."""
    if not machine.on_gpu:
        raise NotHere("the kernels run on a GPU; on a CPU tests have triton interpret them")
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float32):
        _attention(machine, found, dtype)
        _layer(machine, found, dtype)
        _experts(machine, found, dtype)
    _choice(machine, found)


def _attention(machine: Machine, found: Findings, dtype: torch.dtype) -> None:
    from slime_engine_local.pages import PAGE, attention_over_pages
    from slime_engine_local.triton_operations import triton_over_pages

    width = -(-max(LENGTHS) // PAGE)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=machine.device)
    table = (torch.randperm(len(LENGTHS) * width, device=machine.device) + 1).view(len(LENGTHS), width).int()
    for heads, keys, size, window, splits in ATTENTION:
        query = _random(machine, dtype, len(LENGTHS), heads, size)
        stored = [_random(machine, dtype, table.numel() + 1, PAGE, keys, size) for _ in range(2)]
        mine = triton_over_pages(query, *stored, table, lengths, size**-0.5, window, splits=splits)
        plain = attention_over_pages(query.double(), *(x.double() for x in stored), table, lengths, size**-0.5, window)
        name = f"{_short(dtype)}, heads {heads}/{keys} × {size}, window {window}, parts {splits}"
        found.within(name, distance(mine, plain), U if dtype == torch.bfloat16 else 3e-6)


def _layer(machine: Machine, found: Findings, dtype: torch.dtype) -> None:
    from slime_engine_local.layer_operations import HeadShape, Places, PlainOperations
    from slime_engine_local.triton_operations import TritonOperations

    mine, plain, unit = TritonOperations(), PlainOperations(), U if dtype == torch.bfloat16 else 1e-5
    for rows, (queries, keys, size, normed) in product((1, 5, 64), HEADS):
        projected = _random(machine, dtype, rows, (queries + 2 * keys) * size)
        norms = (Norm(size, projected), Norm(size, projected)) if normed else ()
        heads = HeadShape(queries, keys, size, norms)
        cosine, sine = (_random(machine, torch.float32, rows, size) for _ in range(2))
        at = torch.randperm(512, device=machine.device)[:rows]
        pages = [torch.zeros(8, 64, keys, size, dtype=dtype, device=machine.device) for _ in range(2)]
        exact = plain.encode(projected.double(), heads, cosine.double(), sine.double(), None)
        name = f"{_short(dtype)}, {rows} rows, heads {queries}/{keys} × {size}, norms {normed}"
        found.within(name, max(map(distance, mine.encode(projected, heads, cosine, sine, None), exact)), unit)
        query, _, _ = mine.encode(projected, heads, cosine, sine, Places(pages[0], pages[1], at))
        stored = [x.view(-1, keys, size)[at] for x in pages]
        found.within(f"{name}, stored", max(map(distance, [query, *stored], exact)), unit)
    for rows, size in product((1, 64, 300), (896, 2560, 8192)):
        x, added = _random(machine, torch.float32, rows, size), _random(machine, dtype, rows, size)
        norm = Norm(size, added)
        wanted = plain.add_norm(x.double(), added.double(), norm)
        got = mine.add_norm(x.clone(), added, norm)
        found.within(f"{_short(dtype)}, norm of {rows} × {size}", distance(got[1], wanted[1]), unit)
        found.within(f"{_short(dtype)}, sum of {rows} × {size}", distance(got[0], wanted[0]), 1e-6)
        both = _random(machine, dtype, rows, 2 * size)
        gates = plain.gated(both.double(), nn.SiLU())
        found.within(f"{_short(dtype)}, gates of {rows} × {size}", distance(mine.gated(both, nn.SiLU()), gates), unit)


def _experts(machine: Machine, found: Findings, dtype: torch.dtype) -> None:
    from slime_engine_local.triton_experts import Experts

    for count, chosen, hidden, inner in ((128, 8, 2048, 768), (16, 2, 520, 264)):
        layer: Any = nn.Module()
        layer.gate_up_proj = _random(machine, dtype, count, 2 * inner, hidden) * hidden**-0.5
        layer.down_proj = _random(machine, dtype, count, hidden, inner) * inner**-0.5
        for tokens in (1, 7, 40):
            x, shares = _random(machine, dtype, tokens, hidden), _random(machine, dtype, tokens, chosen).abs()
            choice = torch.rand(tokens, count, device=machine.device).topk(chosen).indices
            choice[tokens // 2 :] = choice[tokens // 2]  # many tokens of few experts
            both = torch.einsum("th,tkfh->tkf", x.double(), layer.gate_up_proj.double()[choice])
            gates, ups = both.chunk(2, -1)
            out = torch.einsum("tkf,tkhf->tkh", nn.functional.silu(gates) * ups, layer.down_proj.double()[choice])
            exact = (out * shares.double()[..., None]).sum(1)
            mine = Experts(layer, _many)(x, choice, shares)
            name = f"{_short(dtype)}, {chosen} of {count} experts, {hidden} × {inner}, {tokens} tokens"
            found.within(name, distance(mine, exact), 2 * U if dtype == torch.bfloat16 else 1e-5)
            del both, gates, ups, out


def _many(*_: Tensor) -> Tensor:
    raise AssertionError("these tokens are few")


def _choice(machine: Machine, found: Findings) -> None:
    from slime_engine_local.static_sampling import choose_on_device
    from slime_engine_local.triton_operations import choose_by_triton

    rows = 256
    draws = torch.rand(rows, dtype=torch.float64, device=machine.device)
    temperatures = torch.tensor([n % 4 / 2 for n in range(rows)], dtype=torch.float64, device=machine.device)
    none = torch.ones_like(draws)
    for dtype, vocabulary in product((torch.bfloat16, torch.float32), (300, 32_768, 151_936)):
        logits = 3 * _random(machine, dtype, rows, vocabulary)
        mine = choose_by_triton(logits, temperatures, draws)
        plain = choose_on_device(logits, temperatures, draws, none, none * 2**31, False)
        name = f"{_short(dtype)}, vocabulary {vocabulary}"
        # A draw that hits the border of two tokens may be on either side of it, and there may be two likeliest tokens.
        same = mine[:, 0] == plain[:, 0]
        found.within(f"{name}, other tokens", 1 - float(same.double().mean()), 0.1)
        found.within(f"{name}, log-probs", float((mine - plain)[same].abs().max()), 1e-4)


def _random(machine: Machine, dtype: torch.dtype, *shape: int) -> Any:
    return torch.randn(*shape, device=machine.device).to(dtype)


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"
