"""The application: which paths there are, who may ask, and how a request becomes answers. `slime_serve.server` runs it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from slime_core.contracts.engine import GREEDY_BELOW
from slime_core.data.images import ImageRules
from slime_core.display import told
from slime_core.errors import ArgumentError, DataError, SlimeError
from slime_serve.bodies import MOST_BYTES, MOST_BYTES_WITH_IMAGES, read_body
from slime_serve.generation import Answer, Prompt, Work, generate, require_few, work_for
from slime_serve.guard import Guard, refused
from slime_serve.model import ServedModel
from slime_serve.prompts import SENT, plain_tokens, read_conversation, read_images, shows_images
from slime_serve.refusals import Refusal, wrong
from slime_serve.requests import ChatRequest, CompletionRequest, SamplingRequest, read_request
from slime_serve.responses import ChatResponses, CompletionResponses, Json, PromptScores, Responses, usage_of
from slime_serve.room import Room
from slime_serve.streaming import CLIENT_GONE, END, EventStream, event, unless_gone
from slime_serve.text_stream import TextStream

logger = logging.getLogger(__name__)

COMPLETION_TOKENS = 16
"""Tokens of a completion that does not say how many; OpenAI's number."""
READERS = 16
"""Requests whose images are read at a time, which may mean to wait for other machines."""
Result = TypeVar("Result")


@dataclass
class Service:
    """What all requests share.

    Attributes:
        name: what requests call the model.
        longest: tokens of a chat answer that does not say how many.
        variables: of the chat template, for all requests.
        images: where images of messages may come from.
        room: how many answers there may be at a time.
        started: when, in seconds since 1970.
    """

    model: ServedModel
    name: str
    longest: int
    room: Room
    variables: dict[str, Any] = field(default_factory=dict)
    images: ImageRules = SENT
    started: int = field(default_factory=lambda: int(time.time()))
    _tokenizing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _readers: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, READERS))

    async def chat(self, request: Request) -> Response:
        """Answer `/v1/chat/completions`."""
        most = MOST_BYTES if self.model.processor is None else MOST_BYTES_WITH_IMAGES
        asked = read_request(await read_body(request, most), ChatRequest)
        self._require_model(asked)
        variables = {**self.variables, **(asked.chat_template_kwargs or {})}
        tools = None if asked.tool_choice == "none" else asked.tools or None
        try:
            processor = self.model.processor
            messages: Any = asked.messages
            images: Sequence[bytes] = ()
            # Images may be long in coming; nothing else waits for a thread that waits for them.
            if shows_images(messages):
                reading = partial(read_images, messages, processor, self.images)
                messages, images = await asyncio.get_running_loop().run_in_executor(self._readers, reading)
            read = await self._in_thread(
                read_conversation, self.model.tokenizer, messages, tools, variables, processor, images
            )
        except DataError as error:
            raise wrong(_sentence(error), "messages") from None
        wanted = asked.max_completion_tokens or asked.max_tokens
        likeliest = self._require_likeliest(asked.top_logprobs or 0)
        prompts = [Prompt(read.tokens, images=read.images)]
        work = work_for(asked, prompts, wanted, self.longest, self.model, likeliest, with_special=tools is not None)
        return await self._respond(request, asked, work, ChatResponses(asked, work, self.model.vocabulary))

    async def complete(self, request: Request) -> Response:
        """Answer `/v1/completions`."""
        asked = read_request(await read_body(request), CompletionRequest)
        self._require_model(asked)
        require_few(len(asked.prompts), asked)
        prompts = await self._in_thread(self._prompts, asked)
        likeliest = self._require_likeliest(asked.logprobs or 0)
        work = work_for(asked, prompts, asked.max_tokens, COMPLETION_TOKENS, self.model, likeliest)
        responses = CompletionResponses(asked, work, self.model.vocabulary)
        scores = asked.echo and asked.logprobs is not None
        if scores and not self.model.scores:
            raise wrong("echo with logprobs needs an engine that scores given tokens; leave one of them out.", "echo")
        return await self._respond(request, asked, work, responses, responses if scores else None)

    async def models(self, request: Request) -> Response:
        """Answer `/v1/models`."""
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def one_model(self, request: Request) -> Response:
        """Answer `/v1/models/NAME`."""
        self._require_name(request.path_params["name"])
        return JSONResponse(self._model_object())

    async def health(self, request: Request) -> Response:
        """Answer `/health`: 200 while requests are taken, 503 while the server ends."""
        status = "shutting down" if self.room.is_closed else "ok"
        said = {"status": status, "answers": self.room.taken, "limit": self.room.limit}
        return JSONResponse(said, 503 if self.room.is_closed else 200)

    def _model_object(self) -> Json:
        limit = {"max_model_len": self.model.context} if self.model.context else {}
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "slime", **limit}

    def _require_model(self, asked: SamplingRequest) -> None:
        self._require_name(asked.model)

    def _require_name(self, name: str) -> None:
        if name != self.name:
            message = f"There is no model {name!r:.200}; this server has {self.name!r}."
            raise Refusal(404, message, "model", "model_not_found")

    def _require_likeliest(self, count: int) -> int:
        if count and not self.model.lists_likeliest:
            raise wrong(
                "The engine tells the log-probs of the chosen tokens alone, not those of others.", "top_logprobs"
            )
        return count

    def _prompts(self, asked: CompletionRequest) -> list[Prompt]:
        tokenizer, vocabulary = self.model.tokenizer, self.model.vocabulary_size
        found: list[Prompt] = []
        for given in asked.prompts:
            if isinstance(given, str):
                tokens = plain_tokens(tokenizer, given, bool(asked.add_special_tokens))
                echoed = self.model.decode(tokens, with_special=True) if asked.add_special_tokens else given
                found.append(Prompt(tokens, echoed))
            elif unknown := [token for token in given if not 0 <= token < vocabulary]:
                raise wrong(
                    f"The prompt holds the token {unknown[0]!r:.40}; the model knows 0 to {vocabulary - 1}.", "prompt"
                )
            else:
                found.append(Prompt(given, self.model.decode(given, with_special=True) if asked.echo else ""))
        return found

    async def _in_thread(self, function: Callable[..., Result], *given: Any) -> Result:
        """Call what tokenises, which takes a second for long texts, while the answers of others go on."""
        async with self._tokenizing:
            return await asyncio.to_thread(function, *given)

    async def _respond(
        self,
        request: Request,
        asked: SamplingRequest,
        work: Work,
        responses: Responses,
        echoing: CompletionResponses | None = None,
    ) -> Response:
        """Generate the answers of a request, in one object or in a stream. Ends when the client goes."""
        request.state.tokens = [sum(len(prompt.tokens) for prompt in work.prompts), 0]
        if not asked.stream:
            whole = self._whole(request, work, responses, echoing)
            return await unless_gone(request.receive, whole) or Response(status_code=CLIENT_GONE)
        events = self._events(request, asked, work, responses, echoing)
        try:  # what is wrong is seen before the first piece, and can be told by the status
            begin = await unless_gone(request.receive, anext(events))
        except BaseException:
            await events.aclose()
            raise
        if begin is None:
            await events.aclose()
            return Response(status_code=CLIENT_GONE)
        return EventStream(begin, events)

    async def _whole(
        self, request: Request, work: Work, responses: Responses, echoing: CompletionResponses | None
    ) -> Response:
        answers = [Answer() for _ in range(work.answers)]
        with self.room.take(work.answers):
            await self._score(work, echoing)
            async with aclosing(generate(self.model, work)) as pieces:
                async for number, piece in pieces:
                    answers[number].add(piece)
                    request.state.tokens[1] += len(piece.tokens)
        return JSONResponse(responses.whole(answers, usage_of(work, request.state.tokens[1])))

    async def _events(
        self,
        request: Request,
        asked: SamplingRequest,
        work: Work,
        responses: Responses,
        echoing: CompletionResponses | None,
    ) -> AsyncGenerator[bytes, None]:
        with self.room.take(work.answers):
            await self._score(work, echoing)
            begun: set[int] = set()
            try:
                async with aclosing(generate(self.model, work)) as pieces:
                    async for number, piece in pieces:
                        request.state.tokens[1] += len(piece.tokens)
                        new = [] if number in begun else [responses.first(number)]
                        begun.add(number)
                        for said in (*new, responses.piece(number, piece)):
                            if said is not None:
                                yield event(said)
            except Exception as error:
                if not begun:
                    raise
                yield event(_refusal_for(error).body())  # the status was sent long ago
                return
        if asked.includes_usage:
            yield event(responses.usage(usage_of(work, request.state.tokens[1])))
        yield END

    async def _score(self, work: Work, echoing: CompletionResponses | None) -> None:
        """Look up how likely the tokens of the prompts are, where the request asks for that."""
        if echoing is None:
            return
        asked = work.params["temperature"]
        temperature = 1.0 if asked < GREEDY_BELOW else asked
        found = []
        for prompt in work.prompts:
            scored = await self.model.score(prompt.tokens, temperature, work.likeliest)
            text = TextStream(lambda tokens: self.model.decode(tokens, with_special=True))
            offsets = []
            for token in prompt.tokens:
                offsets.append(text.length)
                text.add(token)
            found.append(PromptScores(scored, offsets))
        echoing.scores = found


def make_app(service: Service, key: str | None, loopback: bool) -> ASGIApp:
    """Make the application.

    Args:
        key, loopback: see `Guard`.
    """
    routes = [
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.one_model),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.complete, methods=["POST"]),
    ]
    paths = ", ".join(route.path.partition("/{")[0] for route in routes)

    def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return refused(Refusal(404, f"There is no {request.url.path!r:.200} here, but {paths}."))
        headers = dict(error.headers or {})
        return refused(Refusal(error.status_code, f"{request.method}: {error.detail}.", headers=headers))

    def failed(request: Request, error: Exception) -> Response:
        return refused(_refusal_for(error))

    def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    handlers: Any = {
        ClientDisconnect: gone,
        HTTPException: unknown,
        Refusal: failed,
        SlimeError: failed,
        Exception: failed,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), key, loopback)


def _refusal_for(error: BaseException) -> Refusal:
    """What a client is told of an exception."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ArgumentError):  # of the engine, about what was asked
        return wrong(told(str(error)))
    if isinstance(error, SlimeError):
        logger.error("%s", error)
        return Refusal(500, told(str(error)), code="engine_error")
    logger.error("A request failed.", exc_info=error)
    return Refusal(500, "The server failed at this request; its log says why.", code="internal_error")


def _sentence(error: Exception) -> str:
    text = told(str(error))
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
