"""The answers of one request: which prompts, how many answers of each, and what the engine is told. `generate` makes them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from slime_core.contracts.engine import ScoredToken
from slime_serve.model import FinishReason, Piece, ServedModel
from slime_serve.refusals import wrong
from slime_serve.requests import MOST_ANSWERS, SamplingRequest


@dataclass(frozen=True)
class Prompt:
    """A prompt of a request.

    Attributes:
        tokens: that the model reads, at least one.
        text: the same as text; "" where nobody wants to have it back.
        images: the encoded images among the tokens, in their order.
    """

    tokens: list[int]
    text: str = ""
    images: Sequence[bytes] = ()


@dataclass(frozen=True)
class Work:
    """What a request asks for.

    Attributes:
        prompts: at least one. Answers are numbered through, those of a prompt one after the other.
        limits: for each prompt, how many tokens an answer may have; 0: the prompt is only looked at.
        n: answers of each prompt.
        params: the engine's sampling parameters, but for limit and seed.
        seed: None: another one for every answer.
        likeliest: how many of the likeliest tokens are listed for each token.
        with_special: special tokens are in the text of answers: those that mark a call of a tool may be such.
    """

    prompts: list[Prompt]
    limits: list[int]
    n: int
    params: dict[str, Any]
    seed: int | None
    likeliest: int = 0
    with_special: bool = False

    @property
    def answers(self) -> int:
        """How many answers there will be."""
        return len(self.prompts) * self.n

    def prompt_of(self, answer: int) -> int:
        """The number of the prompt that an answer belongs to."""
        return answer // self.n

    def params_of(self, answer: int) -> dict[str, Any]:
        """The engine's sampling parameters for one answer."""
        number = answer % self.n
        return {
            **self.params,
            "max_new_tokens": self.limits[self.prompt_of(answer)],
            "seed": seed_of(self.seed, number),
        }


def seed_of(seed: int | None, number: int) -> int | None:
    """The seed of one of the answers to a prompt: that of the request for the first one, and others for the others."""
    if seed is None or number == 0:
        return seed
    return int.from_bytes(blake2b(b"%d:%d" % (seed, number), digest_size=6).digest())


def require_few(prompts: int, request: SamplingRequest) -> None:
    """Refuse a request for too many answers, before its prompts are read.

    Raises:
        Refusal: says how many there may be.
    """
    if (answers := prompts * (request.n or 1)) > MOST_ANSWERS:
        raise wrong(f"The request asks for {answers} answers; at most {MOST_ANSWERS} are given at a time.", "n")


def work_for(
    request: SamplingRequest,
    prompts: list[Prompt],
    wanted: int | None,
    otherwise: int,
    model: ServedModel,
    likeliest: int,
    with_special: bool = False,
) -> Work:
    """Return what a request asks for.

    Args:
        wanted: tokens of an answer, as the request says.
        otherwise: tokens of an answer where it does not say it and the context has room for so many.
        likeliest, with_special: as in `Work`.

    Raises:
        Refusal: a prompt is empty, or leaves no room for its answer.
    """
    n = request.n or 1
    limits = [_limit(prompt, number, wanted, otherwise, model.context) for number, prompt in enumerate(prompts)]
    params: dict[str, Any] = {
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": request.top_p or 1.0,
        "top_k": request.top_k or -1,
        "stop": request.stops,
        "stop_token_ids": request.stop_token_ids or [],
        "ignore_eos": bool(request.ignore_eos),
    }
    return Work(prompts, limits, n, params, request.seed, likeliest, with_special)


def _limit(prompt: Prompt, number: int, wanted: int | None, otherwise: int, context: int | None) -> int:
    count = len(prompt.tokens)
    if not count:
        raise wrong(f"Prompt {number} has no tokens; the model needs at least one.", "prompt")
    if context is None:
        return otherwise if wanted is None else wanted
    if wanted != 0 and count >= context:
        raise wrong(
            f"The prompt has {count} tokens; the model's context ends at {context}, which leaves no room for an answer.",
            code="context_length_exceeded",
        )
    if wanted is not None and count + wanted > context:
        raise wrong(
            f"The prompt has {count} tokens and the answer may have {wanted}, together {count + wanted}; the model's context ends at "
            f"{context}. Shorten the prompt or lower max_tokens.",
            code="context_length_exceeded",
        )
    return min(otherwise, context - count) if wanted is None else wanted


async def generate(model: ServedModel, work: Work) -> AsyncGenerator[tuple[int, Piece], None]:
    """Generate all answers together, and yield (number of the answer, what is new of it). Closing the generator ends all of them.

    Raises:
        SlimeError: what the engine raises for one of them.
    """
    news: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue()

    async def follow(answer: int) -> None:
        if not work.limits[work.prompt_of(answer)]:
            news.put_nowait((answer, Piece("", finish_reason="length")))
            return
        prompt = work.prompts[work.prompt_of(answer)]
        asked = model.answer(prompt.tokens, work.params_of(answer), work.likeliest, prompt.images, work.with_special)
        try:
            async with aclosing(asked) as pieces:
                async for piece in pieces:
                    news.put_nowait((answer, piece))
        except Exception as error:
            news.put_nowait((answer, error))

    tasks = [asyncio.create_task(follow(answer)) for answer in range(work.answers)]
    try:
        left = work.answers
        while left:
            answer, piece = await news.get()
            if isinstance(piece, BaseException):
                raise piece
            left -= piece.finish_reason is not None
            yield answer, piece
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


@dataclass
class Answer:
    """All pieces of an answer together."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, piece: Piece) -> None:
        """Append what is new."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.offsets += piece.offsets
        self.finish_reason = piece.finish_reason
