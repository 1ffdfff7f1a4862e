"""Inference engines, tried on a tiny random model. Needs torch and transformers."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

from slime_core.engine import Generation
from slime_core.testing.checkpoint import chat_tokenizer
from slime_core.testing.subject import Check, Subject

GREEDY = {"max_new_tokens": 6, "temperature": 0.0}
RANDOM = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "seed": 7}


def answers_consistently(subject: Subject) -> None:
    """answers with as many log-probs and weight versions as tokens, within the limit"""
    for params in (GREEDY, RANDOM):
        answer = _ask(subject, params)
        count = len(answer.tokens)
        subject.expect(
            0 < count <= 6 and len(answer.log_probs) == count and len(answer.weight_versions) == count,
            f"asked for at most 6 tokens it returned {count} tokens, {len(answer.log_probs)} log_probs and "
            f"{len(answer.weight_versions)} weight_versions; expected equally many, between 1 and 6.",
        )
        subject.expect(
            all(math.isfinite(p) and p <= 1e-6 for p in answer.log_probs),
            f"its log_probs are {answer.log_probs}; log-probabilities are finite and not above 0.",
        )
        subject.expect(
            answer.finish_reason in ("stop", "length") and (answer.finish_reason == "stop" or count == 6),
            f"it finished with {answer.finish_reason!r} after {count} of 6 tokens; expected 'length' at the limit and "
            "'stop' after a stop token.",
        )


def repeats_itself(subject: Subject) -> None:
    """gives the same answer again when greedy, and with the same seed"""
    for params in (GREEDY, RANDOM):
        first, second = _ask(subject, params), _ask(subject, params)
        subject.expect(
            first.tokens == second.tokens,
            f"asked twice with {params} it answered {first.tokens} and {second.tokens}; temperature 0 takes the "
            "likeliest token, and `seed` fixes all randomness.",
        )


def stops_at_stop_tokens(subject: Subject) -> None:
    """ends an answer with the first stop token, which it includes"""
    free = _ask(subject, GREEDY).tokens
    answer = _ask(subject, {**GREEDY, "stop_token_ids": [free[0]]})
    subject.expect(
        (answer.tokens, answer.finish_reason) == (free[:1], "stop"),
        f"with the stop token {free[0]}, which greedily comes first, it answered {answer.tokens} "
        f"({answer.finish_reason}); expected {free[:1]} (stop).",
    )


def reports_new_weights(subject: Subject) -> None:
    """says which weights it used, the newest that it was handed"""
    for version in (1, 2):
        versions = _ask(subject, GREEDY, version).weight_versions
        subject.expect(
            set(versions) == {version},
            f"after update_weights(…, {version}) its weight_versions are {versions}; expected {version} for every token.",
        )


def _ask(subject: Subject, params: dict[str, Any], version: int = 1) -> Generation:
    """A new engine's answer with weights of `version`."""
    subject.need_checkpoint(weights=True)
    engine = subject.call(subject.args)
    for number in range(1, version + 1):
        engine.update_weights(_weights(subject), number)
    prompt = chat_tokenizer()("What is 3 + 4?")["input_ids"]
    answer = asyncio.run(engine.generate(prompt, dict(params)))
    subject.expect(
        isinstance(answer, Generation), f"generate returned {answer!r:.80}; expected a slime_core.engine.Generation."
    )
    return answer


def _weights(subject: Subject) -> list[tuple[str, Any]]:
    from safetensors.torch import load_file

    files = sorted(Path(subject.args.hf_checkpoint).glob("*.safetensors"))
    return [pair for file in files for pair in load_file(file).items()]


ENGINE: list[Check] = [answers_consistently, repeats_itself, stops_at_stop_tokens, reports_new_weights]
