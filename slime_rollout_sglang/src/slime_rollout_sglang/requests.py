"""What one rollout asks of the engine: every request has a name, tokens are counted, and all of it can be stopped.

A generator is given a `Session` in place of the engine itself. When sampling stops, a generator that goes on to its next
turn gets the answer "abort" at once, whatever it was doing when the engine was told.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

from slime_core.contracts.engine import Generation
from slime_rollout_sglang.parameters import seed_of

_ABORT_AGAIN_AFTER = 1.0  # seconds; an abort may overtake a request on its way to a remote engine


class Requests:
    """The requests of one rollout.

    Args:
        engine: the run's inference engine.
        name: begins the name of every request; no other rollout may use it.

    Attributes:
        stopped: set when the rollout has what it needs.
    """

    def __init__(self, engine: Any, name: str) -> None:
        self.engine = engine
        self.running: set[str] = set()
        self.stopped = asyncio.Event()
        self._name = name
        self._numbers = itertools.count()

    def next_name(self) -> str:
        """A name for the next request."""
        return f"{self._name}-{next(self._numbers)}"

    async def stop(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        """End all requests, and wait for the tasks that wait for them."""
        self.stopped.set()
        pending = set(tasks)
        while pending:
            if self.running:
                await self.engine.abort(sorted(self.running))
            _, pending = await asyncio.wait(pending, timeout=_ABORT_AGAIN_AFTER)


class Hold:
    """Keeps the engine from generating while something is decided, if it is one that can wait (that has `hold`). Then
    what is decided, and how far other responses have come by then, does not depend on the clock."""

    def __init__(self, engine: Any) -> None:
        self._hold = getattr(engine, "hold", nullcontext)
        self._held: ExitStack | None = None

    def set(self, on: bool) -> None:
        """Hold the engine, or let it go on."""
        if on and self._held is None:
            self._held = ExitStack()
            self._held.enter_context(self._hold())
        elif not on and self._held is not None:
            self._held.close()
            self._held = None


class Session:
    """The engine as the generator of one sample sees it.

    Attributes:
        generated: tokens that the engine has generated for it.
        failure: what the engine itself raised last.
    """

    def __init__(self, requests: Requests) -> None:
        self.generated = 0
        self.failure: Exception | None = None
        self._requests = requests
        self._mine: set[str] = set()
        self._calls = 0

    async def generate(
        self, input_ids: Sequence[int], sampling_params: dict[str, Any], request_id: str | None = None
    ) -> Generation:
        """As `slime_core.contracts.engine.InferenceEngine.generate`. The second and later calls with one seed draw other random
        numbers than the first."""
        if self._requests.stopped.is_set():
            return Generation([], [], "abort")
        params = dict(sampling_params)
        if self._calls and params.get("seed") is not None:
            params["seed"] = seed_of(params["seed"], self._calls)
        self._calls += 1
        name = request_id or self._requests.next_name()
        self._mine.add(name)
        self._requests.running.add(name)
        try:
            generation: Generation = await self._requests.engine.generate(input_ids, params, name)
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._mine.discard(name)
            self._requests.running.discard(name)
        self.generated += len(generation.tokens)
        return generation

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        """End these requests, or all of this session's."""
        await self._requests.engine.abort(sorted(self._mine) if request_ids is None else request_ids)
