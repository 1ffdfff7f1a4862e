"""Checks of inference engines, on a tiny random model. They need torch and transformers."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.contracts.engine import (
    Generation,
    Holds,
    InferenceEngine,
    Offloads,
    ScoredToken,
    Scores,
    Streams,
    TakesMetrics,
)
from slime_core.contracts.results import is_finite_number
from slime_core.testing.checkpoint import chat_tokenizer
from slime_core.testing.subject import Check, Subject

if TYPE_CHECKING:
    from torch import Tensor

GREEDY = {"max_new_tokens": 6, "temperature": 0.0}
RANDOM = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "seed": 7}
LONG: dict[str, Any] = {"max_new_tokens": 300, "temperature": 1.0, "seed": 7, "ignore_eos": True}
PATIENCE = 10.0
"""Seconds within which an aborted or closed engine comes to rest."""
A_WHILE = 0.1
"""Seconds in which an engine that is not held answers a short request."""


def answers_consistently(subject: Subject[InferenceEngine]) -> None:
    """answers with as many log-probs and weight versions as tokens, within the limit"""
    for params in (GREEDY, RANDOM):
        answer = _ask(subject, params)
        count = len(answer.tokens)
        _expect_consistent(subject, answer, 6)
        subject.expect(count > 0, "it returned no token; only an aborted request may.")
        subject.expect(
            all(math.isfinite(p) and p <= 1e-6 for p in answer.log_probs),
            f"its log_probs are {answer.log_probs}; log-probabilities are finite and not above 0.",
        )
        subject.expect(
            answer.finish_reason in ("stop", "length") and (answer.finish_reason == "stop" or count == 6),
            f"it finished with {answer.finish_reason!r} after {count} of 6 tokens; expected 'length' at the limit and "
            "'stop' after a stop token.",
        )


def repeats_itself(subject: Subject[InferenceEngine]) -> None:
    """gives the same answer again when greedy, and with the same seed"""
    for params in (GREEDY, RANDOM):
        first, second = _ask(subject, params), _ask(subject, params)
        subject.expect(
            first.tokens == second.tokens,
            f"asked twice with {params} it answered {first.tokens} and {second.tokens}; temperature 0 takes the "
            "likeliest token, and `seed` fixes all randomness.",
        )


def stops_at_stop_tokens(subject: Subject[InferenceEngine]) -> None:
    """ends an answer with the first stop token, which it includes"""
    free = _ask(subject, GREEDY).tokens
    answer = _ask(subject, {**GREEDY, "stop_token_ids": [free[0]]})
    subject.expect(
        (answer.tokens, answer.finish_reason) == (free[:1], "stop"),
        f"with the stop token {free[0]}, which greedily comes first, it answered {answer.tokens} "
        f"({answer.finish_reason}); expected {free[:1]} (stop).",
    )


def answers_at_some_length(subject: Subject[InferenceEngine]) -> None:
    """goes on past stop tokens until there are min_new_tokens"""
    free = _ask(subject, GREEDY).tokens
    answer = _ask(subject, {**GREEDY, "stop_token_ids": [free[0]], "min_new_tokens": 3})
    subject.expect(
        len(answer.tokens) >= 3,
        f"with min_new_tokens 3 and a likely stop token it ended after {len(answer.tokens)} tokens; expected at least "
        "3.",
    )


def reports_new_weights(subject: Subject[InferenceEngine]) -> None:
    """says which weights it used, the newest that it was handed"""
    for version in (1, 2):
        versions = _ask(subject, GREEDY, version).weight_versions
        subject.expect(
            set(versions) == {version},
            f"after update_weights(…, {version}) its weight_versions are {versions}; expected {version} for every "
            "token.",
        )


def begins_with_the_checkpoint(subject: Subject[InferenceEngine]) -> None:
    """answers with the weights of the checkpoint, as version 0, before any were handed over"""
    before, after = _ask(subject, GREEDY, 0), _ask(subject, GREEDY, 1)
    subject.expect(
        set(before.weight_versions) == {0} and before.tokens == after.tokens,
        f"without update_weights it answered {before.tokens} with weight_versions {before.weight_versions}, and with "
        f"the checkpoint's weights handed over {after.tokens}; expected the same tokens, of version 0.",
    )


def stops_when_aborted(subject: Subject[InferenceEngine]) -> None:
    """returns what there is with "abort" when it is aborted, by request or all, and goes on after that"""
    with _engine(subject) as engine:
        for ids in (["one"], None):
            aborted, other = asyncio.run(_aborted(engine, ids))
            for name, answer in (("one", aborted), ("other", other)):
                _expect_consistent(subject, answer, LONG["max_new_tokens"])
                meant = ids is None or name in ids
                expected = "what there is so far, with abort" if meant else "the whole answer"
                subject.expect(
                    (answer.finish_reason == "abort") == meant,
                    f"abort({ids}) let the request {name!r} end with {answer.finish_reason!r} after "
                    f"{len(answer.tokens)} tokens; expected {expected}.",
                )
        subject.expect(
            len(asyncio.run(engine.generate(_prompt(), dict(GREEDY))).tokens) > 0,
            "after an abort it generates nothing.",
        )


def closes(subject: Subject[InferenceEngine]) -> None:
    """fails requests that are not finished when it is closed, and leaves no thread behind"""
    before = set(threading.enumerate())
    with _engine(subject) as engine:
        failed = asyncio.run(_closed(engine))
    subject.expect(
        failed,
        "a request that was running when close() was called neither failed nor ended; let it raise.",
    )
    deadline = time.monotonic() + PATIENCE
    while (left := [t.name for t in set(threading.enumerate()) - before]) and time.monotonic() < deadline:
        time.sleep(0.01)
    subject.expect(not left, f"after close its threads {left} go on; end them in close().")


def takes_its_memory_again(subject: Subject[InferenceEngine]) -> None:
    """answers after offload and onload as before, if it can and --offload is given"""
    if not (subject.resolved.args.offload and issubclass(subject.target, Offloads)):
        return
    with _engine(subject) as engine:
        assert isinstance(engine, Offloads)
        engine.update_weights(iter(_weights(subject)), 1)
        before = asyncio.run(engine.generate(_prompt(), dict(GREEDY)))
        engine.offload()
        engine.onload()
        after = asyncio.run(engine.generate(_prompt(), dict(GREEDY)))
        subject.expect(
            (before.tokens, before.weight_versions) == (after.tokens, after.weight_versions),
            f"before offload it answered {before.tokens}, weights {before.weight_versions}, and after onload "
            f"{after.tokens}, weights {after.weight_versions}; everything must be as it was.",
        )


def waits(subject: Subject[InferenceEngine]) -> None:
    """generates nothing while it is held, and goes on after that, if it can be held"""
    with _engine(subject) as engine:
        if isinstance(engine, Holds):
            done, answer = asyncio.run(_held(engine))
            subject.expect(not done, "a request was answered inside hold(); make no step until the block has ended.")
            subject.expect(
                len(answer.tokens) > 0, "a request that was made inside hold() has no token after the block."
            )


def streams_what_it_answers(subject: Subject[InferenceEngine]) -> None:
    """hands out every token of an answer in its order, with its log-prob, if it streams"""
    with _engine(subject) as engine:
        if not isinstance(engine, Streams):
            return
        for params in (GREEDY, RANDOM):
            heard: list[ScoredToken] = []
            answer = asyncio.run(engine.stream(_prompt(), dict(params), heard.append, likeliest=2))
            subject.expect(
                [(token.token, token.log_prob) for token in heard]
                == list(zip(answer.tokens, answer.log_probs, strict=True)),
                f"stream handed out the tokens {[token.token for token in heard]} and returned {answer.tokens}; expected the same "
                "ones with the same log_probs.",
            )
            subject.expect(
                all(len(t.likeliest) == 2 and t.likeliest[0][1] >= t.likeliest[1][1] for t in heard),
                f"asked for the 2 likeliest tokens of each place, stream gave {[t.likeliest for t in heard]}; expected two, the "
                "likeliest first.",
            )


def scores_what_it_answers(subject: Subject[InferenceEngine]) -> None:
    """finds the tokens of its answer as likely as when it chose them, if it scores tokens"""
    with _engine(subject) as engine:
        if not isinstance(engine, Scores):
            return
        answer = asyncio.run(engine.generate(_prompt(), dict(RANDOM)))
        scored = asyncio.run(engine.score([*_prompt(), *answer.tokens]))
        own = [(token.token, token.log_prob) for token in scored[len(_prompt()) - 1 :]]
        subject.expect(
            len(scored) == len(_prompt()) + len(answer.tokens) - 1
            and [token for token, _ in own] == answer.tokens
            and all(abs(p - q) < 1e-3 for (_, p), q in zip(own, answer.log_probs, strict=True)),
            f"it answered {answer.tokens} with log_probs {answer.log_probs}, and scores them as {own}; expected the same.",
        )


def counts_in_numbers(subject: Subject[InferenceEngine]) -> None:
    """counts what it does in finite numbers, if it counts"""
    with _engine(subject) as engine:
        if isinstance(engine, TakesMetrics):
            asyncio.run(engine.generate(_prompt(), dict(GREEDY)))
            for name, value in engine.take_metrics().items():
                subject.expect(is_finite_number(value), f"its metric {name!r} is {value!r}; expected a finite number.")


async def _held(engine: InferenceEngine) -> tuple[bool, Generation]:
    """Make a request while the engine is held; return whether it was answered meanwhile, and the answer."""
    assert isinstance(engine, Holds)
    with engine.hold():
        task = asyncio.ensure_future(engine.generate(_prompt(), dict(GREEDY)))
        await asyncio.sleep(A_WHILE)
        done = task.done()
    return done, await asyncio.wait_for(task, PATIENCE)


async def _aborted(engine: InferenceEngine, ids: list[str] | None) -> tuple[Generation, Generation]:
    """Return the answers of two requests, "one" and "other", after an abort of `ids`.

    A request that was answered at once is taken for aborted: there was nothing to abort.
    """
    await engine.abort(["unknown"])
    one = asyncio.ensure_future(engine.generate(_prompt(), dict(LONG), request_id="one"))
    other = asyncio.ensure_future(engine.generate(_prompt(), dict(LONG), request_id="other"))
    await asyncio.sleep(0)
    too_fast = [task for task in (one, other) if task.done()]
    await engine.abort(ids)
    answers = dict(zip((one, other), await asyncio.wait_for(asyncio.gather(one, other), PATIENCE), strict=True))
    for task in too_fast:
        if ids is None or task is one:
            answers[task] = replace(answers[task], finish_reason="abort")
    return answers[one], answers[other]


async def _closed(engine: InferenceEngine) -> bool:
    """Return whether a running request fails when the engine is closed; one answered at once counts as such."""
    task = asyncio.ensure_future(engine.generate(_prompt(), dict(LONG)))
    await asyncio.sleep(0)
    if task.done():
        return True
    await asyncio.to_thread(engine.close)
    done, _ = await asyncio.wait([task], timeout=PATIENCE)
    return bool(done) and (task.cancelled() or task.exception() is not None)


def _ask(subject: Subject[InferenceEngine], params: dict[str, Any], version: int = 1) -> Generation:
    """Return a new engine's answer with weights of `version`; with 0 no weights are handed over."""
    with _engine(subject) as engine:
        for number in range(1, version + 1):
            engine.update_weights(iter(_weights(subject)), number)
        answer = asyncio.run(engine.generate(_prompt(), dict(params)))
    subject.expect(
        isinstance(answer, Generation),
        f"generate returned {answer!r:.80}; expected a slime_core.contracts.engine.Generation.",
    )
    return answer


@contextmanager
def _engine(subject: Subject[InferenceEngine]) -> Iterator[InferenceEngine]:
    subject.need_checkpoint(weights=True)
    engine = subject.call(subject.args)
    try:
        yield engine
    finally:
        engine.close()


def _prompt() -> list[int]:
    return list(chat_tokenizer()("What is 3 + 4?")["input_ids"])


def _weights(subject: Subject[InferenceEngine]) -> list[tuple[str, Tensor]]:
    """Return the weights of the run's checkpoint."""
    from safetensors.torch import load_file

    files = sorted(Path(subject.args.hf_checkpoint).glob("*.safetensors"))
    return [pair for file in files for pair in load_file(file).items()]


def _expect_consistent(subject: Subject[InferenceEngine], answer: Generation, limit: int) -> None:
    count = len(answer.tokens)
    subject.expect(
        count <= limit and len(answer.log_probs) == count and len(answer.weight_versions) == count,
        f"asked for at most {limit} tokens it returned {count} tokens, {len(answer.log_probs)} log_probs and "
        f"{len(answer.weight_versions)} weight_versions; expected equally many, at most {limit}.",
    )


ENGINE: list[Check] = [
    answers_consistently,
    repeats_itself,
    stops_at_stop_tokens,
    answers_at_some_length,
    begins_with_the_checkpoint,
    reports_new_weights,
    stops_when_aborted,
    takes_its_memory_again,
    waits,
    streams_what_it_answers,
    scores_what_it_answers,
    counts_in_numbers,
    closes,
]
