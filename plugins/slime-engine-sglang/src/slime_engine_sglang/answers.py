"""One request and its response in the format of SGLang's `/generate`. Pure functions."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

from slime_core.errors import ArgumentError
from slime_core.rollout.stop_strings import completes_stop_string, first_completed
from slime_engine_sglang.errors import SGLangError

Number = TypeVar("Number", int, float)
FinishReason = Literal["stop", "length", "abort"]

_SGLANG_NAMES = {  # slime's sampling parameters → SGLang's
    "max_new_tokens": "max_new_tokens",
    "min_new_tokens": "min_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "sampling_seed",
    "stop_token_ids": "stop_token_ids",
    "stop": "stop",
    "ignore_eos": "ignore_eos",
}
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
KEPT_FREE = 2
"""How many tokens at the end of the model's context SGLang leaves free."""
UNUSABLE = 6
"""No prompt may reach into so many tokens at the end of the model's context."""


@dataclass(frozen=True)
class Answer:
    """The response of one call of `/generate`, or of several that continue each other.

    Attributes:
        tokens, log_probs, versions: R entries each, as in `slime_core.contracts.engine.Generation`.
        finish_reason: "abort" may also mean that the server ended the request for a reason of its own.
        prompt_tokens: how many tokens the prompt has.
        cached_tokens: how many of them the server had computed before.
        banned_shares: R entries, the probability that the tokens had together that may not be chosen; none where all may be.
        prompt: the ids that the server made of a prompt with images; None where it was not asked.
    """

    tokens: list[int]
    log_probs: list[float]
    versions: list[int]
    finish_reason: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    banned_shares: tuple[float, ...] = ()
    prompt: tuple[int, ...] | None = None


def require_usable(prompt: Sequence[int], context: int | None, vocabulary: int) -> None:
    """Check that a response can be asked for.

    Args:
        context: the model's context in tokens; None: not known.
        vocabulary: how many tokens the model knows.

    Raises:
        ArgumentError: the prompt cannot be used.
    """
    if not prompt:
        raise ArgumentError("The prompt has no tokens; the engine 'sglang' needs at least one.")
    if outside := [token for token in prompt if not 0 <= token < vocabulary]:
        raise ArgumentError(f"The prompt holds the token {outside[0]}; the model knows 0 to {vocabulary - 1}.")
    if context is not None and len(prompt) >= context:
        raise ArgumentError(
            f"The prompt has {len(prompt)} tokens, but the model's context ends at {context}, which leaves no room for "
            "a response. Shorten the prompt or leave it out."
        )


def sglang_sampling_params(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return sampling parameters under SGLang's names.

    Args:
        given: the parameters under slime's names; None stands for a default.

    Raises:
        ArgumentError: a parameter is unknown, or nothing bounds the response.
    """
    if unknown := sorted(set(given) - set(_SGLANG_NAMES)):
        raise ArgumentError(
            f"The engine 'sglang' does not know the sampling parameter {unknown[0]!r}. It knows "
            f"{', '.join(_SGLANG_NAMES)}."
        )
    set_ones = {name: value for name, value in given.items() if value is not None}
    if "max_new_tokens" not in set_ones:
        raise ArgumentError("The sampling parameter max_new_tokens is missing; it bounds the response.")
    found = {**_DEFAULTS, **{_SGLANG_NAMES[name]: value for name, value in set_ones.items()}}
    for name in ("stop_token_ids", "stop"):
        if name in found and not isinstance(found[name], str):
            found[name] = list(found[name])
    return found


def request_body(
    input_ids: Sequence[int],
    sampling: dict[str, Any],
    rid: str,
    images: Sequence[str] = (),
    banned: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the body of a request to `/generate`.

    Args:
        sampling: the sampling parameters under SGLang's names.
        rid: the name by which the server can abort the request.
        images: those of the prompt, as data URLs.
        banned: the tokens whose log-probs are asked for at every place.
    """
    body: dict[str, Any] = {
        "rid": rid,
        "input_ids": list(input_ids),
        "sampling_params": sampling,
        "return_logprob": True,
        "stream": False,
    }
    if images:
        body |= {"image_data": list(images), "return_prompt_token_ids": True}
    if banned:
        body["token_ids_logprob"] = list(banned)
    return body


def read_answer(body: Any) -> Answer:
    """Read the body of a response from `/generate`.

    The tokens are those that come with a log-prob. A request that was aborted before it ran has none.

    Raises:
        SGLangError: the response lacks what a trainer needs.
    """
    try:
        meta = body["meta_info"]
        reason = meta["finish_reason"]["type"]
        pairs = meta.get("output_token_logprobs") or []
        tokens = _of_kind(int, [entry[1] for entry in pairs])
        log_probs = _of_kind(float, [entry[0] for entry in pairs])
        count = len(body.get("output_ids") or [])
        shares = tuple(sum(math.exp(e[0]) for e in place) for place in meta.get("output_token_ids_logprobs") or [])
        prompt = body.get("prompt_token_ids")
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise SGLangError(f"SGLang answered /generate with {str(body)[:300]}, which lacks {error}.") from error
    if reason not in ("stop", "length", "abort"):
        raise SGLangError(f"SGLang ended a response for the reason {reason!r}; expected stop, length or abort.")
    if reason != "abort" and tokens != list(body["output_ids"]):
        raise SGLangError(
            f"SGLang answered with {count} tokens and the log-probs of {len(tokens)} others; they must be the same "
            "tokens."
        )
    return Answer(
        tokens=tokens,
        log_probs=log_probs,
        versions=token_versions(meta, len(tokens)),
        finish_reason=cast(FinishReason, reason),
        prompt_tokens=int(meta.get("prompt_tokens") or 0),
        cached_tokens=int(meta.get("cached_tokens") or 0),
        banned_shares=shares,
        prompt=None if prompt is None else tuple(prompt),
    )


def _of_kind(kind: type[Number], values: list[Any]) -> list[Number]:
    """The values as numbers of one kind; the very list where they are, as JSON has them."""
    return values if {kind}.issuperset(map(type, values)) else list(map(kind, values))


def before_banned(answer: Answer, banned: Collection[int]) -> tuple[Answer, float | None]:
    """Return what lies before the first banned token of a response, and the probability that the banned ones had there; the whole
    response and None where there is none.

    Raises:
        SGLangError: the server does not say how likely they were.
    """
    if not banned or set(banned).isdisjoint(answer.tokens):
        return answer, None
    end = next(place for place, token in enumerate(answer.tokens) if token in banned)
    if len(answer.banned_shares) != len(answer.tokens):
        raise SGLangError(
            f"SGLang chose the token {answer.tokens[end]}, which stands for an image or a video, and does not say how likely it was "
            "(output_token_ids_logprobs)."
        )
    return first_tokens(answer, end), answer.banned_shares[end]


def first_tokens(answer: Answer, count: int) -> Answer:
    """Return the first `count` tokens of a response."""
    return replace(
        answer,
        tokens=answer.tokens[:count],
        log_probs=answer.log_probs[:count],
        versions=answer.versions[:count],
    )


def unseen_end(
    begun: list[int],
    part: Answer,
    sampling: Mapping[str, Any],
    ends: Collection[int],
    decode: Callable[[list[int]], str],
) -> int | None:
    """Return after how many tokens of a part a response has ended without the server saying so; None where it has not.

    A server looks for stop strings in the part alone, and one may have begun in the parts before. A request that is aborted ends with
    one more token, and the server does not say that it is a stop token or completes a stop string.

    Args:
        begun: the tokens of the response before the part.
        sampling: the sampling parameters under SGLang's names.
        ends: the checkpoint's end tokens.
        decode: turns token ids into text with special tokens included.
    """
    given, shortest = sampling.get("stop") or (), sampling.get("min_new_tokens", 0)
    stop = [given] if isinstance(given, str) else given
    if (count := first_completed(decode, begun, part.tokens, stop, shortest)) is not None:
        return count
    if part.finish_reason != "abort" or not part.tokens or len(begun) + len(part.tokens) < shortest:
        return None
    is_end = part.tokens[-1] in {*ends, *sampling.get("stop_token_ids", ())} and not sampling.get("ignore_eos")
    return len(part.tokens) if is_end or completes_stop_string(decode, part.tokens, stop) else None


def among_all(answer: Answer, share: float) -> Answer:
    """Return a response of at most one token, chosen while others were banned, with its log-prob among all tokens.

    Args:
        share: the probability that the banned ones had.
    """
    return replace(answer, log_probs=[found + math.log1p(-min(share, 1.0 - 1e-7)) for found in answer.log_probs])


def error_text(body: str) -> str:
    """Return what went wrong, according to the body of an error response."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        said = json.loads(body)
        error = said.get("error", said)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    return body[:300]


def remaining_sampling(sampling: dict[str, Any], prompt: int, done: int, context: int | None) -> dict[str, Any]:
    """Return the sampling parameters with which a response begins, or goes on. `max_new_tokens` among them is what the model's
    context leaves for it: nothing within the last tokens of the context, where a server refuses the request.

    Args:
        prompt: how many tokens the prompt has.
        done: how many the response has already.
        context: the model's context in tokens; None: not known.
    """
    longest, length = sampling["max_new_tokens"] - done, prompt + done
    if context is not None:
        longest = min(longest, context - KEPT_FREE - length if length < context - UNUSABLE else 0)
    rest = {**sampling, "max_new_tokens": max(0, longest)}
    if "min_new_tokens" in sampling:
        rest["min_new_tokens"] = min(max(0, sampling["min_new_tokens"] - done), rest["max_new_tokens"])
    return rest


def concatenated(first: Answer, second: Answer) -> Answer:
    """Return the response that consists of an aborted one and its continuation."""
    return Answer(
        first.tokens + second.tokens,
        first.log_probs + second.log_probs,
        first.versions + second.versions,
        second.finish_reason,
    )


def token_versions(meta: Mapping[str, Any], count: int) -> list[int]:
    """Return which version of the weights made each of `count` tokens.

    SGLang tells it in spans of tokens, or, in older versions, as one version for all of them.

    Raises:
        SGLangError: the spans leave tokens out, or a version is not one of slime's.
    """
    spans = meta.get("weight_versions") or [{"version": meta.get("weight_version"), "start": 0, "end": count}]
    found: list[int | None] = []
    for span in spans:
        found += [parse_version(span["version"])] * (min(int(span["end"]), count) - len(found))
    if count and (len(found) != count or None in found):
        raise SGLangError(
            f"SGLang names the versions {spans} for {count} tokens; expected a number for each. A server must be "
            "started with --weight-version 0, or be given weights by slime."
        )
    return cast("list[int]", found)


def parse_version(value: object) -> int | None:
    """Return slime's version number from SGLang's text; None if it is not a number, as in a server's own default."""
    return int(value) if isinstance(value, (int, str)) and str(value).lstrip("-").isdigit() else None
