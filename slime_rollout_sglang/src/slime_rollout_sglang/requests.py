"""The requests that rollouts make to the engine: every request has a name, tokens are counted, and all can be stopped.

A generate function is given a `Session` in place of the engine itself. Once sampling is stopped, every further turn that
it starts is answered at once with the finish reason "abort", without asking the engine. A reward that asks is answered all the same.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from slime_core.contracts.engine import Generation, Holds
from slime_core.rollout.asking import ask
from slime_core.rollout.stop_strings import first_completed
from slime_core.sample import Sample, Status
from slime_core.token_arrays import num_tokens
from slime_rollout_sglang.parameters import seed_of
from slime_rollout_sglang.partial import note_turn_start, turn_start

if TYPE_CHECKING:
    from slime_core.contracts.engine import InferenceEngine
    from slime_core.data.image_processor import Processor
    from slime_rollout_sglang.arguments import RlRunArguments

Result = TypeVar("Result")

ABORT_AGAIN_AFTER = 1.0
"""Seconds after which an abort is repeated: on its way to a remote engine, it may overtake the request that it ends."""


class Stop:
    """What thousands of samples wait for, most of them in vain. In place of `asyncio.Event`, which goes through all that wait when one of
    them waits no more."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: set[asyncio.Future[None]] = set()

    def is_set(self) -> bool:
        """Whether `set` has been called."""
        return self._set

    def set(self) -> None:
        """Let all go on that wait, now and from now on."""
        self._set = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        """Return when `set` is called."""
        if self._set:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)


class Requests:
    """The requests of one rollout or evaluation, or of all rollouts of `fully_async`.

    Args:
        args: of the run, as an engine that can be shown images is told.
        engine: the run's inference engine.
        name: the beginning of every request's name. No requests that run at the same time may share it.

    Attributes:
        running: the names of the requests that the engine has not answered yet, but for those of rewards.
        stopped: set when nothing more shall be generated.
        hold: keeps the engine from generating.
    """

    def __init__(self, args: RlRunArguments, engine: InferenceEngine, name: str) -> None:
        self._args, self.engine = args, engine
        self.hold = EngineHold(engine)
        self.running: set[str] = set()
        self.stopped = Stop()
        self._name = name
        self._numbers = itertools.count()

    def next_name(self) -> str:
        """Return a name for the next request."""
        return f"{self._name}-{next(self._numbers)}"

    async def ask(
        self, input_ids: list[int], sampling_params: dict[str, Any], name: str, images: Sequence[bytes]
    ) -> Generation:
        """Return one response of the engine, which is shown these images."""
        return await ask(self.engine, self._args, input_ids, sampling_params, name, images)

    async def stop(self, tasks: Collection[asyncio.Task[None]]) -> None:
        """End all requests, and wait until the tasks that depend on them have ended."""
        self.stopped.set()
        pending = set(tasks)
        while pending:
            if self.running:
                await self.engine.abort(sorted(self.running))
            _, pending = await asyncio.wait(pending, timeout=ABORT_AGAIN_AFTER)


class EngineHold:
    """Keeps an engine that has the ability `Holds` from generating while a decision is pending; other engines go on.

    With it, neither the decision nor how far other responses have come by then depends on the clock.

    Attributes:
        matters: whether a decision may end the sampling while responses are generated. Without, the engine is never held.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine if isinstance(engine, Holds) else None
        self._held: ExitStack | None = None
        self.matters = False
        self._is_on = False
        self._followed_up = 0
        self._needed = 0

    @property
    def applies(self) -> bool:
        """Whether the engine is ever held: it can be, and it matters."""
        return self.matters and self._engine is not None

    def set(self, on: bool) -> None:
        """Hold the engine (True), or let it go on (False). Calls that change nothing are allowed."""
        self._is_on = on
        self._follow()

    @contextmanager
    def following_up(self) -> Iterator[None]:
        """Return a context in which the engine is held: what is generated is looked at, on which a decision will wait."""
        self._followed_up += 1
        self._follow()
        try:
            yield
        finally:
            self._followed_up -= 1
            self._follow()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Return a context in which the engine goes on: the decision waits for one of its answers."""
        self._needed += 1
        self._follow()
        try:
            yield
        finally:
            self._needed -= 1
            self._follow()

    def _follow(self) -> None:
        on = self.matters and (self._is_on or self._followed_up > 0) and not self._needed
        if on and self._held is None and self._engine is not None:
            self._held = ExitStack()
            self._held.enter_context(self._engine.hold())
        elif not on and self._held is not None:
            self._held.close()
            self._held = None


class Turns:
    """Lets things that are done side by side end in the order in which they began, so that what comes of it does not depend on the
    clock: functions that are not async run on threads."""

    def __init__(self) -> None:
        self._last: asyncio.Event | None = None

    async def take(self, work: Awaitable[Result]) -> Result:
        """Do something, wait until all that began before it has ended, and return its result, or raise its error."""
        earlier, self._last = self._last, asyncio.Event()
        ended = self._last
        try:
            return await work
        finally:
            try:
                if earlier is not None:
                    await earlier.wait()
            finally:
                ended.set()


class Session:
    """The engine as the generate function of one sample sees it (`slime_core.contracts.engine.Generates`).

    It keeps what sampling promises, whatever the generate function asks for: no sequence becomes longer than `max_context_len`,
    and a turn that an abort has cut in two ends where it would have ended in one (`min_new_tokens`, stop strings).

    Args:
        sample: as the generate function is given it.
        max_context_len: the longest prompt and response in tokens; None for no limit.
        decode: turns token ids into text; the second argument says whether special tokens are left out.
        skip_special: whether special tokens are left out of the texts of responses (--rollout-skip-special-tokens).
        processor: what the model makes of images; None where it reads none.
        scores: a reward asks. The engine is not held while it does, or the verdict on a group would wait for itself; and once
            sampling is stopped, its requests end with the reward, which gets its answers whole or is not given at all.

    Attributes:
        generated: how many tokens the engine has generated for the sample.
        failure: the last exception that the engine itself raised.
        images: the encoded images of the sample.
    """

    def __init__(
        self,
        requests: Requests,
        sample: Sample,
        max_context_len: int | None,
        decode: Callable[[list[int], bool], str],
        skip_special: bool = True,
        processor: Processor | None = None,
        scores: bool = False,
    ) -> None:
        self.generated = 0
        self.failure: Exception | None = None
        self._requests = requests
        self._given, self._turn_start = sample.tokens, turn_start(sample)
        self.images, self._processor, self._scores = sample.images, processor, scores
        self._max_context_len, self._decode, self._skip_special = max_context_len, decode, skip_special
        self._aborted_turn: tuple[int, int] | None = (
            None  # where the tokens of the last turn begin and end, if it was aborted
        )
        self._running: set[str] = set()
        self._calls = 0

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: dict[str, Any],
        request_id: str | None = None,
        images: Sequence[bytes] | None = None,
    ) -> Generation:
        """Return one response, as `slime_core.contracts.engine.InferenceEngine.generate` does.

        The second and every later call with the same seed draw other random numbers than the first. Where `input_ids` leave no
        room in the context, the answer is empty, with the finish reason "length".

        Args:
            images: those that `input_ids` show; None: those of the sample, where there are image tokens among `input_ids`.
        """
        ids = [int(token) for token in input_ids]
        if images is None:
            images = self.images if self._processor is None or self._processor.token in ids else []
        earlier = ids[self._turn_start :] if self._turn_start is not None and ids == self._given else []
        begin = len(ids) - len(earlier)
        self._aborted_turn = (begin, len(ids))  # as long as there is no answer
        if self._requests.stopped.is_set() and not self._scores:
            return Generation([], [], "abort")
        params = dict(sampling_params)
        if self._max_context_len is not None:
            room = self._max_context_len - len(ids)
            params["max_new_tokens"] = min(params.get("max_new_tokens", room), room)
            if room < 1:
                self._aborted_turn = None
                return Generation([], [], "length")
        if self._calls and params.get("seed") is not None:
            params["seed"] = seed_of(params["seed"], self._calls)
        self._calls += 1
        shortest = params.get("min_new_tokens") or 0
        if earlier and shortest:
            params["min_new_tokens"] = max(0, shortest - len(earlier))
        name = request_id or self._requests.next_name()
        self._running.add(name)
        if not self._scores:
            self._requests.running.add(name)
        try:
            with self._requests.hold.lifted() if self._scores else nullcontext():
                generation = await self._requests.ask(ids, params, name, images)
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._running.discard(name)
            self._requests.running.discard(name)
        self.generated += len(generation.tokens)
        if earlier and params.get("stop"):
            generation = self._cut_at_stop_string(earlier, generation, params["stop"], shortest)
        if not self._skip_special:
            generation = replace(generation, text=self._decode(generation.tokens, False))
        is_aborted = generation.finish_reason == "abort"
        self._aborted_turn = (begin, len(ids) + len(generation.tokens)) if is_aborted else None
        return generation

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        """End these requests or, for None, all requests of this session."""
        await self._requests.engine.abort(sorted(self._running) if request_ids is None else request_ids)

    def note_turn(self, made: Sample) -> None:
        """Note in a sample that goes back to the data source where the turn began in which it was aborted."""
        begin, end = self._aborted_turn or (0, -1)
        is_open = made.status is Status.ABORTED and num_tokens(made) == end
        if is_open or turn_start(made) is not None:
            note_turn_start(made, begin if is_open else None)

    def _cut_at_stop_string(
        self, earlier: list[int], generation: Generation, stop: str | Sequence[str], shortest: int
    ) -> Generation:
        """End a continued response at a stop string that began before the abort, which the engine has not seen whole."""
        texts = [stop] if isinstance(stop, str) else list(stop)
        count = first_completed(lambda tokens: self._decode(tokens, False), earlier, generation.tokens, texts, shortest)
        if count is None:
            return generation
        tokens = generation.tokens[:count]
        return Generation(
            tokens,
            generation.log_probs[:count],
            "stop",
            generation.weight_versions[:count],
            self._decode(tokens, self._skip_special),
        )
