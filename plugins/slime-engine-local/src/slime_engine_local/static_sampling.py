"""The choice of the next token on the device, with fixed shapes and nothing that the host reads: what `sampling.choose_tokens`
chooses, for `static_decoding`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slime_engine_local.sampling import draw_tokens, invert, running_sums

Choose = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], Tensor]


def choose_on_device(
    logits: Tensor, temperatures: Tensor, draws: Tensor, top_p: Tensor, top_k: Tensor, limited: bool
) -> Tensor:
    """Choose the next token of B requests: (B, 3) float64, the token, its log-prob in the softmax of logits / temperature, and whether
    the logits are finite.

    Args:
        logits: (B, V).
        temperatures: (B,), 0 for the likeliest token, whose log-prob is that at temperature 1.
        draws: (B,) float64 in [0, 1).
        top_p, top_k: (B,), 1 and V or more where nothing is left out.
        limited: whether they are looked at, which takes a sort of all logits.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    greedy = temperatures == 0
    exact = exact / torch.where(greedy, 1.0, temperatures).to(exact.dtype)[:, None]
    probs = torch.softmax(exact, -1)
    drawn = draw_tokens(probs, draws)
    if limited:
        free = (top_p >= 1) & (top_k >= logits.shape[1])
        kept = probs.double() * _kept(probs, top_p, top_k)
        drawn = torch.where(free, drawn, invert(kept, draws)[0])
    tokens = torch.where(greedy, exact.argmax(-1), drawn)
    log_probs = probs.gather(1, tokens[:, None])[:, 0].log()
    return torch.stack([tokens.double(), log_probs.double(), logits.amax(-1).isfinite().double()], 1)


def _kept(probs: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """(B, V): which tokens may be chosen. The likeliest one always may."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.double()
    before = running_sums(ordered) - ordered
    rank = torch.arange(probs.shape[1], device=probs.device)
    kept = (before < (top_p * ordered.sum(-1))[:, None]) & (rank < top_k[:, None])
    kept[:, :1] = True
    return torch.zeros_like(kept).scatter_(1, order, kept)
