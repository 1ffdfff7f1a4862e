"""`Scheduler`: continuous batching on one thread, which decodes all running requests together. `LocalEngine` calls it.

Everything that touches the model happens on that thread, between its steps or in them. A step gives every running
request one token and lets waiting requests join with all their tokens; those that are finished, aborted or cancelled
leave.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from itertools import islice

import torch
from torch import Tensor

from slime_core.tensors.freed_memory import give_back_freed_memory
from slime_core.tensors.offload import Offloaded
from slime_engine_local.cache import Row
from slime_engine_local.errors import EngineError
from slime_engine_local.forward_pass import Chunk, ForwardPass
from slime_engine_local.model import LanguageModel
from slime_engine_local.request import Request
from slime_engine_local.sampling import choose_tokens, likeliest_tokens
from slime_engine_local.static_decoding import StaticDecoding
from slime_engine_local.static_proof import DecodingChoice
from slime_engine_local.storage import Joining, Storage
from slime_engine_local.threads import ThreadCount
from slime_engine_local.vision import NO_IMAGES

NEW_TOKENS_PER_STEP, ON_GPU = 2048, 4096
"""Requests join together up to so many tokens on a CPU and on a GPU, which bounds memory and how long the others wait for their next
token."""

_Call = tuple[Callable[[], None], Future[None]]


class Scheduler:
    """Runs requests on a thread of its own, which starts when it is first needed.

    Args:
        max_running: how many requests are decoded together at most.
        max_tokens: how many tokens' keys and values are kept at most.
        load: makes the model when a request waits and there is no model yet.
        decoding: makes what decodes with fixed shapes.

    Attributes:
        model, version: the model that generates and the version of its weights; `use` changes them.
    """

    def __init__(
        self, max_running: int, max_tokens: int, load: Callable[[], LanguageModel], decoding: DecodingChoice
    ) -> None:
        self.model: LanguageModel | None = None
        self.version = 0
        self._max_running, self._max_tokens, self._load = max_running, max_tokens, load
        self._storage = Storage(max_tokens)
        self._running: list[Request] = []
        self._waiting: deque[Request] = deque()  # in the order of their numbers
        self._arrived: list[Request] = []
        self._calls: list[_Call] = []
        self._decoding = decoding
        self._static: StaticDecoding | None = None
        self._holds = 0
        self._spoilt: EngineError | None = None
        self._offloaded: Offloaded | None = None
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> None:
        """Queue a request; `request.done` tells when it is finished."""
        with self._wake:
            self._start()
            self._arrived.append(request)
            self._wake.notify()

    def call(self, work: Callable[[], None]) -> Future[None]:
        """Call `work` on the scheduler's thread between two steps."""
        done: Future[None] = Future()
        with self._wake:
            self._start()
            self._calls.append((work, done))
            self._wake.notify()
        return done

    def use(self, model: LanguageModel, version: int) -> None:
        """Generate with this model, whose weights have changed, from now on. Only to be called through `call`."""
        if self.model not in (None, model):  # what was stored for another model is of no use
            self._preempt(list(self._running))
            self._decode_by(None)
        elif self._static is not None:
            self._static.drop()
        self._storage.prefixes = []
        self.model, self.version, self._spoilt = model, version, None

    def spoil(self, error: EngineError) -> None:
        """The model's weights are of no use: requests fail with this error until `use` is called. Only to be called through `call`."""
        self._spoilt = error

    def give_up_weights(self) -> None:
        """Free what is packed of the weights, unless there are requests. Only to be called through `call`."""
        if self.model is None or self._running or self._waiting or self._arrived:
            return
        if self.model.give_up():
            give_back_freed_memory()
            what = "has given its weights up for a training step, and has not been handed new ones"
            self.spoil(EngineError(f"The engine 'local' {what}."))

    def model_in_use(self) -> LanguageModel:
        """Return the model, which is loaded now if there is none yet. Only to be called through `call`.

        Raises:
            EngineError: its weights are of no use, are offloaded, or cannot be loaded.
        """
        if self._spoilt is not None:
            raise self._spoilt
        if self._offloaded is not None:
            raise EngineError("The engine 'local' has given back its memory; call onload first.")
        self.model = self.model or self._load()
        return self.model

    def abort(self, names: Collection[str | None] | None) -> None:
        """End the requests with these names, or all if None. Only to be called through `call`."""
        for request in (*self._running, *self._waiting):
            if names is None or request.name in names:
                request.finish("abort")
        self._remove_finished()
        self._forget_waiting()

    def offload(self) -> None:
        """Free the device's memory, and make no step, until `onload`. Only to be called through `call`."""
        if self._offloaded is not None:
            return
        self.hold(1)
        self._preempt(list(self._running))  # which leaves no keys and values
        for request in self._waiting:
            request.shown.forget()
        self._decode_by(None)
        self._offloaded = Offloaded()
        if self.model is not None:
            self._offloaded.leave(self.model.tensors(), self.model.device)

    def onload(self) -> None:
        """Undo `offload`. Only to be called through `call`."""
        if self._offloaded is not None:
            self._offloaded.come_back()
            self._offloaded = None
            self.hold(-1)

    def hold(self, change: int) -> None:
        """Add to the number of callers who want no step to be made now. Functions given to `call` run all the same."""
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
        threads = ThreadCount()
        while self._work():
            threads.adapt()
        self._end()

    def _work(self) -> bool:
        """Carry out the calls that came, then make one step. Return False when the scheduler was closed.

        It is a function of its own so that its local variables keep nothing alive while the thread waits.
        """
        calls = self._wait_for_work()
        if calls is None:
            return False
        for work, done in calls:
            _carry_out(work, done)
        if self._holds:
            return True
        if self._spoilt is not None:
            self._fail_waiting(self._spoilt)
            self._fail_running(self._spoilt)
            return True
        try:
            if self._waiting and self.model is None:
                self.model = self._load()
            if self._waiting and not self._running and self._static is None and self.model is not None:
                self._decode_by(self._decoding.static(self.model))
        except Exception as error:
            self._fail_waiting(error)
        try:
            self._step()
        except Exception as error:
            self._fail_running(error)
        return True

    def _wait_for_work(self) -> list[_Call] | None:
        """Block until there is something to do, and take over what came. Return None when the scheduler was closed."""
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
        """Generate one token for every running request, those that join now included."""
        self._remove_finished()
        if self._static is not None:
            self._static_step(self._static)
            return
        self._make_room()
        decoded = sorted(self._running, key=lambda request: _position(request.cached.row))
        joining, chunks = self._admit()
        if (not decoded and not joining) or self.model is None:
            return
        self._pass_over_rows(self.model, decoded, joining, chunks)

    def _pass_over_rows(
        self, model: LanguageModel, decoded: list[Request], joining: dict[Request, int], chunks: list[Chunk]
    ) -> None:
        """Compute one token of each decoded request and the chunks, and choose the next token of all these requests."""
        step = ForwardPass(self._storage.cache, [request.cached for request in decoded], chunks, model.device)
        logits = model.next_logits([request.tokens[-1] for request in decoded], step)
        for request in decoded:
            request.cached.row.length += 1
        for chunk in chunks:
            chunk.sequence.row.length += len(chunk.tokens)
        self._storage.computed()
        # The chunk of a prefix that several requests share may also be the last one of some of them.
        rows = [*range(len(decoded)), *(len(decoded) + chunk for chunk in joining.values())]
        self._choose([*decoded, *joining], logits if rows == list(range(len(logits))) else logits[rows])

    def _static_step(self, static: StaticDecoding) -> None:
        """The same with fixed shapes: requests that join are computed over rows, and their tokens move to pages then."""
        self._make_room()
        decoded = list(self._running)
        joining, chunks = self._admit()
        if joining and self.model is not None:
            self._pass_over_rows(self.model, [], joining, chunks)
            self._storage.move_to_pages([request for request in joining if request.sequence is not None])
        elif any(request.needs_logits for request in decoded):
            logits = static.logits(decoded)
            for request in decoded:
                request.cached.row.length += 1
            self._choose(decoded, logits)
        elif decoded:
            for request, token, log_prob, finite in static.decode(decoded):
                if not finite:
                    raise self._not_finite()
                request.cached.row.length += 1
                request.add(int(token), log_prob, self.version)
            self._remove_finished()
        if not self._running:
            static.drop()

    def _not_finite(self) -> EngineError:
        return EngineError(f"The weights of version {self.version} give logits that are NaN or infinite.")

    def _choose(self, requests: list[Request], logits: Tensor) -> None:
        """Choose the next token of each request from its row of the logits."""
        if not logits.amax(-1).isfinite().all():
            raise self._not_finite()
        params = [request.params for request in requests]
        draws = [request.draw() for request in requests]
        temperatures = [p.temperature or 1.0 for p in params]
        likeliest = likeliest_tokens(logits, temperatures, [request.likeliest for request in requests])
        tokens, log_probs = choose_tokens(logits, params, draws, [request.banned() for request in requests])
        for request, token, log_prob, others in zip(requests, tokens, log_probs, likeliest, strict=True):
            request.add(token, log_prob, self.version, others)
        self._remove_finished()

    def _decode_by(self, static: StaticDecoding | None) -> None:
        """Decode with fixed shapes, or by forward passes over rows. No request may be running."""
        self._static = static
        self._storage.pages = static.pages if static is not None else None

    def _make_room(self) -> None:
        """Make room for one more token of every running request; the youngest are preempted until there is."""
        while self._running and self._storage.lacks_room(self._running):
            self._preempt([max(self._running, key=lambda request: request.number)])
        self._storage.grow(self._running)

    def _admit(self) -> tuple[dict[Request, int], list[Chunk]]:
        """Let waiting requests join. Return them, each with the index of the chunk that ends with its last token, and
        the chunks that must be computed."""
        if (model := self.model) is None or not self._waiting or len(self._running) >= self._max_running:
            return {}, []
        joining = Joining(self._storage, self._running, ON_GPU if model.device.type == "cuda" else NEW_TOKENS_PER_STEP)
        keys_of = {request: request.keys() for request in islice(self._waiting, self._max_running)}
        while self._waiting and len(self._running) < self._max_running:
            request = self._waiting[0]
            try:
                request.shown.prepare(model)
            except Exception as error:  # of its images alone
                self._waiting.popleft()
                request.fail(error)
                continue
            keys = keys_of[request] if request in keys_of else request.keys()
            others = (keys_of[other] for other in islice(self._waiting, 1, self._max_running) if other in keys_of)
            plan = joining.plan(request, keys, others)
            if not joining.has_room(plan, len(self._running)):
                break
            self._running.append(
                self._waiting.popleft()
            )  # before it gets rows: where memory is short it fails as others do
            joining.add(request, keys, plan)
        return joining.ends(), joining.chunks()

    def _preempt(self, requests: Sequence[Request]) -> None:
        """Let running requests wait again; the keys and values of their tokens are computed anew when they go on."""
        for request in requests:
            self._running.remove(request)
            self._storage.remove(request)
            later = (place for place, other in enumerate(self._waiting) if other.number > request.number)
            self._waiting.insert(next(later, len(self._waiting)), request)

    def _remove_finished(self) -> None:
        """Remove requests that are finished or cancelled, the last rows first: those behind a row that goes move into its place. Those
        that wait are looked at shortly before they join, since they may be many."""
        ended = [request for request in self._running if request.ended]
        for request in sorted(ended, key=lambda request: request.cached.row.index, reverse=True):
            self._running.remove(request)
            self._storage.remove(request)
            request.shown = NO_IMAGES  # whoever waits for the response may keep the request for a while
        if any(request.ended for request in islice(self._waiting, self._max_running)):
            self._forget_waiting()

    def _forget_waiting(self) -> None:
        """Remove requests that have ended before they began."""
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            if request.ended:
                request.shown = NO_IMAGES
            else:
                self._waiting.append(request)

    def _fail_running(self, error: Exception) -> None:
        """End the requests of a step that failed; those that wait get a step of their own."""
        failed, self._running, self._storage = self._running, [], Storage(self._max_tokens)
        self._decode_by(None)
        for request in failed:
            request.fail(error)

    def _fail_waiting(self, error: Exception) -> None:
        for request in self._waiting:
            request.fail(error)
        self._waiting = deque()

    def _end(self) -> None:
        """Fail all that is left after `close`, after which nothing can be added."""
        error = EngineError("The engine 'local' was closed before this was finished.")
        self._fail_running(error)
        for request in (*self._waiting, *self._arrived):
            request.fail(error)
        for _, done in self._calls:
            if done.set_running_or_notify_cancel():
                done.set_exception(error)


def _position(row: Row) -> tuple[int, int]:
    """The sort key that puts rows in the order of pools, and of rows in a pool."""
    return row.pool.capacity, row.index


def _carry_out(work: Callable[[], None], done: Future[None]) -> None:
    """Call `work`, unless whoever waited for it has cancelled that before it began."""
    if not done.set_running_or_notify_cancel():
        return
    try:
        work()
        done.set_result(None)
    except Exception as error:
        done.set_exception(error)
