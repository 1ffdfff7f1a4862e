"""A prefix that requests have in common is computed once, and each gets what it would get alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from local_engine_cases import SHAPE, Passes, ask, ask_at_once, endless_greedy, reference_log_probs, until, weights_of
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from slime_core.contracts.engine import Generation
from slime_engine_local.cache import KVCache, Pool, Row
from slime_engine_local.engine import LocalEngine
from slime_engine_local.prefixes import StoredPrefix, common_length, plan_prefix

Start = Callable[..., LocalEngine]
PROMPT = [(11 * n) % 290 + 5 for n in range(30)]
OTHER = [(13 * n) % 290 + 6 for n in range(25)]
SAMPLED = {"max_new_tokens": 12, "ignore_eos": True, "temperature": 0.8, "top_p": 0.9}


def group(prompt: Sequence[int], size: int, first_seed: int = 0) -> list[tuple[list[int], dict[str, Any]]]:
    return [(list(prompt), {**SAMPLED, "seed": first_seed + n}) for n in range(size)]


def expect_equal(answers: Sequence[Generation], expected: Sequence[Generation]) -> None:
    for answer, alone in zip(answers, expected, strict=True):
        assert answer.tokens == alone.tokens
        assert answer.log_probs == pytest.approx(alone.log_probs, rel=0, abs=1e-10)


def test_the_prompt_of_a_group_is_computed_once(llama: Any, start: Start) -> None:
    engine = start(*llama)
    alone = [ask(engine, [case])[0] for case in group(PROMPT, 6)]
    passes = Passes(engine)
    answers = ask_at_once(engine, group(PROMPT, 6))
    assert passes.tokens == [30] + [6] * 11
    assert passes.stored == [30 + 6 * n for n in range(12)]
    expect_equal(answers, alone)


def test_a_request_that_comes_later_computes_only_what_is_new(llama: Any, start: Start) -> None:
    engine = start(*llama)
    cases = [*group(PROMPT, 1), *group(PROMPT, 2, 1), *group([*PROMPT, 7, 8, 9], 1, 3)]
    alone = [ask(engine, [case])[0] for case in cases]

    def hold(number: int) -> None:
        if number == 4:
            until(lambda: len(engine._scheduler._arrived) == 3)

    passes = Passes(engine, hold)

    async def scenario() -> list[Generation]:
        first = asyncio.create_task(engine.generate(*cases[0]))
        await asyncio.to_thread(until, lambda: len(passes.sizes) == 4)
        return await asyncio.gather(first, *(engine.generate(*case) for case in cases[1:]))

    answers = asyncio.run(scenario())
    # One token is decoded. The shared prompt is copied but for its last token, which is computed; the two requests that
    # end there need no more, and the third one computes its three tokens.
    assert passes.tokens[:5] == [30, 1, 1, 1, 1 + 1 + 3]
    expect_equal(answers, alone)


MODELS = {
    "sliding window": (MistralForCausalLM, MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=8)),
    "window in one layer": (
        Qwen3ForCausalLM,
        Qwen3Config(
            **SHAPE,
            num_key_value_heads=2,
            head_dim=16,
            use_sliding_window=True,
            sliding_window=20,
            max_window_layers=1,
        ),
    ),
    "one key head for each": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, num_key_value_heads=4, head_dim=16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_of_all_kinds_of_sharing_are_those_of_transformers(
    name: str, random_model: Any, start: Start
) -> None:
    folder, model = random_model(*MODELS[name])
    engine = start(folder, model)
    long = [(17 * n) % 290 + 5 for n in range(100)]
    cases = [
        *group(PROMPT, 5),
        *group([*PROMPT, 9, 9, 4], 2),
        *group([*PROMPT[:20], *OTHER], 3),
        *group(OTHER, 1),
        *group(long, 4),
        *group([3], 3),
    ]
    random.Random(0).shuffle(cases)
    cases = [(prompt, {**params, "max_new_tokens": 3 + 5 * (n % 9)}) for n, (prompt, params) in enumerate(cases)]
    for (prompt, params), answer in zip(cases, ask_at_once(engine, cases), strict=True):
        assert len(answer.tokens) == params["max_new_tokens"]
        expected = reference_log_probs(model, prompt, answer.tokens, 0.8)
        assert answer.log_probs == pytest.approx(expected, rel=0, abs=1e-10)


def test_requests_that_are_a_prefix_as_a_whole_get_its_logits_beside_a_prefix_that_none_is(
    llama: Any, start: Start
) -> None:
    folder, model = llama
    greedy = {"max_new_tokens": 3, "temperature": 0, "ignore_eos": True}
    prompts = [[*PROMPT, 9], [*PROMPT, 8], OTHER, OTHER]  # as many wholes as there are shared prefixes
    answers = ask_at_once(start(folder, model), [(prompt, greedy) for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == endless_greedy(model, prompt, 3)
        assert answer.log_probs == pytest.approx(reference_log_probs(model, prompt, answer.tokens), rel=0, abs=1e-10)


def test_a_group_may_join_while_others_run_and_leave(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder, model, max_running=7)
    cases = [case for n in range(6) for case in group([*PROMPT[: 10 + 3 * n], n + 50], 4, 10 * n)]
    cases = [(prompt, {**params, "max_new_tokens": 1 + (7 * n) % 80}) for n, (prompt, params) in enumerate(cases)]
    for (prompt, params), answer in zip(cases, ask(engine, cases), strict=True):
        assert len(answer.tokens) == params["max_new_tokens"]
        expected = reference_log_probs(model, prompt, answer.tokens, 0.8)
        assert answer.log_probs == pytest.approx(expected, rel=0, abs=1e-10)
    engine._scheduler.call(lambda: None).result()
    assert len(engine._scheduler._storage.cache) == 0
    assert engine._scheduler._storage.prefixes == []


def test_a_request_for_whose_rows_memory_is_short_fails_and_is_not_lost(
    llama: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(*llama)
    add = KVCache.add

    def short(cache: KVCache, length: int, shared: bool = False) -> Row:
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(KVCache, "add", short)
    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(asyncio.wait_for(engine.generate(PROMPT, SAMPLED), 30))
    assert KVCache.add is add
    assert len(ask(engine, group(PROMPT, 2))) == 2


def test_what_old_weights_made_is_not_shared_with_new_requests(llama: Any, start: Start) -> None:
    folder, model = llama
    other = LlamaForCausalLM(model.config).double().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(std=0.3)
    engine = start(folder, model)
    scheduler = engine._scheduler

    def hold(number: int) -> None:
        if number == 4:
            until(lambda: bool(scheduler._calls))
        if number == 5:
            until(lambda: bool(scheduler._arrived))

    passes = Passes(engine, hold)

    async def scenario() -> Generation:
        old = [asyncio.create_task(engine.generate(PROMPT, {**SAMPLED, "max_new_tokens": 40})) for _ in range(2)]
        await asyncio.to_thread(until, lambda: len(passes.sizes) == 4)
        await asyncio.to_thread(engine.update_weights, weights_of(other), 2)
        new = await engine.generate(PROMPT, SAMPLED)
        await asyncio.gather(*old)
        return new

    new = asyncio.run(scenario())
    assert new.weight_versions == [2] * 12
    assert new.log_probs == pytest.approx(reference_log_probs(other, PROMPT, new.tokens, 0.8), rel=0, abs=1e-10)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_the_common_prefix_is_found(first: list[int], second: list[int]) -> None:
    length = common_length(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


def test_short_common_prefixes_are_not_shared() -> None:
    row = Row(Pool(64), 0)
    stored = [StoredPrefix(PROMPT[:10], row, shared=True, pending=False)]
    assert plan_prefix(PROMPT, stored, [PROMPT[:12]]).length == 0
    assert plan_prefix(PROMPT, stored, [PROMPT[:16]]).length == 16


def test_groups_of_the_real_model_equal_transformers_in_float32(assets: Callable[[str], Path], start: Start) -> None:
    from transformers import AutoModelForCausalLM

    folder = assets("model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = start(folder, model)
    prompts = [[(31 * n * n + seed) % 40000 + 100 for n in range(40)] for seed in range(2)]
    cases = [
        (prompt, {"max_new_tokens": 8, "seed": seed, "ignore_eos": True}) for prompt in prompts for seed in range(3)
    ]
    for (prompt, _), answer in zip(cases, ask_at_once(engine, cases), strict=True):
        expected = reference_log_probs(model, prompt, answer.tokens)
        assert answer.log_probs == pytest.approx(expected, rel=1e-4, abs=1e-4)
