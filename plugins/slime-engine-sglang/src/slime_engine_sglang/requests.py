"""`Requests`: sends the requests of an engine to its servers, repeats those that get no answer, and aborts them. It
runs in the engine's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import httpx

from slime_core.errors import ArgumentError
from slime_engine_sglang.answers import (
    Answer,
    among_all,
    before_banned,
    concatenated,
    error_text,
    first_tokens,
    read_answer,
    remaining_sampling,
    request_body,
    unseen_end,
)
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.fleet import Fleet
from slime_engine_sglang.images import ShownPrompt, require_same_prompt

if TYPE_CHECKING:
    from slime_engine_sglang.arguments import SGLangRunArguments

ATTEMPTS = 8
"""How often a request is sent before it fails. With fault tolerance it goes on for as long as health checks take to find a dead server."""
_ABORT_INTERVAL_S = 0.25  # an abort is repeated, since it may overtake its request on the way through the router
_NO_ANSWER = Answer([], [], [], "abort")
_NEVER = -1e9
"""A logit bias with which no token is chosen."""


@dataclass(eq=False)
class _Request:
    """A request that is running.

    Attributes:
        name: the name by which the caller aborts it.
        rid: the name by which the server aborts it; every attempt has another one.
        aborted: set when the caller has aborted it.
        done: set when it has ended.
    """

    name: str | None
    rid: str | None = None
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Requests:
    """The requests of an engine.

    Args:
        args: the options of the run.
        fleet: the servers.
        http: the connections of the engine's event loop.
        decode: turns token ids into text with special tokens included.
        ends: the checkpoint's end tokens.
        context: the model's context in tokens; None: not known.

    Attributes:
        running: the requests that are running.
        counts: "retries" of requests, "prompt_tokens", and how many of these servers had computed before
            ("cached_tokens").
    """

    def __init__(
        self,
        args: SGLangRunArguments,
        fleet: Fleet,
        http: httpx.AsyncClient,
        decode: Callable[[list[int]], str],
        ends: Collection[int],
        context: int | None,
    ) -> None:
        self._fleet, self._http = fleet, http
        self._decode, self._ends = decode, ends
        self._context = min((found for found in (context, fleet.context) if found), default=None)
        checks = args.rollout_health_check_interval * args.rollout_health_check_failures
        self._patience_s = checks + args.rollout_health_check_timeout if args.use_fault_tolerance else 0.0
        self._servers_are_shared = bool(args.rollout_external_engine_addrs)
        self._slots = asyncio.Semaphore(args.sglang_server_concurrency * len(fleet.members))
        self.running: dict[int, _Request] = {}
        self.counts: Counter[str] = Counter()
        self._numbers = itertools.count()

    async def generate(
        self, prompt: ShownPrompt, sampling: dict[str, Any], name: str | None, banned: Sequence[int] = ()
    ) -> Answer:
        """Return the response to a prompt.

        If a server ends the request and the caller has not aborted it, it goes on from there, and so it does where a stop string ends it
        before it has `min_new_tokens` tokens: for a server these keep back stop tokens alone. Where a banned token was chosen,
        the response is cut before it, and the next token is chosen among the others: SGLang can leave tokens out of the choice only
        by leaving them out of the softmax too, from which log-probs would be other ones than a trainer's.

        Args:
            sampling: the sampling parameters under SGLang's names.
            name: the name by which the caller aborts the request.
            banned: the tokens that may not be chosen.

        Raises:
            ArgumentError: SGLang does not accept the request.
            SGLangError: no server answers, or SGLang makes other tokens of images than those that are trained.
        """
        request = _Request(name)
        number = next(self._numbers)
        self.running[number] = request
        whole, share, left = _NO_ANSWER, None, ATTEMPTS
        try:
            while True:
                rest = remaining_sampling(sampling, len(prompt.ids), len(whole.tokens), self._context)
                if share is not None:
                    one = {name: min(1, rest[name]) for name in ("max_new_tokens", "min_new_tokens") if name in rest}
                    rest |= one  # SGLang refuses a shortest response that is longer than the longest
                    rest |= {"logit_bias": {str(token): _NEVER for token in banned}}
                part = await self._send(request, prompt, whole.tokens, rest, banned)
                part, chosen = (part, None) if share is None else (among_all(part, share), share)
                part, share = before_banned(part, banned)
                end = unseen_end(whole.tokens, part, sampling, self._ends, self._decode)
                if end is not None:
                    return concatenated(whole, replace(first_tokens(part, end), finish_reason="stop"))
                whole = concatenated(whole, part)
                if share is not None and chosen is not None:
                    raise SGLangError("SGLang chose a token that logit_bias excludes.")
                if share is not None:
                    continue
                if part.finish_reason == "stop" and len(whole.tokens) < sampling.get("min_new_tokens", 0):
                    continue
                if part.finish_reason == "abort" and not request.aborted.is_set():
                    share, left = chosen, left - 1
                    if not left:
                        raise SGLangError(f"The servers ended a request {ATTEMPTS} times that nobody had aborted.")
                    self.counts["retries"] += 1
                    await asyncio.sleep(_ABORT_INTERVAL_S)
                elif (
                    chosen is None or part.finish_reason != "length" or len(whole.tokens) >= sampling["max_new_tokens"]
                ):
                    return whole
        finally:
            del self.running[number]
            request.done.set()

    async def abort(self, names: Collection[str | None] | None) -> None:
        """End the requests with these names, or all if None, and return when they have ended."""
        targets = [r for r in self.running.values() if names is None or r.name in names]
        for request in targets:
            request.aborted.set()
        while left := [request for request in targets if not request.done.is_set()]:
            everything = not self._servers_are_shared and len(left) == len(self.running)
            bodies = [{"abort_all": True}] if everything else [{"rid": r.rid} for r in left if r.rid]
            await asyncio.gather(*(self._abort_at(url, body) for url in self._fleet.answering for body in bodies))
            await asyncio.wait([asyncio.ensure_future(r.done.wait()) for r in left], timeout=_ABORT_INTERVAL_S)

    async def _send(
        self, request: _Request, prompt: ShownPrompt, begun: list[int], sampling: dict[str, Any], banned: Sequence[int]
    ) -> Answer:
        """Return the response to a request, in as many attempts as it takes; an empty one if it is aborted before."""
        if sampling["max_new_tokens"] < 1:
            return replace(_NO_ANSWER, finish_reason="length")
        slot = asyncio.ensure_future(self._slots.acquire())
        try:
            if not await _unless(request.aborted, slot):
                return _NO_ANSWER
            reason, failing_since = "", 0.0
            for attempt in itertools.count():
                now = time.monotonic()
                failing_since = failing_since if attempt > 1 else now
                if attempt >= ATTEMPTS and now - failing_since >= self._patience_s:
                    break
                if attempt:
                    self.counts["retries"] += 1
                    await _unless(request.aborted, asyncio.sleep(min(5.0, 0.25 * 2**attempt)))
                if not await _unless(request.aborted, self._fleet.wait_until_usable()):
                    return _NO_ANSWER
                # SGLang aborts all requests whose names begin with the given one, so no name may begin with another.
                request.rid = uuid.uuid4().hex
                body = request_body(prompt.sent + begun, sampling, request.rid, prompt.urls, banned)
                own = prompt.urls or "logit_bias" in sampling
                url = self._fleet.generate_url(repr(prompt.urls or prompt.ids).encode() if own else None)
                try:
                    answer = await self._http.post(url, json=body)
                except httpx.HTTPError as error:
                    reason = repr(error)
                    continue
                if answer.status_code == 200:
                    found = read_answer(answer.json())
                    require_same_prompt(found, prompt, begun)
                    self.counts["prompt_tokens"] += found.prompt_tokens
                    self.counts["cached_tokens"] += found.cached_tokens
                    return found
                reason = f"{answer.status_code}: {error_text(answer.text)}"
                if answer.status_code in (400, 422):
                    raise ArgumentError(f"SGLang refuses a request ({reason}).")
            raise SGLangError(f"A request got no answer in {attempt} attempts. The last one: {reason}")
        finally:
            if slot.done() and not slot.cancelled():  # also where it came in the step in which this was cancelled
                self._slots.release()

    async def _abort_at(self, url: str, body: dict[str, Any]) -> None:
        """Send one abort to a server."""
        with contextlib.suppress(httpx.HTTPError):  # a server that is gone has ended its requests
            await self._http.post(f"{url}/abort_request", json=body, timeout=10)


async def _unless(aborted: asyncio.Event, work: Awaitable[Any]) -> bool:
    """Do the work, or leave it when the request is aborted. Return whether the request goes on."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(aborted.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return not aborted.is_set()
    finally:
        for task in (working, waiting):
            task.cancel()
