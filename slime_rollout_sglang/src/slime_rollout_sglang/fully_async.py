"""The rollout function `fully_async`: groups are generated without a pause, also while the trainer trains.

They live in an event loop on a thread of their own that outlasts the calls. A call waits until `--rollout-batch-size`
groups can be returned and takes them; the others go on. The engine is given new weights between two calls, with requests
running; each token keeps the version that produced it. `slime_rollout_sglang.staleness` says when a group may be begun and
when it must be returned, so that no token is more than `--max-staleness` versions older than the weights it trains.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from slime_core.contracts.rollout import Background
from slime_core.errors import PluginError, SampleError
from slime_core.plugins import Plugins
from slime_core.rollout.components import RolloutComponents
from slime_core.rollout.in_flight import state_with
from slime_core.sample import Group, RolloutOutput
from slime_rollout_sglang import staleness
from slime_rollout_sglang.evaluation import evaluate
from slime_rollout_sglang.groups import PATIENCE, Flight, first_error_only
from slime_rollout_sglang.partial import fresh
from slime_rollout_sglang.rollout import Line, require_engine
from slime_rollout_sglang.sampling import Sampled, make_up, passes

logger = logging.getLogger(__name__)


def generate_rollout(
    args: Any,
    rollout_id: int,
    data_source: Any,
    evaluation: bool = False,
    *,
    components: RolloutComponents,
    plugins: Plugins,
    engine: Any = None,
    background: Background,
) -> RolloutOutput:
    """`--rollout-batch-size` groups of scored responses or, for evaluation, answers to `--eval-prompt-data`.

    It is called when the engine has the weights of version `rollout_id`. Without staleness (0) the groups are those of
    the rollout `sglang` with `--dynamic-sampling-order prompt`.

    Raises:
        ArgumentError: there is no engine.
        DataError: prompts cannot be used.
        SampleError: too many groups failed, or the engine's weight versions are older than can be.
        PluginError: a component failed whose policy is to end the run. What the engine raises comes as it is, also what it
            raised since the last call.
    """
    require_engine(engine, "fully_async")
    if background.work is None and evaluation:
        return asyncio.run(evaluate(args, rollout_id, components, plugins, engine))
    if background.work is None:
        background.work = FullyAsync(args, data_source, components, plugins, engine)
    work: Any = background.work
    return work.call(work.evaluate if evaluation else work.roll_out, rollout_id)


class _Closed(Exception):
    """Ends the event loop."""


class FullyAsync:
    """Generates groups until it is closed or something fails.

    Attributes:
        data_state: see `slime_core.contracts.rollout.Work`.
    """

    def __init__(
        self, args: Any, data_source: Any, components: RolloutComponents, plugins: Plugins, engine: Any
    ) -> None:
        self._args, self._data_source, self._engine = args, data_source, engine
        self._components, self._plugins = components, plugins
        self._line = Line(args, data_source, components, plugins, engine, "fully-async")
        self.data_state = data_source.state_dict()
        self._started = 0
        self._due: dict[Flight, int] = {}  # all that are on their way, and the rollouts in which they are due
        self._finished: set[Flight] = set()  # those of them that passed
        self._judged = Sampled()  # the others that were, since the last rollout
        self._rollout_id = self._version = 0  # returned next; of the weights
        self._started_afresh = 0
        self._paused = False
        self._error_told = False
        self._ended: Future[None] = Future()
        self._loop_is_there: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name="fully-async", daemon=True)
        self._thread.start()
        self._loop = self._loop_is_there.result()

    def call(self, method: Callable[[int], Coroutine[Any, Any, RolloutOutput]], rollout_id: int) -> RolloutOutput:
        """Run a method in the event loop and wait for what it returns. Raises whatever ends the loop, or has ended it."""
        answer: Future[RolloutOutput] = Future()

        async def work() -> None:
            answer.set_result(await method(rollout_id))

        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(lambda: self._tasks.create_task(work()))
        concurrent.futures.wait((answer, self._ended), return_when=concurrent.futures.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        self._error_told = True
        self._ended.result()
        raise PluginError("The rollout 'fully_async' was closed while it was asked for samples.")

    def close(self) -> None:
        """End the thread and what it waits for. Says what failed since the last call, if anything did."""
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        if not self._error_told and (error := self._ended.exception()):
            logger.warning("Generating had failed when the run ended: %s: %s", type(error).__name__, error)

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except _Closed:
            self._ended.set_result(None)
        except BaseException as error:
            self._ended.set_exception(error)

    # --------------------------------------------------------------------------------------------- inside the event loop

    async def _live(self) -> None:
        self._over, self._news = asyncio.Event(), asyncio.Event()
        with first_error_only():
            async with asyncio.TaskGroup() as self._tasks:
                self._loop_is_there.set_result(asyncio.get_running_loop())
                await self._over.wait()
                await self._abort()
                raise _Closed  # which cancels what is running all the same

    async def _abort(self) -> None:
        """Tell the engine that nobody waits for its answers any more; it may not live any more itself."""
        requests = self._line.requests
        requests.stopped.set()
        if requests.running:
            with suppress(Exception):
                async with asyncio.timeout(PATIENCE):
                    await self._engine.abort(sorted(requests.running))

    async def roll_out(self, rollout_id: int) -> RolloutOutput:
        """The samples of one rollout. Everything else goes on meanwhile, and after it."""
        args = self._args
        if self._due and rollout_id != self._rollout_id:
            raise PluginError(
                f"The rollout 'fully_async' was asked for rollout {rollout_id} and expected {self._rollout_id}: what it has "
                "begun is for one rollout after the other."
            )
        self._rollout_id = self._version = rollout_id
        self._start_groups()
        while (chosen := self._batch()) is None:
            self._news.clear()
            if len(self._due) > len(self._finished):
                await self._news.wait()
            else:
                self._make_up()
        for flight in chosen:
            del self._due[flight]
        self._finished.difference_update(chosen)
        sampled, self._judged = self._judged, Sampled()
        sampled.kept = sorted(chosen, key=lambda flight: (flight.group[0].index or 0, flight.number))
        sampled.rounds = -(-len(sampled.flights) // args.rollout_batch_size)
        if not args.debug_rollout_only:  # without a trainer there are no versions
            self._check_age(sampled.kept, version=rollout_id)
        output = self._line.output(rollout_id, sampled)
        output.metrics |= {
            "in_flight/groups": float(len(self._due)),
            "in_flight/finished_groups": float(len(self._finished)),
            "in_flight/started_afresh": float(self._started_afresh),
        }
        self._started_afresh = 0
        self._rollout_id += 1
        in_flight = [self._line.given_back(flight, rollout_id) for flight in self._due]
        self.data_state = state_with(self._data_source, in_flight)
        self._start_groups()
        return output

    async def evaluate(self, rollout_id: int) -> RolloutOutput:
        """Answers to the evaluation sets. No group is begun meanwhile; those on their way go on."""
        self._paused = True
        output = await evaluate(self._args, rollout_id, self._components, self._plugins, self._engine)
        self._paused = False
        self._start_groups()
        return output

    def _start_groups(self) -> None:
        """Begin as many as there is room for. If the filter lets too few pass, that ends after so many rounds."""
        args = self._args
        size, bound = args.rollout_batch_size, args.max_staleness
        last = None if args.num_rollout is None else max(args.num_rollout, self._version + 1)
        space = staleness.room(self._version, bound, self._rollout_id, size, last)
        tries = (args.max_dynamic_sampling_rounds + bound) * size - len(self._judged.flights)
        count = 0 if self._paused else min(space, tries) - len(self._due)
        for group in self._line.prompts.take(self._data_source, count) if count > 0 else []:
            group, due = self._on_time(group)
            flight = Flight(self._started, group)
            self._started += 1
            self._due[flight] = due
            self._tasks.create_task(self._fly(flight))

    def _on_time(self, group: Group) -> tuple[Group, int]:
        """(the group, when it is due). One with tokens that would be too old (which an earlier run left) starts afresh."""
        args = self._args
        oldest = staleness.oldest_version(group)
        if oldest is not None:
            due = oldest + args.max_staleness
            if staleness.on_time([*self._due.values(), due], self._rollout_id, args.rollout_batch_size):
                return group, due
            self._started_afresh += 1
            group = [fresh(sample) for sample in group]
        return group, self._version + args.max_staleness

    async def _fly(self, flight: Flight) -> None:
        await self._line.runner.run(flight)
        if self._over.is_set():
            return
        keep, reason = (False, "") if flight.lost else passes(self._args, self._line.filter, flight)
        if keep:
            self._finished.add(flight)
        else:
            del self._due[flight]
            (self._judged.lost if flight.lost else self._judged.rejected).append(flight)
            if not flight.lost:
                self._judged.reasons[reason] += 1
            self._start_groups()
        self._news.set()

    def _batch(self) -> list[Flight] | None:
        return staleness.batch(self._due, self._finished, self._rollout_id, self._args.rollout_batch_size)

    def _make_up(self) -> None:
        """Nothing is on its way any more: take rejected groups back."""
        judged, passed = self._judged, list(self._finished)
        judged.rounds = self._args.max_dynamic_sampling_rounds
        judged.kept = list(passed)
        make_up(self._args, judged)
        made_up = judged.kept[len(passed) :]
        judged.kept = []
        self._finished.update(made_up)
        self._due.update(dict.fromkeys(made_up, self._rollout_id))

    def _check_age(self, kept: list[Flight], version: int) -> None:
        for flight in kept:
            oldest = staleness.oldest_version(flight.samples)
            if oldest is not None and version - oldest > self._args.max_staleness:
                raise SampleError(
                    f"{flight.samples[0].name}: its group has tokens of weight version {oldest}, but the weights to train are "
                    f"of version {version}, and --max-staleness is {self._args.max_staleness}. It was begun in time, so the "
                    "engine or the generate function reports wrong versions."
                )
