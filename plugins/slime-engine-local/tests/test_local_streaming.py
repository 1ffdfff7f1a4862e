"""Tokens are handed out while a response is generated, and given tokens are scored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from local_engine_cases import Passes, ask, held, reference_log_probs, until

from slime_core.contracts.engine import Generation, ScoredToken
from slime_core.errors import ArgumentError
from slime_engine_local.engine import LocalEngine
from slime_engine_local.scoring import PIECE

Start = Callable[..., LocalEngine]
PROMPT = list(range(5, 25))
PARAMS = {"max_new_tokens": 12, "seed": 3, "ignore_eos": True, "temperature": 0.7}


def test_tokens_are_handed_out_as_they_are_chosen_and_are_those_of_the_response(start: Start, llama: Any) -> None:
    engine = start(*llama)
    heard: list[tuple[ScoredToken, int]] = []

    async def scenario() -> Generation:
        return await engine.stream(PROMPT, PARAMS, lambda chosen: heard.append((chosen, len(passes.sizes))), 3)

    expected = ask(engine, [(PROMPT, PARAMS)])[0]
    passes = Passes(engine)
    answer = asyncio.run(scenario())
    assert (answer.tokens, answer.log_probs) == (expected.tokens, expected.log_probs)
    assert [(t.token, t.log_prob) for t, _ in heard] == list(zip(answer.tokens, answer.log_probs, strict=True))
    assert heard[0][1] < len(passes.sizes)  # the first one came before the last pass
    with torch.no_grad():
        logits = llama[1](torch.tensor([[*PROMPT, *answer.tokens]])).logits[0, len(PROMPT) - 1 : -1]
    values, tokens = torch.log_softmax(logits / 0.7, -1).topk(3)
    assert [[t for t, _ in chosen.likeliest] for chosen, _ in heard] == tokens.tolist()
    for (chosen, _), row in zip(heard, values.tolist(), strict=True):
        assert [p for _, p in chosen.likeliest] == pytest.approx(row, abs=1e-9)


def test_a_cancelled_stream_leaves_the_engine_and_says_no_more(start: Start, llama: Any) -> None:
    engine = start(*llama)
    heard: list[ScoredToken] = []

    async def scenario() -> int:
        task = asyncio.create_task(engine.stream(PROMPT, {**PARAMS, "max_new_tokens": 100}, heard.append))
        while not heard:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.to_thread(
            until, lambda: not engine._scheduler._running and not len(engine._scheduler._storage.cache)
        )
        return len(heard)

    assert asyncio.run(scenario()) < 100


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_given_tokens_have_the_log_probs_of_transformers_in_pieces_and_beside_running_requests(
    start: Start, llama: Any, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_engine_local.scoring.PIECE", 7)
    engine, tokens = start(*llama), list(range(5, 45))

    async def scenario() -> tuple[list[ScoredToken], Generation]:
        beside = asyncio.create_task(engine.generate(PROMPT, PARAMS))
        return await engine.score(tokens, temperature, likeliest=1), await beside

    scored, beside = asyncio.run(scenario())
    assert PIECE > 7  # so that this test has looked at several pieces
    assert [token.token for token in scored] == tokens[1:]
    expected = reference_log_probs(llama[1], tokens[:1], tokens[1:], temperature)
    assert [token.log_prob for token in scored] == pytest.approx(expected, abs=1e-9)
    assert all(token.likeliest[0][1] >= token.log_prob - 1e-12 for token in scored)
    assert beside.tokens == ask(engine, [(PROMPT, PARAMS)])[0].tokens


def test_one_set_of_weights_scores_all_tokens(start: Start, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slime_engine_local.scoring.PIECE", 7)
    engine, tokens = start(*llama), list(range(5, 45))

    async def scenario() -> list[ScoredToken]:
        with held(engine):
            task = asyncio.create_task(engine.score(tokens))
            await asyncio.sleep(0.01)
            engine._scheduler.call(lambda: engine._scheduler.use(engine._scheduler.model, 2))  # type: ignore[arg-type]  # is there
        return await task

    assert len(asyncio.run(scenario())) == len(tokens) - 1


def test_what_cannot_be_scored_is_refused(start: Start, llama: Any) -> None:
    engine = start(*llama)
    for tokens, temperature, problem in (
        ([], 1.0, "no tokens"),
        ([300], 1.0, "knows 0 to 299"),
        ([5] * 129, 1.0, "ends at 128"),
        ([5], 0.0, "above 0"),
    ):
        with pytest.raises(ArgumentError, match=problem):
            asyncio.run(engine.score(tokens, temperature))
    assert asyncio.run(engine.score([5])) == []
