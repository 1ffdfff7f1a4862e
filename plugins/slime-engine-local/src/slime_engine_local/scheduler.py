"""Continuous batching: one thread that decodes all running requests together. Called by `LocalEngine`.

Everything that touches the model happens on that thread, between or in its steps. A step gives every running request
one token and lets waiting requests join with their whole prompt; those that are finished or were cancelled leave.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from slime_engine_local.attention import KVCache
from slime_engine_local.errors import EngineError
from slime_engine_local.model import LanguageModel
from slime_engine_local.sampling import SamplingParams, choose_tokens

PROMPT_TOKENS_PER_STEP = 2048
"""Prompts join together up to so many tokens, which bounds memory and how long the others wait for their next token."""


@dataclass(eq=False)
class Request:
    """One prompt and the response so far.

    Attributes:
        limit: tokens after which the response ends.
        done: why the response ended, once it has. Cancelling it makes the request leave.
        log_probs, versions: of each token; see `slime_core.engine.Generation`.
    """

    prompt: list[int]
    params: SamplingParams
    limit: int
    done: Future[Literal["stop", "length"]] = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.params.seed)

    def draw(self) -> float:
        """The next random number in [0, 1): 48 bits, so that its product with a sum of probabilities stays below it."""
        return self._random.getrandbits(48) / 2**48

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt) + len(self.tokens)

    def finish_reason(self) -> Literal["stop", "length"] | None:
        """Why the response ends here, None if it goes on."""
        if self.tokens[-1] in self.params.stop_token_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.limit else None


class Scheduler:
    """Runs requests on a thread of its own, started when first needed.

    Args:
        max_running: requests decoded together.

    Attributes:
        model, version: what generates; changed through `call`.
    """

    def __init__(self, max_running: int) -> None:
        self.model: LanguageModel | None = None
        self.version = 0
        self._max_running = max_running
        self._running: list[Request] = []  # request number i owns row i of the cache
        self._waiting: deque[Request] = deque()
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._cache = KVCache()
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn; `request.done` tells when it is finished."""
        with self._wake:
            self._start()
            self._waiting.append(request)
            self._wake.notify()

    def call(self, work: Callable[[], None]) -> None:
        """Do `work` on the scheduler's thread between two steps, and wait for it."""
        done: Future[None] = Future()
        with self._wake:
            self._start()
            self._calls.append((work, done))
            self._wake.notify()
        done.result()

    def close(self) -> None:
        """End the thread; requests that are not finished fail. Does nothing the second time."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _start(self) -> None:
        if self._closed:
            raise EngineError("The engine 'local' was closed.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="slime-engine-local", daemon=True)
            self._thread.start()

    @torch.inference_mode()
    def _loop(self) -> None:
        while self._wait_for_work():
            while self._calls:
                _carry_out(*self._calls.popleft())
            try:
                self._step()
            except Exception as error:
                self._fail_running(error)
        self._end()

    def _wait_for_work(self) -> bool:
        """Block until there is something to do. False when the scheduler was closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._calls or self._waiting or self._running)
            return not self._closed

    def _step(self) -> None:
        """One token for every request that runs, the joining ones included."""
        decoded = len(self._running)
        self._running += self._joining()
        if not self._running or self.model is None:
            return
        logits = self.model.next_logits(
            [request.tokens[-1] for request in self._running[:decoded]],
            [request.length - 1 for request in self._running[:decoded]],
            [request.prompt for request in self._running[decoded:]],
            self._cache,
        )
        if not logits.amax(-1).isfinite().all():
            raise EngineError(f"The weights of version {self.version} give logits that are NaN or infinite.")
        params = [request.params for request in self._running]
        chosen = choose_tokens(logits, params, [request.draw() for request in self._running])
        for request, token, log_prob in zip(self._running, *chosen, strict=True):
            request.tokens.append(token)
            request.log_probs.append(log_prob)
            request.versions.append(self.version)
            if reason := request.finish_reason():
                _resolve(request.done, reason)
        self._let_go()

    def _joining(self) -> list[Request]:
        joining: list[Request] = []
        budget = PROMPT_TOKENS_PER_STEP
        while self._waiting and len(self._running) + len(joining) < self._max_running:
            if joining and len(self._waiting[0].prompt) > budget:
                break
            request = self._waiting.popleft()
            if not request.done.cancelled():
                joining.append(request)
                budget -= len(request.prompt)
        return joining

    def _let_go(self) -> None:
        """Remove requests that are finished or cancelled; the last one takes the row of each. An idle engine holds no
        keys and values."""
        for slot in reversed(range(len(self._running))):
            if self._running[slot].done.done():
                last = self._running.pop()
                if slot < len(self._running):
                    self._running[slot] = last
                    self._cache.move(len(self._running), slot, last.length)
        if not self._running:
            self._cache = KVCache()

    def _fail_running(self, error: Exception) -> None:
        """End the requests of a step that failed; those that wait get their own chance."""
        failed, self._running, self._cache = self._running, [], KVCache()
        for request in failed:
            _reject(request.done, error)

    def _end(self) -> None:
        """Fail all that is left after `close`, after which nothing can be added."""
        error = EngineError("The engine 'local' was closed before this was finished.")
        self._fail_running(error)
        for request in self._waiting:
            _reject(request.done, error)
        for _, done in self._calls:
            _reject(done, error)


def _carry_out(work: Callable[[], None], done: Future[None]) -> None:
    try:
        work()
        done.set_result(None)
    except Exception as error:
        done.set_exception(error)


# A future may be cancelled at any moment by whoever waits for it.


def _resolve(done: Future[Any], value: Any) -> None:
    with suppress(InvalidStateError):
        done.set_result(value)


def _reject(done: Future[Any], error: Exception) -> None:
    with suppress(InvalidStateError):
        done.set_exception(error)
