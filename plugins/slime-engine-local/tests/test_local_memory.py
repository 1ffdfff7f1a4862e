"""Keys and values stay within their budget, and requests that had to wait get the responses that they would have
got."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from local_engine_cases import Passes, ask, ask_at_once

from slime_core.errors import ArgumentError
from slime_engine_local.engine import LocalEngine
from slime_engine_local.request import Request

Start = Callable[..., LocalEngine]


@pytest.mark.parametrize("budget", [60, 150, 400])
def test_the_budget_is_kept_and_changes_no_response(budget: int, llama: Any, start: Start) -> None:
    folder, model = llama
    params = {"temperature": 0.9, "ignore_eos": True}
    prompts = [[n + 5] * 3 + list(range(20, 24 + 4 * n)) for n in range(4)]
    cases = [
        (prompt, {**params, "seed": seed, "max_new_tokens": 20 + 5 * seed}) for prompt in prompts for seed in range(4)
    ]
    free = ask(start(folder, model), cases)
    engine = start(folder, model, max_tokens=budget)
    passes = Passes(engine)
    bound = ask_at_once(engine, cases)
    assert max(passes.stored) <= budget
    for answer, expected in zip(bound, free, strict=True):
        assert answer.tokens == expected.tokens
        assert answer.log_probs == pytest.approx(expected.log_probs, rel=0, abs=1e-10)


def test_the_youngest_wait_and_go_on(llama: Any, start: Start) -> None:
    engine = start(*llama, max_tokens=120)
    passes = Passes(engine)
    cases = [([n + 5] * 4, {"max_new_tokens": 70, "seed": n, "ignore_eos": True}) for n in range(2)]
    answers = ask_at_once(engine, cases)
    assert [len(answer.tokens) for answer in answers] == [70, 70]
    alone = passes.sizes.index(1)
    assert passes.sizes[:alone] == [2] * alone  # both, until the budget is used up
    assert max(passes.stored) in (119, 120)
    assert max(passes.tokens[1:]) > 50  # the younger one, its tokens computed anew


def test_a_running_request_is_not_sent_back_the_moment_it_joined(llama: Any, start: Start) -> None:
    engine = start(*llama, max_tokens=130)
    passes = Passes(engine)
    cases = [([n + 5] * 4, {"max_new_tokens": 60, "seed": n, "ignore_eos": True}) for n in range(6)]
    assert all(len(answer.tokens) == 60 for answer in ask_at_once(engine, cases))
    assert sum(passes.tokens) < 2 * 6 * 64


def test_a_request_that_never_fits_is_refused(llama: Any, start: Start) -> None:
    engine = start(*llama, max_tokens=50)
    params = {"max_new_tokens": 41, "ignore_eos": True}
    assert len(ask(engine, [(list(range(5, 15)), params)])[0].tokens) == 41
    with pytest.raises(ArgumentError, match=r"51 tokens, but --local-max-total-tokens is 50\. Raise it"):
        ask(engine, [(list(range(5, 16)), params)])


def test_a_waiting_request_can_be_cancelled(llama: Any, start: Start) -> None:
    engine = start(*llama, max_running=1)

    async def scenario() -> int:
        params = {"max_new_tokens": 30, "ignore_eos": True}
        running, waiting = (asyncio.create_task(engine.generate([5, 6], params)) for _ in range(2))
        await asyncio.sleep(0)
        waiting.cancel()
        return len((await running).tokens)

    assert asyncio.run(scenario()) == 30
    engine._scheduler.call(lambda: None).result()
    assert not engine._scheduler._waiting


def test_what_a_step_looks_at_does_not_grow_with_the_requests_that_wait(
    llama: Any, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Counter[int]()
    ended = Request.ended.fget
    assert ended is not None

    def counted(request: Request) -> bool:
        looked[waiting] += 1
        answer: bool = ended(request)
        return answer

    monkeypatch.setattr(Request, "ended", property(counted))
    engine = start(*llama, max_running=4)
    for waiting in (20, 200):
        params = {"max_new_tokens": 2, "ignore_eos": True}
        ask_at_once(engine, [([5 + n % 40, 6], {**params, "seed": n}) for n in range(waiting)])
    assert looked[200] < 15 * looked[20]  # ten times as many requests, and steps
