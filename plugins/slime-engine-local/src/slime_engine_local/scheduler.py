"""Continuous batching: one thread that decodes all running requests together. Called by `LocalEngine`.

Everything that touches the model happens on that thread, between or in its steps. A step gives every running request
one token and lets waiting requests join with all their tokens; those that are finished, aborted or cancelled leave.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from slime_core.tensors.offload import Offloaded
from slime_engine_local.attention import Pass, Piece
from slime_engine_local.cache import Chain, KVCache, Row
from slime_engine_local.errors import EngineError
from slime_engine_local.model import LanguageModel
from slime_engine_local.prefixes import Known, beginning
from slime_engine_local.request import Request
from slime_engine_local.sampling import choose_tokens

NEW_TOKENS_PER_STEP = 2048
"""Requests join together up to so many tokens, which bounds memory and how long the others wait for their next one."""
ROOM_TO_GO_ON = 32
"""Tokens that every running request must have room for before another joins, so that it does not leave again at once."""

_Call = tuple[Callable[[], None], Future[None]]


class Scheduler:
    """Runs requests on a thread of its own, started when first needed.

    Args:
        max_running: requests decoded together.
        max_tokens: tokens whose keys and values are kept.
        load: makes the model when a request waits and there is none.

    Attributes:
        model, version: what generates; changed by `use`.
    """

    def __init__(self, max_running: int, max_tokens: int, load: Callable[[], LanguageModel]) -> None:
        self.model: LanguageModel | None = None
        self.version = 0
        self._max_running, self._max_tokens, self._load = max_running, max_tokens, load
        self._running: list[Request] = []
        self._waiting: list[Request] = []  # in the order of their numbers
        self._arrived: list[Request] = []
        self._calls: list[_Call] = []
        self._cache = KVCache()
        self._known: list[Known] = []
        self._holds = 0
        self._offloaded: Offloaded | None = None
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn; `request.done` tells when it is finished."""
        with self._wake:
            self._start()
            self._arrived.append(request)
            self._wake.notify()

    def call(self, work: Callable[[], None]) -> Future[None]:
        """Do `work` on the scheduler's thread between two steps."""
        done: Future[None] = Future()
        with self._wake:
            self._start()
            self._calls.append((work, done))
            self._wake.notify()
        return done

    def use(self, model: LanguageModel, version: int) -> None:
        """Generate with this model, whose weights have changed, from now on. In `call` only."""
        if self.model not in (None, model):  # what was stored for another model is of no use
            self._send_back(list(self._running))
        self.model, self.version, self._known = model, version, []

    def abort(self, names: Collection[str | None] | None) -> None:
        """End requests by their names, or all. In `call` only."""
        for request in (*self._running, *self._waiting):
            if names is None or request.name in names:
                request.finish("abort")
        self._let_go()

    def offload(self) -> None:
        """Keep nothing on the device, and make no step, until `onload`. In `call` only."""
        if self._offloaded is not None:
            return
        self.hold(1)
        self._send_back(list(self._running))  # which leaves no keys and values
        self._offloaded = Offloaded()
        if self.model is not None:
            self._offloaded.leave(self.model.tensors(), self.model.device)

    def onload(self) -> None:
        """The inverse of `offload`. In `call` only."""
        if self._offloaded is not None:
            self._offloaded.come_back()
            self._offloaded = None
            self.hold(-1)

    def hold(self, change: int) -> None:
        """Add to the number of those who want no step to be made now. `call` works all the same."""
        with self._wake:
            self._holds += change
            self._wake.notify()

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
        while self._turn():
            pass
        self._end()

    def _turn(self) -> bool:
        """What there is to do, then one step. False when the scheduler was closed. Keeps hold of nothing between turns."""
        calls = self._wait_for_work()
        if calls is None:
            return False
        for work, done in calls:
            _carry_out(work, done)
        if self._holds:
            return True
        try:
            if self._waiting and self.model is None:
                self.model = self._load()
        except Exception as error:
            for request in self._waiting:
                request.fail(error)
            self._waiting = []
        try:
            self._step()
        except Exception as error:
            self._fail_running(error)
        return True

    def _wait_for_work(self) -> list[_Call] | None:
        """Block until there is something to do, and take over what came. None when the scheduler was closed."""
        with self._wake:
            self._wake.wait_for(self._has_work)
            if self._closed:
                return None
            calls, self._calls = self._calls, []
            self._waiting += self._arrived
            self._arrived = []
            return calls

    def _has_work(self) -> bool:
        requests = self._arrived or self._waiting or self._running
        return bool(self._closed or self._calls or (requests and not self._holds))

    def _step(self) -> None:
        """One token for every request that runs, the joining ones included."""
        self._let_go()
        self._make_room()
        decoded = sorted(self._running, key=lambda request: _place(request.chain.row))
        joining, pieces = self._joining()
        if (not decoded and not joining) or self.model is None:
            return
        step = Pass(self._cache, [request.chain for request in decoded], pieces, self.model.device)
        logits = self.model.next_logits([request.tokens[-1] for request in decoded], step)
        for request in decoded:
            request.chain.row.length += 1
        for piece in pieces:
            piece.chain.row.length += len(piece.tokens)
        self._known = [Known(entry.tokens, entry.row, entry.shared, pending=False) for entry in self._known]
        # A piece that several requests begin with may also be the end of what they have.
        rows = [*range(len(decoded)), *(len(decoded) + piece for piece in joining.values())]
        self._choose([*decoded, *joining], logits if len(rows) == len(logits) else logits[rows])

    def _choose(self, requests: list[Request], logits: Tensor) -> None:
        if not logits.amax(-1).isfinite().all():
            raise EngineError(f"The weights of version {self.version} give logits that are NaN or infinite.")
        params = [request.params for request in requests]
        draws = [request.draw() for request in requests]
        tokens, log_probs = choose_tokens(logits, params, draws, [request.banned() for request in requests])
        for request, token, log_prob in zip(requests, tokens, log_probs, strict=True):
            request.add(token, log_prob, self.version)
        self._let_go()

    def _make_room(self) -> None:
        """Let every running request have room for one more token; the youngest wait until there is."""
        by_age = sorted(self._running, key=lambda request: request.number)
        while by_age and len(self._cache) + len(by_age) > self._max_tokens:
            self._send_back([by_age.pop()])
        for request in self._running:
            self._cache.grow(request.chain.row, request.chain.row.length + 1)

    def _joining(self) -> tuple[dict[Request, int], list[Piece]]:
        """Requests that start or go on now, each with the piece whose end chooses its next token, and the pieces."""
        joining: dict[Request, int] = {}
        shared: list[Piece] = []
        own: list[tuple[Request, Piece]] = []
        ends: dict[Row, int] = {}
        stored, new = len(self._cache), 0
        while self._waiting and len(self._running) < self._max_running:
            request = self._waiting[0]
            tokens = [*request.prompt, *request.tokens]
            others = [[*r.prompt, *r.tokens] for r in self._waiting[1 : self._max_running]]
            start = beginning(tokens, self._known, others)
            needed = len(tokens) - (start.length if start.row else 0)
            room = self._max_tokens - stored - ROOM_TO_GO_ON * len(self._running)
            if self._running and (needed > room or (new and new + needed > NEW_TOKENS_PER_STEP)):
                break
            self._waiting.pop(0)
            prefix = start.row
            if start.length and prefix is None:
                prefix = self._cache.add(start.length, shared=True)
                if start.copy:
                    self._cache.copy(start.copy, prefix, start.copied)
                ends[prefix] = len(shared)
                shared.append(Piece(Chain(prefix), tokens[start.copied : start.length]))
                self._known.append(Known(tokens[: start.length], prefix, shared=True, pending=True))
            if prefix:
                prefix.readers += 1
            rest = tokens[start.length :]
            request.chain = Chain(self._cache.add(len(rest) + 1), prefix, start.length)
            if rest:
                own.append((request, Piece(request.chain, rest)))
                if not start.length:
                    self._known.append(Known(tokens, request.chain.row, shared=False, pending=True))
            else:
                joining[request] = ends[prefix]
            self._running.append(request)
            stored, new = stored + needed, new + needed - start.copied
        for number, (request, _) in enumerate(own, len(shared)):
            joining[request] = number
        return joining, [*shared, *(piece for _, piece in own)]

    def _send_back(self, requests: Sequence[Request]) -> None:
        """Let running requests wait again; what they have generated is computed anew when they go on."""
        for request in requests:
            self._running.remove(request)
            self._forget(request)
        self._waiting = sorted([*self._waiting, *requests], key=lambda request: request.number)

    def _let_go(self) -> None:
        """Remove requests that are finished or cancelled."""
        self._waiting = [request for request in self._waiting if not request.done.done()]
        for request in [request for request in self._running if request.done.done()]:
            self._running.remove(request)
            self._forget(request)

    def _forget(self, request: Request) -> None:
        """Free what is stored of a request."""
        chain, request.chain = request.chain, None
        gone = [chain.row]
        if chain.prefix:
            chain.prefix.readers -= 1
            if not chain.prefix.readers:
                gone.append(chain.prefix)
        for row in gone:
            self._cache.remove(row)
        self._known = [entry for entry in self._known if entry.row not in gone]

    def _fail_running(self, error: Exception) -> None:
        """End the requests of a step that failed; those that wait get their own chance."""
        failed, self._running, self._cache, self._known = self._running, [], KVCache(), []
        for request in failed:
            request.fail(error)

    def _end(self) -> None:
        """Fail all that is left after `close`, after which nothing can be added."""
        error = EngineError("The engine 'local' was closed before this was finished.")
        self._fail_running(error)
        for request in (*self._waiting, *self._arrived):
            request.fail(error)
        for _, done in self._calls:
            done.set_exception(error)


def _place(row: Row) -> tuple[int, int]:
    return row.pool.capacity, row.index


def _carry_out(work: Callable[[], None], done: Future[None]) -> None:
    try:
        work()
        done.set_result(None)
    except Exception as error:
        done.set_exception(error)
