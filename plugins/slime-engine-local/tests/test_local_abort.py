"""Aborted requests answer with what there is, and can be continued."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from local_engine_cases import Passes, all_there, ask, held, reference_log_probs, until

from slime_core.contracts.engine import Generation
from slime_engine_local.engine import LocalEngine

Start = Callable[..., LocalEngine]
PROMPT = list(range(5, 25))
LONG = {"max_new_tokens": 60, "seed": 3, "ignore_eos": True}


def aborted_at_pass(
    engine: LocalEngine, number: int, requests: dict[str, tuple[list[int], dict[str, Any]]], ids: list[str] | None
) -> dict[str, Generation]:
    """The answers to requests that are made together, of which `ids` are aborted during forward pass `number`."""
    scheduler = engine._scheduler
    reached: list[int] = []

    def hold(now: int) -> None:
        if now == number:
            reached.append(now)
            until(lambda: bool(scheduler._calls))

    Passes(engine, hold)

    async def scenario() -> list[Generation]:
        with held(engine):
            tasks = [asyncio.create_task(engine.generate(*case, request_id=name)) for name, case in requests.items()]
            await asyncio.to_thread(until, all_there(engine, len(requests)))
        await asyncio.to_thread(until, lambda: bool(reached))
        await engine.abort(ids)
        named = set(requests if ids is None else ids)
        assert not [r for r in (*scheduler._running, *scheduler._waiting) if r.name in named]
        return await asyncio.gather(*tasks)

    return dict(zip(requests, asyncio.run(scenario()), strict=True))


def test_an_aborted_request_returns_what_there_is_and_the_others_go_on(llama: Any, start: Start) -> None:
    engine = start(*llama)
    cases = {name: (PROMPT, {**LONG, "seed": seed}) for seed, name in enumerate("abc")}
    whole = dict(zip(cases, ask(engine, list(cases.values())), strict=True))
    answers = aborted_at_pass(engine, 10, cases, ["b", "unknown"])
    assert [answers[name].finish_reason for name in "abc"] == ["length", "abort", "length"]
    assert len(answers["b"].tokens) == len(answers["b"].weight_versions) == 10
    assert answers["b"].tokens == whole["b"].tokens[:10]
    assert answers["b"].log_probs == pytest.approx(whole["b"].log_probs[:10], abs=1e-10)
    assert answers["a"].tokens == whole["a"].tokens
    assert answers["c"].tokens == whole["c"].tokens


def test_aborting_all_ends_running_and_waiting_requests(llama: Any, start: Start) -> None:
    engine = start(*llama, max_running=2)
    cases = dict.fromkeys("abcd", (PROMPT, LONG))
    answers = aborted_at_pass(engine, 5, cases, None)
    assert {answer.finish_reason for answer in answers.values()} == {"abort"}
    assert [len(answers[name].tokens) for name in "abcd"] == [5, 5, 0, 0]
    assert answers["d"] == Generation([], [], "abort", [], "")
    (after,) = ask(engine, [(PROMPT, LONG)])
    assert len(after.tokens) == 60


def test_requests_without_a_name_are_aborted_with_all_only(llama: Any, start: Start) -> None:
    engine = start(*llama)

    async def scenario() -> Generation:
        with held(engine):
            task = asyncio.create_task(engine.generate(PROMPT, LONG))
            await asyncio.to_thread(until, all_there(engine, 1))
            abort = asyncio.create_task(engine.abort(["a"]))
            await asyncio.to_thread(until, lambda: bool(engine._scheduler._calls))
        await abort
        return await task

    assert asyncio.run(scenario()).finish_reason == "length"


def test_an_abort_right_after_the_request_reaches_it(llama: Any, start: Start) -> None:
    engine = start(*llama)

    async def scenario() -> list[Generation]:
        tasks = [asyncio.create_task(engine.generate(PROMPT, LONG, request_id=str(n))) for n in range(20)]
        await asyncio.sleep(0)
        await engine.abort()
        return await asyncio.gather(*tasks)

    for _ in range(10):
        assert {answer.finish_reason for answer in asyncio.run(scenario())} == {"abort"}


def test_aborting_an_idle_engine_does_nothing(llama: Any, start: Start) -> None:
    engine = start(*llama)
    asyncio.run(engine.abort())
    asyncio.run(engine.abort([]))
    assert ask(engine, [(PROMPT, LONG)])[0].finish_reason == "length"


@pytest.mark.parametrize("params", [{}, {"temperature": 0.7, "top_p": 0.8}])
def test_a_continued_response_is_the_one_that_was_not_interrupted(params: Any, llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder, model)
    (whole,) = ask(engine, [(PROMPT, {**LONG, **params})])
    part = aborted_at_pass(engine, 17, {"a": (PROMPT, {**LONG, **params})}, None)["a"]
    rest = {**LONG, **params, "max_new_tokens": 60 - len(part.tokens)}
    (continued,) = ask(engine, [([*PROMPT, *part.tokens], rest)])
    assert [*part.tokens, *continued.tokens] == whole.tokens
    expected = reference_log_probs(model, PROMPT, whole.tokens, params.get("temperature", 1.0))
    assert [*part.log_probs, *continued.log_probs] == pytest.approx(expected, rel=0, abs=1e-10)
