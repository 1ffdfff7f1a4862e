"""Where a response ends that a server saw in parts, and requests that are left. The servers' responses are scripted; needs no SGLang."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import sglang_cases as cases

from slime_engine_sglang import requests
from slime_engine_sglang.images import ShownPrompt
from slime_engine_sglang.requests import Requests

PROMPT = ShownPrompt([20, 21], [20, 21])
END = 9


def said(*tokens: int, reason: str = "length") -> dict[str, Any]:
    """The body of a response with these tokens."""
    meta = {"finish_reason": {"type": reason}, "output_token_logprobs": [[-1.0, t, None] for t in tokens]}
    return {"output_ids": list(tokens), "meta_info": {**meta, "weight_version": "0"}}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_ABORT_INTERVAL_S", 0.001)


@pytest.mark.parametrize(
    ("sampling", "parts", "tokens", "reason"),
    [
        ({"stop": ["bc"]}, [said(1, 2, reason="abort"), said(3, 4, 5)], [1, 2, 3], "stop"),
        ({"stop": "cde"}, [said(1, 3, reason="abort"), said(4, reason="abort"), said(5, 6)], [1, 3, 4, 5], "stop"),
        ({"stop": ["bc"], "min_new_tokens": 4}, [said(1, 2, reason="abort"), said(3, 4, 5)], [1, 2, 3, 4], "stop"),
        ({"stop": ["bc"]}, [said(2, 4, reason="abort"), said(3, 4, 5)], [2, 4, 3, 4, 5], "length"),
        ({"stop": ["bc"]}, [said(1, 2, 3, reason="abort")], [1, 2, 3], "stop"),
        ({}, [said(1, END, reason="abort")], [1, END], "stop"),
        ({"stop_token_ids": [2]}, [said(1, 2, reason="abort")], [1, 2], "stop"),
        ({"ignore_eos": True}, [said(1, END, reason="abort"), said(2, 3, 4)], [1, END, 2, 3, 4], "length"),
        ({"stop": ["bc"], "min_new_tokens": 4}, [said(1, 2, 3, reason="stop"), said(4, 5)], [1, 2, 3, 4], "stop"),
    ],
)
def test_a_response_in_parts_ends_where_it_would_have_ended_in_one(sampling, parts, tokens, reason) -> None:
    answer, asked = cases.answer_of(PROMPT, parts, {"max_new_tokens": 5, **sampling}, ends=[END])
    assert (answer.tokens, answer.finish_reason) == (tokens, reason)
    assert len(answer.log_probs) == len(answer.versions) == len(tokens)
    assert len(asked) == len(parts)


def test_a_response_that_was_cut_just_before_the_end_of_the_context_is_not_asked_for_again() -> None:
    """A server refuses a prompt that reaches into the last tokens of the context, which would end the run."""
    answer, asked = cases.answer_of(PROMPT, [said(1, 2, 3, reason="abort")], {"max_new_tokens": 50}, context=11)
    assert (answer.tokens, answer.finish_reason) == ([1, 2, 3], "length")
    assert asked[0]["sampling_params"]["max_new_tokens"] == 7


def test_a_request_that_is_cancelled_in_the_step_in_which_it_gets_a_slot_gives_it_back() -> None:
    async def slots_afterwards() -> int:
        args = cases.options(sglang_server_concurrency=1)
        fleet: Any = SimpleNamespace(members=[1], context=None)
        engine = Requests(args, fleet, None, str, (), None)  # type: ignore[arg-type]  # no request is sent
        await engine._slots.acquire()
        task = asyncio.create_task(engine.generate(PROMPT, {"max_new_tokens": 1}, "r"))
        await asyncio.sleep(0.01)  # it waits for the slot
        engine._slots.release()
        await asyncio.sleep(0)  # the slot is taken, and nobody knows yet
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.01)
        return engine._slots._value

    assert asyncio.run(slots_afterwards()) == 1


def test_a_request_that_was_aborted_while_it_waited_is_not_sent() -> None:
    async def sent() -> bool:
        aborted = asyncio.Event()
        aborted.set()

        async def usable() -> None:
            pass

        return await requests._unless(aborted, usable())

    assert not asyncio.run(sent())
