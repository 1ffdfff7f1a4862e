"""Tokens are drawn from the distribution that was asked for, and parameters that cannot be used are errors."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.errors import ArgumentError
from slime_engine_local.sampling import SamplingParams, choose_tokens, likeliest_tokens, log_probs_of, whole_sums

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -30.0], dtype=torch.float64)


def frequencies(draws: int = 10_000, **params: Any) -> list[float]:
    rng = random.Random(0)
    given = [SamplingParams(1, **params)] * draws
    tokens, _ = choose_tokens(LOGITS.expand(draws, -1), given, [rng.random() for _ in range(draws)])
    return (torch.bincount(torch.tensor(tokens), minlength=6) / draws).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_at_the_temperature_says(temperature: float) -> None:
    expected = torch.softmax(LOGITS / temperature, -1).tolist()
    assert frequencies(temperature=temperature) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 1}, 1),
        ({"top_k": 3}, 3),
        ({"top_k": 99}, 6),
        ({"top_p": 0.1}, 1),
        ({"top_p": 0.7}, 2),
        ({"top_p": 0.9999}, 5),
        ({"top_p": 0.99, "top_k": 2}, 2),
        ({"top_p": 0.1, "top_k": 2}, 1),
    ],
)
def test_top_p_and_top_k_keep_the_likeliest_tokens_in_proportion(params: dict[str, Any], allowed: int) -> None:
    probs = torch.softmax(LOGITS, -1)
    probs[allowed:] = 0
    assert frequencies(**params) == pytest.approx((probs / probs.sum()).tolist(), abs=0.02)


def textbook(probs: torch.Tensor, top_p: float, top_k: int) -> list[int]:
    """The tokens that may be chosen: of equally likely ones those that come first in the vocabulary."""
    kept, total = [], 0.0
    for token in sorted(range(len(probs)), key=lambda t: -probs[t]):
        if len(kept) == top_k or total >= top_p:
            break
        kept.append(token)
        total += probs[token].item()
    return kept


LIMITS = st.tuples(st.floats(0.01, 1.0), st.integers(1, 600))


@settings(max_examples=50)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 50, 255, 256, 257, 512, 600]),
    st.sampled_from([0.1, 3.0, 10.0]),
    st.booleans(),
    st.lists(LIMITS, min_size=1, max_size=20),
)
def test_the_kept_set_is_that_of_the_textbook(
    seed: int, size: int, scale: float, rounded: bool, limits: list[tuple[float, int]]
) -> None:
    """In batches of rows with limits of their own, also where many tokens are equally likely."""
    logits = scale * torch.randn(len(limits), size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if rounded else logits
    draws = [0.0, 1 - 2**-48, *(n / 20 for n in range(20))]
    params = [SamplingParams(1, top_p=top_p, top_k=top_k) for top_p, top_k in limits for _ in draws]
    tokens, _ = choose_tokens(logits.repeat_interleave(len(draws), 0), params, draws * len(limits))
    for row, (top_p, top_k) in enumerate(limits):
        kept = textbook(torch.softmax(logits[row], -1), top_p, top_k)
        chosen = tokens[row * len(draws) : (row + 1) * len(draws)]
        assert set(chosen) <= set(kept)
        assert chosen[0] == min(kept)
        assert chosen[1] == max(kept)


def test_top_k_keeps_no_more_than_k_of_equally_likely_tokens() -> None:
    tokens, _ = choose_tokens(torch.zeros(100, 5), [SamplingParams(1, top_k=2)] * 100, [n / 100 for n in range(100)])
    assert set(tokens) == {0, 1}


def test_temperature_zero_takes_the_likeliest_token_with_its_log_prob_at_temperature_one() -> None:
    tokens, log_probs = choose_tokens(LOGITS[None], [SamplingParams(1, temperature=0)], [0.99])
    assert tokens == [0]
    assert log_probs == pytest.approx([torch.log_softmax(LOGITS, -1)[0].item()], abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_token_has_one_log_prob_chosen_or_among_the_likeliest(dtype: torch.dtype) -> None:
    logits = torch.randn(400, 1000, generator=torch.Generator().manual_seed(0)).mul(4).to(dtype)
    heat = [(0.0, 1.0, 0.7)[row % 3] for row in range(len(logits))]
    draws = torch.rand(len(logits), generator=torch.Generator().manual_seed(1)).tolist()
    others = likeliest_tokens(logits, [t or 1.0 for t in heat], [1 + row % 5 for row in range(len(logits))])
    tokens, log_probs = choose_tokens(logits, [SamplingParams(1, temperature=t) for t in heat], draws)
    assert [len(own) for own in others] == [1 + row % 5 for row in range(len(logits))]
    for token, log_prob, own in zip(tokens, log_probs, others, strict=True):
        assert dict(own).get(token, log_prob) == log_prob
        assert own[0][1] >= log_prob
        assert [number for _, number in own] == sorted((number for _, number in own), reverse=True)
    assert sum(token in dict(own) for token, own in zip(tokens, others, strict=True)) > 200


def test_log_probs_of_tokens_that_are_all_but_impossible_keep_their_digits() -> None:
    logits = torch.tensor([[0.0, -60.0, -95.0, -300.0]])
    expected = [0.0, -60.0, -95.0, -300.0]
    assert log_probs_of(torch.arange(4)[None], logits, [1.0])[0].tolist() == pytest.approx(expected, abs=1e-4)
    assert dict(likeliest_tokens(logits, [0.5], [4])[0]) == pytest.approx(
        {n: 2 * x for n, x in enumerate(expected)}, abs=1e-3
    )


@pytest.mark.parametrize("temperature", [0, 1])
def test_banned_tokens_that_the_model_has_not_change_nothing(temperature: float) -> None:
    rows, params = LOGITS.repeat(2, 1), [SamplingParams(1, temperature=temperature)] * 2
    beyond = [{len(LOGITS), 10**9, -1}, {0, len(LOGITS)}]
    assert choose_tokens(rows.clone(), params, [0.0, 0.9], beyond) == choose_tokens(
        rows, params, [0.0, 0.9], [set(), {0}]
    )


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens, log_probs = choose_tokens(logits, [SamplingParams(1)] * 2, [0.2, 0.8])
    exact = torch.log_softmax(logits.double(), -1)
    assert log_probs == pytest.approx([exact[row, token].item() for row, token in enumerate(tokens)], abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "max_new_tokens is missing"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"max_new_tokens": 2.5}, "whole number"),
        ({"max_new_tokens": True}, "whole number"),
        ({"temperature": -1}, "0 \\(greedy\\) or a number above"),
        ({"temperature": float("nan")}, "0 \\(greedy\\) or a number above"),
        ({"top_p": 0}, "above 0"),
        ({"top_p": 1.1}, "at most 1"),
        ({"top_k": 0}, "-1"),
        ({"seed": "x"}, "whole number"),
        ({"min_new_tokens": -1}, "at least 0"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"stop": [3]}, "string"),
        ({"ignore_eos": 1}, "true or false"),
        ({"stop_token_ids": 5}, "list of token ids"),
        ({"stop_token_ids": ["x"]}, "list of token ids"),
        ({"min_p": 0.1}, "does not know the sampling parameter 'min_p'"),
    ],
)
def test_a_wrong_sampling_parameter_is_an_error_that_says_what_is_right(given: dict[str, Any], message: str) -> None:
    filled = given if not given or "max_new_tokens" in given else {"max_new_tokens": 4, **given}
    with pytest.raises(ArgumentError, match=message):
        SamplingParams.parse(filled, frozenset())


@pytest.mark.parametrize(("given", "meant"), [(0, 0), (1e-9, 0), (9e-7, 0), (1e-6, 1e-6), (1e-5, 1e-5), (2, 2)])
def test_temperatures_that_are_greedy_in_sglang_are_greedy(given: float, meant: float) -> None:
    assert SamplingParams.parse({"max_new_tokens": 1, "temperature": given}, frozenset()).temperature == meant


def test_stop_tokens_are_those_named_and_the_checkpoints_unless_ignored() -> None:
    def stops(**given: Any) -> frozenset[int]:
        return SamplingParams.parse({"max_new_tokens": 1, **given}, frozenset([2])).stop_token_ids

    assert stops() == stops(stop_token_ids=None) == stops(stop_token_ids=[]) == {2}
    assert stops(stop_token_ids=[7]) == {2, 7}
    assert stops(ignore_eos=True) == frozenset()
    assert stops(stop_token_ids=[7], ignore_eos=True) == frozenset(), (
        "SGLang's meaning, where no token ends the response"
    )


def test_stop_strings_may_be_one_or_several() -> None:
    def stop(given: Any) -> tuple[str, ...]:
        return SamplingParams.parse({"max_new_tokens": 1, "stop": given}, frozenset()).stop

    assert stop("ab") == stop(["ab"]) == ("ab",)
    assert stop(None) == stop([]) == ()


@pytest.mark.parametrize("count", [1, 7, 400, 50_000])
def test_sums_of_whole_numbers_are_those_of_floating_point_numbers(count: int) -> None:
    """Which a GPU takes. A weight is off by half of 2^-52 of the total, and so are sums of so many, at most."""
    torch.manual_seed(count)
    weights = torch.softmax(torch.randn(3, count) * 4, -1)
    weights[1] *= 1e-12  # of a row that weighs next to nothing
    weights[2] = 0
    exact = weights.cumsum(-1, dtype=torch.float64)
    found = whole_sums(weights)
    assert (found[:2] / exact[:2, -1:] - exact[:2] / exact[:2, -1:]).abs().max() <= (count + 2) * 2.0**-53
    assert not found[2].any()
    assert (found.diff(dim=-1) >= 0).all()
