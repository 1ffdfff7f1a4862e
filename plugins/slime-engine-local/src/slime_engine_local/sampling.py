"""Sampling parameters, and the choice of the next token of every running request. Pure functions, called by the
scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slime_core.contracts.engine import GREEDY_BELOW
from slime_core.errors import ArgumentError

SPAN = 256
"""A token is drawn in two short steps: first one of the spans of so many tokens of the vocabulary, by the sums of their
probabilities, then a token of that span."""
LIMITED_ROWS = 16
"""So many rows are drawn with `top_p` and `top_k` at a time: a row of little certainty makes the others as wide as itself."""

LITTLE = 2.0**-60
"""Probabilities of tokens that together have less are not exact in float32."""


@dataclass(frozen=True)
class SamplingParams:
    """How one response is sampled. Names and meaning are those of SGLang.

    Attributes:
        max_new_tokens: the longest response in tokens, at least 1.
        min_new_tokens: until the response has so many tokens, no stop token is chosen and no stop string ends it.
        temperature: divides the logits; 0 takes the likeliest token, which what was given below `GREEDY_BELOW` became.
        top_p: sample from the smallest set of likeliest tokens whose probability reaches this, in (0, 1].
        top_k: sample from so many likeliest tokens; -1 means all. Together with `top_p`, both limits hold.
        seed: the seed of this response's own random numbers; None: one from the operating system.
        stop_token_ids: tokens that end the response, the checkpoint's end tokens included; none with `ignore_eos`.
        stop: strings; the response ends with the token that completes one.
        ignore_eos: no token ends the response, neither the checkpoint's end tokens nor those that were named, as in SGLang.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @classmethod
    def parse(cls, given: Mapping[str, Any], end_tokens: frozenset[int]) -> SamplingParams:
        """Check the parameters that a rollout function passed.

        Args:
            given: the parameters by name; None stands for the default of an optional parameter.
            end_tokens: the checkpoint's end tokens.

        Raises:
            ArgumentError: a parameter is unknown, missing, of the wrong type or out of range.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ArgumentError(
                f"The engine 'local' does not know the sampling parameter {unknown[0]!r}. It knows {', '.join(known)}."
            )
        given = {name: value for name, value in given.items() if value is not None or name not in _OPTIONAL}
        for name, (fits, expected) in _RULES.items():
            if name in given and not fits(given[name]):
                raise ArgumentError(f"The sampling parameter {name} is {given[name]!r}; expected {expected}.")
        if "max_new_tokens" not in given:
            raise ArgumentError("The sampling parameter max_new_tokens is missing; it bounds the response.")
        if given.get("temperature", 1.0) < GREEDY_BELOW:
            given["temperature"] = 0.0
        ends = end_tokens | frozenset(given.get("stop_token_ids", ()))
        stop = given.get("stop", ())
        return cls(
            **{
                **given,
                "stop_token_ids": frozenset() if given.get("ignore_eos") else ends,
                "stop": (stop,) if isinstance(stop, str) else tuple(stop),
            }
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_collection(value: object) -> bool:
    return isinstance(value, (list, tuple, set, frozenset))


_OPTIONAL = {"seed", "stop_token_ids", "stop"}
_RULES: dict[str, tuple[Callable[[Any], object], str]] = {
    "max_new_tokens": (lambda v: _is_int(v) and v >= 1, "a whole number of at least 1"),
    "min_new_tokens": (lambda v: _is_int(v) and v >= 0, "a whole number of at least 0"),
    "temperature": (lambda v: _is_number(v) and v >= 0, "0 (greedy) or a number above"),
    "top_p": (lambda v: _is_number(v) and 0 < v <= 1, "a number above 0 and at most 1"),
    "top_k": (lambda v: _is_int(v) and (v == -1 or v >= 1), "-1 (all tokens) or a whole number of at least 1"),
    "seed": (_is_int, "a whole number"),
    "stop_token_ids": (lambda v: _is_collection(v) and all(map(_is_int, v)), "a list of token ids"),
    "stop": (
        lambda v: (isinstance(v, str) and v) or (_is_collection(v) and all(isinstance(s, str) and s for s in v)),
        "a string or a list of strings, none of them empty",
    ),
    "ignore_eos": (lambda v: isinstance(v, bool), "true or false"),
}


def choose_tokens(
    logits: Tensor,
    params: Sequence[SamplingParams],
    draws: Sequence[float],
    banned: Sequence[Collection[int]] | None = None,
) -> tuple[list[int], list[float]]:
    """Choose the next token of every request, and return the tokens and their log-probabilities.

    The log-probability is that of the softmax of logits / temperature over the whole vocabulary (temperature 1 for
    greedy decoding). `top_p`, `top_k` and `banned` restrict which tokens can be chosen but do not renormalise it, so it
    is the number that the trainer computes for the same token.

    Args:
        logits: [B, V]; may be overwritten.
        params: the sampling parameters of each request.
        draws: a random number in [0, 1) for each request; greedy requests ignore theirs. A token is found by inverting
            the cumulative distribution at the draw, so it depends on nothing but the request's logits and draw.
        banned: the tokens that must not be chosen, for each request. Some of them the model may not have: a checkpoint or a request
            may name an end token beyond its vocabulary.
    """
    exact = _divided(logits, [p.temperature or 1.0 for p in params])
    probs = torch.softmax(exact, -1)
    shares = _ban(exact, probs, banned or ())
    drawn = [row for row, own in enumerate(params) if own.temperature]
    limited = [row for row in drawn if params[row].top_p < 1 or params[row].top_k != -1]
    free = sorted(set(drawn).difference(limited))
    numbers = partial(torch.tensor, dtype=torch.float64, device=exact.device)
    chosen = torch.empty(len(params), dtype=torch.long, device=exact.device)
    if greedy := [row for row, own in enumerate(params) if not own.temperature]:
        chosen[greedy] = exact[greedy].argmax(-1)
    if free:
        some = probs if len(free) == len(params) else probs[free]
        chosen[free] = draw_tokens(some, numbers([draws[row] for row in free]))
    if limited:
        some = probs if len(limited) == len(params) else probs[limited]
        top_p = numbers([params[row].top_p for row in limited])
        top_k = [params[row].top_k if params[row].top_k != -1 else exact.shape[-1] for row in limited]
        of_rows = (some, numbers([draws[row] for row in limited]), top_p, torch.tensor(top_k, device=exact.device))
        parts = [slice(first, first + LIMITED_ROWS) for first in range(0, len(limited), LIMITED_ROWS)]
        chosen[limited] = torch.cat([_draw_limited(*(tensor[part] for tensor in of_rows)) for part in parts])
    log_probs = probs.gather(-1, chosen[:, None])[:, 0].log()
    for row, share in shares.items():
        log_probs[row] += share
    return chosen.tolist(), log_probs.tolist()


def _ban(exact: Tensor, probs: Tensor, banned: Sequence[Collection[int]]) -> dict[int, Tensor]:
    """Leave banned tokens out of logits and of the probabilities that they give, both [B, V], in place.

    Where the others together have less than `LITTLE`, their probabilities would be rounded, to zero in the end. There they are divided
    by their sum.

    Returns:
        {row: the logarithm of that sum}.
    """
    size = exact.shape[-1]
    known = {row: own for row, tokens in enumerate(banned) if (own := [token for token in tokens if 0 <= token < size])}
    if not known:
        return {}
    for row, tokens in known.items():
        probs[row, tokens] = 0
    sums = (probs if len(known) == len(probs) else probs[list(known)]).sum(-1).tolist()
    shares: dict[int, Tensor] = {}
    for (row, tokens), left in zip(known.items(), sums, strict=True):
        before = exact[row].logsumexp(-1) if left < LITTLE else None
        exact[row, tokens] = -torch.inf
        if before is not None:
            probs[row] = torch.softmax(exact[row], -1)
            shares[row] = exact[row].logsumexp(-1) - before
    return shares


def likeliest_tokens(
    logits: Tensor, temperatures: Sequence[float], counts: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    """Return (token, log-prob) of the likeliest tokens of every request, the likeliest first.

    Args:
        logits: [B, V]; stay as they are.
        temperatures: of each request, above 0.
        counts: how many tokens each request wants to know.
    """
    found: list[tuple[tuple[int, float], ...]] = [()] * len(counts)
    if rows := [row for row, count in enumerate(counts) if count]:
        own, some = logits[rows], [temperatures[row] for row in rows]
        tokens = own.topk(min(max(counts), own.shape[-1]), -1).indices
        numbers = log_probs_of(tokens, own, some).tolist()
        for row, likeliest, told in zip(rows, tokens.tolist(), numbers, strict=True):
            found[row] = tuple(zip(likeliest, told, strict=True))[: counts[row]]
    return found


def log_probs_of(tokens: Tensor, logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Return the log-probs of tokens [B, n] in the softmax of logits [B, V] / temperature, at least in float32: of a token that
    `choose_tokens` has chosen, bit for bit what that returned."""
    exact = _divided(logits, temperatures)
    probs = torch.softmax(exact, -1).gather(-1, tokens)
    too_small = probs < torch.finfo(probs.dtype).tiny  # to keep its digits
    found = probs.log()
    return torch.log_softmax(exact, -1).gather(-1, tokens).where(too_small, found) if too_small.any() else found


def _divided(logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Logits [B, V] divided by each row's temperature, at least in float32."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    if any(temperature != 1 for temperature in temperatures):
        exact = exact / torch.tensor(temperatures, dtype=exact.dtype, device=exact.device)[:, None]
    return exact


def draw_tokens(probs: Tensor, draws: Tensor) -> Tensor:
    """Return a token for each row of `probs` [B, V], by inverting its cumulative distribution at the draw.

    Args:
        probs: probabilities, which need not sum to 1.
        draws: [B], random numbers in [0, 1).

    Returns:
        [B].
    """
    span, rest = invert(_of_spans(probs, torch.sum), draws)
    columns = span[:, None] * SPAN + torch.arange(SPAN, device=probs.device)
    inside = probs.gather(1, columns.clamp(max=probs.shape[1] - 1))
    token, _ = invert(inside.masked_fill_(columns >= probs.shape[1], 0), rest)
    return span * SPAN + token


def _of_spans(probs: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """What `reduce` makes of each span of `probs` [B, V]: [B, n]. The last span may be shorter."""
    whole = probs.shape[1] // SPAN * SPAN
    found = reduce(probs[:, :whole].view(len(probs), whole // SPAN, SPAN), dim=-1)
    if whole < probs.shape[1]:
        found = torch.cat([found, reduce(probs[:, whole:], dim=-1, keepdim=True)], 1)
    return found


def invert(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return which entry of each row of `weights` [B, n] the draw hits, and how far into that entry it is, in [0,
    1)."""
    cumulative = running_sums(weights)
    target = draws[:, None] * cumulative[:, -1:]
    hit = torch.searchsorted(cumulative, target, right=True)
    # Rounding must not lead beyond the last entry that weighs anything.
    hit = torch.minimum(hit, torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()))
    hit = hit.clamp(max=weights.shape[1] - 1)  # where all of them are NaN, which others find
    weight = weights.gather(1, hit).double()
    into = (target - (cumulative.gather(1, hit) - weight)) / weight
    return hit[:, 0], into[:, 0].clamp(0, 1 - 2**-48)


def running_sums(weights: Tensor) -> Tensor:
    """The cumulative sums along the rows of `weights` [..., n], none of them negative, in float64.

    On a GPU of whole numbers: torch adds floating-point numbers there in an order that may change, and refuses to while a trainer in
    the same process computes in deterministic mode.
    """
    if not weights.is_cuda:
        return weights.cumsum(-1, dtype=torch.float64)
    return whole_sums(weights)


def whole_sums(weights: Tensor) -> Tensor:
    """The same of weights that are rounded to multiples of 2^-52 of their row's total."""
    unit = (weights.sum(-1, keepdim=True, dtype=torch.float64) * 2.0**-52).clamp_min_(torch.finfo(torch.float64).tiny)
    return (weights.double() / unit).round_().long().cumsum(-1).double().mul_(unit)


def _draw_limited(probs: Tensor, draws: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Draw from the likeliest tokens that `top_p` and `top_k` leave of each row of `probs` [B, V]. The likeliest token always stays.

    Args:
        draws, top_p: [B], float64.
        top_k: [B]; V or more where there is no limit.

    Returns:
        [B].
    """
    rows, size = probs.shape
    total = probs.sum(-1, dtype=torch.float64)
    # Tokens below total * (1 - top_p) / V weigh less than total * (1 - top_p) all together, so none of them is needed.
    least = total * ((1 - top_p) / size * (1 - 2**-20))  # also when it is rounded to float32
    likeliest = _of_spans(probs, torch.amax)
    # Nor are those below the likeliest token of a span where so many spans have one as likely that they alone are enough.
    ordered = likeliest.sort(dim=-1, descending=True).values
    enough = (running_sums(ordered) < (top_p * total * (1 + 2**-40))[:, None]).sum(-1).minimum(top_k - 1)
    bound = ordered.gather(1, enough.clamp(max=ordered.shape[1] - 1)[:, None])[:, 0].double()
    least = least.maximum(bound.where(enough < ordered.shape[1], 0.0)).to(probs.dtype)
    # The tokens that are left, few, which makes sorting cheap: side by side from the left, in the order of the vocabulary.
    row, span = (likeliest >= least[:, None]).nonzero(as_tuple=True)
    inside = span[:, None] * SPAN + torch.arange(SPAN, device=probs.device)
    found = probs[row[:, None], inside.clamp(max=size - 1)]
    left = (found >= least[row, None]) & (inside < size)
    row = row[left.nonzero()[:, 0]]
    counts = row.bincount(minlength=rows)
    column = torch.arange(len(row), device=probs.device) - (counts.cumsum(0) - counts)[row]
    widest = max(1, int(counts.max()))  # none, where all of them are NaN, which others find
    tokens = torch.zeros(rows, widest, dtype=torch.long, device=probs.device)
    tokens[row, column] = inside[left]
    weights = torch.zeros(rows, widest, dtype=probs.dtype, device=probs.device)
    weights[row, column] = found[left]
    values, order = weights.double().sort(dim=-1, descending=True, stable=True)
    kept = running_sums(values) - values < (top_p * total)[:, None]
    kept &= torch.arange(widest, device=probs.device) < top_k[:, None]
    kept[:, 0] = True
    number, _ = invert(weights * torch.zeros_like(kept).scatter(1, order, kept), draws)
    return tokens.gather(1, number[:, None])[:, 0]
