"""While the engine is held it makes no token, so what is decided between two tokens does not depend on the clock."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from local_engine_cases import ask

PROMPT = [5, 6, 7, 8]
LONG = {"max_new_tokens": 90, "ignore_eos": True, "seed": 1}


def test_nothing_is_generated_while_the_engine_is_held(llama: Any, start: Any) -> None:
    engine = start(*llama)

    async def held() -> tuple[bool, int]:
        with engine.hold():
            task = asyncio.ensure_future(engine.generate(PROMPT, {"max_new_tokens": 3, "ignore_eos": True}))
            await asyncio.sleep(0.1)
            before = task.done()
        return before, len((await task).tokens)

    assert asyncio.run(held()) == (False, 3)


def test_whoever_holds_when_a_response_is_finished_finds_the_others_at_that_very_token(llama: Any, start: Any) -> None:
    engine = start(*llama)

    async def stop_the_rest(think: float) -> int:
        rest = asyncio.ensure_future(engine.generate(PROMPT, LONG, "rest"))
        await engine.generate(PROMPT, {"max_new_tokens": 7, "ignore_eos": True, "seed": 2})
        with engine.hold():
            await asyncio.sleep(think)  # the engine would go on meanwhile
            await engine.abort(["rest"])
        return len((await rest).tokens)

    assert [asyncio.run(stop_the_rest(think)) for think in (0.0, 0.1, 0.03)] == [7, 7, 7]


def test_a_response_that_nobody_waits_for_any_more_does_not_hold_the_engine(llama: Any, start: Any) -> None:
    engine = start(*llama)

    async def leave_at_once() -> None:
        left = asyncio.ensure_future(engine.generate(PROMPT, LONG))
        waiting = asyncio.ensure_future(engine.generate(PROMPT, {"max_new_tokens": 1, "seed": 1}))
        await waiting  # and the loop is closed in the same turn
        assert not left.done()

    for _ in range(3):
        asyncio.run(leave_at_once())
    started = time.monotonic()
    (answer,) = ask(engine, [(PROMPT, {"max_new_tokens": 4, "ignore_eos": True})])
    assert len(answer.tokens) == 4
    assert time.monotonic() - started < 20
