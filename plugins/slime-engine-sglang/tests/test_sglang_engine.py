"""Responses of two real SGLang servers behind the real router, on CPUs, compared with plain transformers; requests that
are refused or aborted. `scripts/test-sglang.sh` makes the environment and runs this.
"""

from __future__ import annotations

import asyncio
import time

import pytest
import sglang_cases as cases
import torch
from sglang_cases import LONG, ask, difference

from slime_core.errors import ArgumentError

pytest.importorskip("sglang", reason="needs SGLang; scripts/test-sglang.sh makes an environment with it")
pytest.importorskip("sglang_router")

from slime_engine_sglang.engine import SGLangEngine

pytestmark = pytest.mark.timeout(900)

TOLERANCE = 1e-4  # of log-probs in float32
PROMPT = [100, 200, 300, 400, 500, 600, 700, 800]


@pytest.mark.parametrize(
    ("params", "temperature"),
    [
        ({"temperature": 0.0}, 1.0),
        ({"temperature": 0.8}, 0.8),
        ({"temperature": 1.0, "top_p": 0.9}, 1.0),
        ({"temperature": 0.8, "top_p": 0.9, "top_k": 20}, 0.8),
    ],
    ids=["greedy", "temperature 0.8", "top-p 0.9", "all of them"],
)
def test_log_probs_are_those_of_the_trainer(engine, reference, params, temperature):
    prompts = [[*PROMPT, n] for n in range(6)]
    answers = ask(engine, *prompts, max_new_tokens=24, **params)
    worst = max(difference(reference, p, a, temperature) for p, a in zip(prompts, answers, strict=True))
    print(f"largest difference: {worst:.2e}")
    assert worst < TOLERANCE
    assert all(a.weight_versions == [0] * len(a.tokens) and a.tokens for a in answers)
    if temperature != 1.0:  # a planted fault: at another temperature they are others
        assert difference(reference, prompts[0], answers[0], 1.0) > 100 * TOLERANCE


def test_greedy_and_sampled_requests_in_one_batch_have_log_probs_of_their_own_temperature(engine, reference):
    async def both():
        calls = [
            engine.generate([*PROMPT, n], {"max_new_tokens": 40, "temperature": t, "ignore_eos": True})
            for n, t in enumerate([0.0, 0.7] * 4)
        ]
        return await asyncio.gather(*calls)

    for n, answer in enumerate(asyncio.run(both())):
        assert difference(reference, [*PROMPT, n], answer, 1.0 if n % 2 == 0 else 0.7) < TOLERANCE


def test_greedy_tokens_are_those_of_transformers(engine, reference):
    (answer,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, ignore_eos=True)
    assert answer.tokens == reference.greedy(PROMPT, 16)
    assert answer.finish_reason == "length"


def test_a_stop_token_ends_the_answer_and_belongs_to_it(engine):
    (free,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, ignore_eos=True)
    (answer,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, stop_token_ids=[free.tokens[5]])
    cut = free.tokens.index(free.tokens[5]) + 1
    assert (answer.tokens, answer.finish_reason) == (free.tokens[:cut], "stop")
    (longer,) = ask(
        engine, PROMPT, max_new_tokens=16, min_new_tokens=cut + 2, temperature=0.0, stop_token_ids=[free.tokens[5]]
    )
    assert len(longer.tokens) >= cut + 2


def test_a_stop_string_ends_the_answer_and_belongs_to_it(engine):
    (free,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, ignore_eos=True)
    piece = engine._tokenizer.decode(free.tokens[3:5])
    (answer,) = ask(engine, PROMPT, max_new_tokens=16, temperature=0.0, ignore_eos=True, stop=piece)
    assert answer.finish_reason == "stop"
    assert answer.tokens == free.tokens[: len(answer.tokens)]
    assert piece in engine._tokenizer.decode(answer.tokens)
    assert len(answer.tokens) <= 6


def test_samples_of_a_group_share_their_prompt(engine):
    engine.take_metrics()
    prompt = list(range(1000, 1200))
    ask(engine, prompt, max_new_tokens=2, temperature=1.0)
    ask(engine, *[prompt] * 7, max_new_tokens=2, temperature=1.0)
    hits = engine.take_metrics()["prefix_cache_hit_rate"]
    print(f"share of prompt tokens from the cache: {hits:.2f}")
    assert hits > 0.7


def test_a_response_ends_where_the_models_context_does(engine):
    for length, expected in ((500, 10), (505, 5), (506, 0), (511, 0)):
        (answer,) = ask(engine, list(range(1, length + 1)), max_new_tokens=400, temperature=0.0, ignore_eos=True)
        assert (answer.finish_reason, len(answer.tokens)) == ("length", expected)


@pytest.mark.parametrize(
    ("prompt", "params", "text"),
    [
        ([], {}, "no tokens"),
        ([10**6], {}, "the model knows"),
        (list(range(512)), {}, "leaves no room"),
        (PROMPT, {"top_p": 7.0}, "top_p"),
        (PROMPT, {"temperature": -1.0}, "temperature"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(engine, prompt, params, text):
    with pytest.raises(ArgumentError, match=text):
        ask(engine, prompt, max_new_tokens=4, **{"temperature": 1.0, **params})


def test_an_aborted_request_returns_its_tokens_and_goes_on_from_there(engine, reference):
    async def cut_off():
        asking = [asyncio.ensure_future(engine.generate([*PROMPT, n], dict(LONG), f"r-{n}")) for n in (1, 12)]
        while not cases.requests_of(engine).running or time.monotonic() < started + 0.5:
            await asyncio.sleep(0.01)
        await engine.abort(["r-1", "nobody"])
        aborted_at = [task.done() for task in asking]
        return await asyncio.gather(*asking), aborted_at

    started = time.monotonic()
    (part, other), done = asyncio.run(cut_off())
    assert done[0], "abort returned before the request had ended"
    assert (part.finish_reason, other.finish_reason) == ("abort", "length"), "a name that begins like another"
    assert len(part.tokens) < 400
    assert len(other.tokens) == 400
    (more,) = ask(engine, [*PROMPT, 1, *part.tokens], **{**LONG, "max_new_tokens": 20})
    count = len(part.tokens) + len(more.tokens)
    assert part.tokens + more.tokens == reference.greedy([*PROMPT, 1], count)
    whole = torch.tensor(part.log_probs + more.log_probs)
    assert (reference.log_probs([*PROMPT, 1], part.tokens + more.tokens) - whole).abs().max() < TOLERANCE


def test_aborting_everything_ends_everything_even_what_waits(engine):
    async def all_of_them():
        asking = [asyncio.ensure_future(engine.generate([*PROMPT, n], dict(LONG), f"r-{n}")) for n in range(80)]
        await asyncio.sleep(0.3)
        await asyncio.wait_for(engine.abort(), 60)
        return await asyncio.wait_for(asyncio.gather(*asking), 1)

    answers = asyncio.run(all_of_them())
    assert {answer.finish_reason for answer in answers} <= {"abort", "length"}
    assert sum(answer.finish_reason == "abort" for answer in answers) > 40
    (after,) = ask(engine, PROMPT, max_new_tokens=2, temperature=0.0)
    assert after.finish_reason != "abort"


def test_another_engine_can_use_servers_that_run_already(engine, tiny_model, tmp_path):
    addresses = [url.removeprefix("http://") for url in engine.weight_sender().urls]
    args = cases.arguments(tiny_model, tmp_path, "--rollout-external-engine-addrs", *addresses)
    other = SGLangEngine(args)
    try:
        answers = ask(other, *[[*PROMPT, n] for n in range(4)], max_new_tokens=4, temperature=0.0)
        assert all(answer.tokens for answer in answers)
    finally:
        other.close()
    (still,) = ask(engine, PROMPT, max_new_tokens=4, temperature=0.0)
    assert still.tokens
