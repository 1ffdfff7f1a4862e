"""New weights while requests run: each token carries the version that made it, and none is lost or made twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from local_engine_cases import Passes, all_there, held, reference_log_probs, until, weights_of
from transformers import DynamicCache, LlamaForCausalLM

from slime_core.contracts.engine import Generation
from slime_engine_local.engine import LocalEngine

PROMPT = list(range(5, 30))
SAMPLED = {"max_new_tokens": 24, "temperature": 0.8, "ignore_eos": True}
OLD_PASSES = 9


@torch.no_grad()
def log_probs_on_a_mixed_cache(old: Any, new: Any, tokens: Sequence[int]) -> list[float]:
    """The log-probs by transformers when another model goes on after so many passes, on the keys and values of the
    first."""
    cache = DynamicCache(config=old.config)
    known = [*PROMPT, *tokens[: OLD_PASSES - 1]]
    first = old(torch.tensor([known]), past_key_values=cache, use_cache=True).logits[0, len(PROMPT) - 1 :]
    rest = new(torch.tensor([tokens[OLD_PASSES - 1 : -1]]), past_key_values=cache, use_cache=True).logits[0]
    logits = torch.cat([first, rest]) / SAMPLED["temperature"]
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("requests", [1, 3], ids=["alone", "a group that shares its prompt"])
def test_running_requests_go_on_with_new_weights_on_what_they_have_and_others_begin_anew(
    llama: Any, start: Callable[..., LocalEngine], requests: int
) -> None:
    folder, model = llama
    other = LlamaForCausalLM(model.config).double().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(std=0.3)
    engine = start(folder, model)
    scheduler = engine._scheduler

    def hold(number: int) -> None:
        if number == OLD_PASSES:
            until(lambda: bool(scheduler._calls))
        if number == OLD_PASSES + 1:
            until(lambda: bool(scheduler._arrived))

    passes = Passes(engine, hold)

    async def scenario() -> tuple[Generation, list[Generation]]:
        with held(engine):
            running = [
                asyncio.create_task(engine.generate(PROMPT, {**SAMPLED, "seed": seed})) for seed in range(requests)
            ]
            await asyncio.to_thread(until, all_there(engine, requests))
        await asyncio.to_thread(until, lambda: len(passes.sizes) == OLD_PASSES)
        await asyncio.to_thread(engine.update_weights, weights_of(other), 2)
        new = await engine.generate(PROMPT, {**SAMPLED, "seed": 0})
        return new, await asyncio.gather(*running)

    new, answers = asyncio.run(scenario())
    for answer in answers:
        assert answer.weight_versions == [1] * OLD_PASSES + [2] * (24 - OLD_PASSES)
        assert len(answer.tokens) == len(answer.log_probs) == 24
        expected = log_probs_on_a_mixed_cache(model, other, answer.tokens)
        assert answer.log_probs == pytest.approx(expected, rel=0, abs=1e-10)
        of_new_weights_alone = reference_log_probs(other, PROMPT, answer.tokens, 0.8)
        assert answer.log_probs[OLD_PASSES:] != pytest.approx(of_new_weights_alone[OLD_PASSES:], rel=0, abs=1e-3)
    assert new.weight_versions == [2] * 24
    assert new.log_probs == pytest.approx(reference_log_probs(other, PROMPT, new.tokens, 0.8), rel=0, abs=1e-10)
    # Each pass gives every request one token (the first one, of a shared prompt, all of them): none is made twice.
    assert sum(passes.sizes) + requests - 1 == 24 * (requests + 1)
