"""Sampling parameters, and choosing the next token of every running request. Pure functions; called by the scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from slime_core.errors import ArgumentError


@dataclass(frozen=True)
class SamplingParams:
    """How one response is sampled.

    Attributes:
        max_new_tokens: longest response, at least 1.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: sample from the smallest set of likeliest tokens whose probability reaches this, in (0, 1].
        top_k: sample from that many likeliest tokens; -1 is all. With `top_p`, both limits hold.
        seed: seeds this response's own random numbers. None: from the operating system.
        stop_token_ids: tokens that end the response.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, given: Mapping[str, Any], stop_token_ids: frozenset[int]) -> SamplingParams:
        """Check what a rollout function passed.

        Args:
            given: the parameters by name.
            stop_token_ids: used when `given` names none; an empty list there means that nothing stops the response.

        Raises:
            ArgumentError: a parameter is unknown, missing, of the wrong type or out of range.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ArgumentError(
                f"The engine 'local' does not know the sampling parameter {unknown[0]!r}. It knows {', '.join(known)}."
            )
        for name, (fits, expected) in _RULES.items():
            if name in given and not fits(given[name]):
                raise ArgumentError(f"The sampling parameter {name} is {given[name]!r}; expected {expected}.")
        if "max_new_tokens" not in given:
            raise ArgumentError("The sampling parameter max_new_tokens is missing; it bounds the response.")
        stops = given.get("stop_token_ids")
        return cls(**{**given, "stop_token_ids": stop_token_ids if stops is None else frozenset(stops)})


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


_RULES = {
    "max_new_tokens": (lambda v: _is_int(v) and v >= 1, "a whole number of at least 1"),
    "temperature": (lambda v: _is_number(v) and (v == 0 or v >= 1e-5), "0 (greedy) or a number of at least 1e-5"),
    "top_p": (lambda v: _is_number(v) and 0 < v <= 1, "a number above 0 and at most 1"),
    "top_k": (lambda v: _is_int(v) and (v == -1 or v >= 1), "-1 (all tokens) or a whole number of at least 1"),
    "seed": (lambda v: v is None or _is_int(v), "a whole number"),
    "stop_token_ids": (
        lambda v: v is None or (isinstance(v, (list, tuple, set, frozenset)) and all(map(_is_int, v))),
        "a list of token ids",
    ),
}


def choose_tokens(
    logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]
) -> tuple[list[int], list[float]]:
    """The next token of every request, with its log-probability.

    The log-probability is that of the softmax of logits / temperature over the whole vocabulary (temperature 1 for
    greedy decoding). `top_p` and `top_k` restrict which tokens can be chosen but do not renormalise it, so it is the
    number that the trainer computes for the same token.

    Args:
        logits: [B, V].
        params: of each request.
        draws: of each request, a number in [0, 1); greedy requests ignore theirs. A token is found by inverting the
            cumulative distribution at its draw, so what a request gets depends on nothing but its logits and draw.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    temperature = torch.tensor([p.temperature or 1.0 for p in params], dtype=exact.dtype, device=exact.device)
    log_probs = torch.log_softmax(exact / temperature[:, None], dim=-1)
    tokens = log_probs.argmax(-1)
    sampled = [row for row, p in enumerate(params) if p.temperature > 0]
    if sampled:
        probs = log_probs[sampled].double().exp()
        for row, index in enumerate(sampled):
            if params[index].top_p < 1 or params[index].top_k != -1:
                probs[row] = _truncated(probs[row], params[index].top_p, params[index].top_k)
        cumulative = probs.cumsum(-1)
        draw = torch.tensor([draws[index] for index in sampled], dtype=torch.float64, device=exact.device)
        tokens[sampled] = torch.searchsorted(cumulative, draw[:, None] * cumulative[:, -1:], right=True)[:, 0]
    chosen = log_probs.gather(-1, tokens[:, None])[:, 0]
    return tokens.tolist(), chosen.tolist()


def _truncated(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """`probs` [V] with 0 for the tokens outside `top_p` or `top_k`; the likeliest token always stays."""
    # Tokens below (1 - top_p) / V weigh less than 1 - top_p all together, so none of them is needed to reach top_p.
    least = (1 - top_p) / len(probs)
    if top_k != -1:
        least = max(least, probs.topk(min(top_k, len(probs))).values[-1].item())
    candidates = (probs >= least).nonzero()[:, 0]  # few, which makes sorting cheap
    ordered, order = probs[candidates].sort(descending=True, stable=True)
    keep = ordered.cumsum(-1) - ordered < top_p
    keep[:1] = True
    if top_k != -1:
        keep[top_k:] = False
    return torch.zeros_like(probs).scatter(-1, candidates[order[keep]], ordered[keep])
