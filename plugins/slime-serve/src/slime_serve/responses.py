"""What is sent back, in the shapes of OpenAI's interface: one object, or a stream of them with the pieces. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from slime_core.contracts.engine import ScoredToken
from slime_serve.generation import Answer, Work
from slime_serve.model import Piece
from slime_serve.requests import ChatRequest, CompletionRequest
from slime_serve.vocabulary import Vocabulary

LOWEST = -9999.0
"""What stands for a log-prob of minus infinity, which JSON does not have."""

Json = dict[str, Any]


@dataclass(frozen=True)
class PromptScores:
    """What `echo` says of the tokens of a prompt.

    Attributes:
        scored: of each token but the first.
        offsets: of each token, at which character of the prompt it begins.
    """

    scored: Sequence[ScoredToken]
    offsets: Sequence[int]


class Responses(Protocol):
    """How the answers of one request are written."""

    def first(self, answer: int) -> Json | None:
        """The object of a stream that stands before the pieces of an answer."""

    def piece(self, answer: int, piece: Piece) -> Json | None:
        """The object of a stream with what is new of an answer; None where that is nothing."""

    def usage(self, usage: Json) -> Json:
        """The object of a stream with the numbers of tokens, which stands last."""

    def whole(self, answers: Sequence[Answer], usage: Json) -> Json:
        """All answers in one object."""


def usage_of(work: Work, generated: int) -> Json:
    """The numbers of tokens."""
    read = sum(len(prompt.tokens) for prompt in work.prompts)
    return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}


@dataclass
class ChatResponses:
    """Answers of `/v1/chat/completions`."""

    request: ChatRequest
    work: Work
    vocabulary: Vocabulary
    head: Json = field(init=False)

    def __post_init__(self) -> None:
        self.head = _head("chatcmpl-", self.request.model)

    def first(self, answer: int) -> Json | None:
        named = (
            {"prompt_token_ids": self.work.prompts[0].tokens} if self.request.return_token_ids and not answer else {}
        )
        return self._chunk(_choice(answer, None, delta={"role": "assistant", "content": ""}, logprobs=None)) | named

    def piece(self, answer: int, piece: Piece) -> Json | None:
        says_tokens = bool(piece.tokens) and (self.request.logprobs or self.request.return_token_ids)
        if not (piece.text or says_tokens or piece.finish_reason):
            return None
        delta = {"content": piece.text} if piece.text or not piece.finish_reason else {}
        choice = _choice(answer, piece.finish_reason, delta=delta, logprobs=self._log_probs(piece.tokens))
        return self._chunk(choice | self._ids(piece.tokens))

    def usage(self, usage: Json) -> Json:
        return {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def whole(self, answers: Sequence[Answer], usage: Json) -> Json:
        choices = []
        for number, answer in enumerate(answers):
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            log_probs = self._log_probs(answer.tokens)
            choice = _choice(number, answer.finish_reason, message=message, logprobs=log_probs)
            choices.append(choice | self._ids(answer.tokens))
        named = {"prompt_token_ids": self.work.prompts[0].tokens} if self.request.return_token_ids else {}
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": usage, **named}

    def _chunk(self, choice: Json) -> Json:
        usage = {"usage": None} if self.request.includes_usage else {}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice], **usage}

    def _ids(self, tokens: Sequence[ScoredToken]) -> Json:
        return {"token_ids": [token.token for token in tokens]} if self.request.return_token_ids else {}

    def _log_probs(self, tokens: Sequence[ScoredToken]) -> Json | None:
        if not self.request.logprobs:
            return None
        content = []
        for token in tokens:
            top = [self._token(*pair) for pair in token.likeliest[: self.request.top_logprobs or 0]]
            content.append({**self._token(token.token, token.log_prob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, log_prob: float) -> Json:
        written = self.vocabulary.bytes_of(token)
        return {"token": self.vocabulary.text_of(token), "logprob": max(log_prob, LOWEST), "bytes": list(written)}


@dataclass
class CompletionResponses:
    """Answers of `/v1/completions`.

    Attributes:
        scores: of each prompt, where `echo` and `logprobs` are asked for.
    """

    request: CompletionRequest
    work: Work
    vocabulary: Vocabulary
    scores: Sequence[PromptScores] = ()
    head: Json = field(init=False)

    def __post_init__(self) -> None:
        self.head = _head("cmpl-", self.request.model)

    def first(self, answer: int) -> Json | None:
        named = self._prompt_ids(answer)
        if not (self.request.echo or named):
            return None
        log_probs = self._log_probs(answer, (), (), with_prompt=True)
        return self._chunk(_choice(answer, None, text=self._echoed(answer), logprobs=log_probs) | self._ids(()) | named)

    def piece(self, answer: int, piece: Piece) -> Json | None:
        says_tokens = bool(piece.tokens) and (self.request.logprobs is not None or self.request.return_token_ids)
        if not (piece.text or says_tokens or piece.finish_reason):
            return None
        log_probs = self._log_probs(answer, piece.tokens, piece.offsets)
        choice = _choice(answer, piece.finish_reason, text=piece.text, logprobs=log_probs)
        return self._chunk(choice | self._ids(piece.tokens))

    def usage(self, usage: Json) -> Json:
        return {**self.head, "object": "text_completion", "choices": [], "usage": usage}

    def whole(self, answers: Sequence[Answer], usage: Json) -> Json:
        choices = []
        for number, answer in enumerate(answers):
            log_probs = self._log_probs(number, answer.tokens, answer.offsets, with_prompt=True)
            choice = _choice(number, answer.finish_reason, text=self._echoed(number) + answer.text, logprobs=log_probs)
            choices.append(choice | self._ids(answer.tokens) | self._prompt_ids(number))
        return {**self.head, "object": "text_completion", "choices": choices, "usage": usage}

    def _chunk(self, choice: Json) -> Json:
        usage = {"usage": None} if self.request.includes_usage else {}
        return {**self.head, "object": "text_completion", "choices": [choice], **usage}

    def _echoed(self, answer: int) -> str:
        return self.work.prompts[self.work.prompt_of(answer)].text if self.request.echo else ""

    def _ids(self, tokens: Sequence[ScoredToken]) -> Json:
        return {"token_ids": [token.token for token in tokens]} if self.request.return_token_ids else {}

    def _prompt_ids(self, answer: int) -> Json:
        tokens = self.work.prompts[self.work.prompt_of(answer)].tokens
        return {"prompt_token_ids": tokens} if self.request.return_token_ids else {}

    def _log_probs(
        self, answer: int, tokens: Sequence[ScoredToken], offsets: Sequence[int], with_prompt: bool = False
    ) -> Json | None:
        if self.request.logprobs is None:
            return None
        before = len(self._echoed(answer))
        every: list[ScoredToken | None] = list(tokens)
        places = [before + offset for offset in offsets]
        ids = [token.token for token in tokens]
        if self.scores and with_prompt:
            number = self.work.prompt_of(answer)
            every = [None, *self.scores[number].scored, *every]  # nothing stands before the first one
            places = [*self.scores[number].offsets, *places]
            ids = [*self.work.prompts[number].tokens, *ids]
        return {
            "tokens": [self.vocabulary.text_of(token) for token in ids],
            "token_logprobs": [None if token is None else max(token.log_prob, LOWEST) for token in every],
            "top_logprobs": [None if token is None else self._likeliest(token) for token in every]
            if self.request.logprobs
            else None,
            "text_offset": places,
        }

    def _likeliest(self, token: ScoredToken) -> dict[str, float]:
        listed = token.likeliest[: self.request.logprobs]
        return {self.vocabulary.text_of(other): max(log_prob, LOWEST) for other, log_prob in listed}


def _head(prefix: str, model: str) -> Json:
    return {"id": f"{prefix}{uuid4().hex}", "created": int(time.time()), "model": model}


def _choice(answer: int, finish_reason: str | None, **said: Any) -> Json:
    return {"index": answer, **said, "finish_reason": finish_reason}
