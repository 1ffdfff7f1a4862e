"""The rollout function `fully_async`: groups are generated without a pause, also while the trainer trains.

They live in an event loop on a thread of their own that outlasts the calls. A call waits until `--rollout-batch-size`
groups can be returned and takes them; the others go on. The engine is given new weights between two calls while requests
run, and each token keeps the version that produced it. `slime_rollout_sglang.staleness` says when a group may be started
and when it must be returned, so that no token is more than `--max-staleness` versions older than the weights it trains.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from slime_core.contracts.data import state_of
from slime_core.errors import PluginError, SampleError, first_error_only
from slime_core.rollout.in_flight import state_with
from slime_core.sample import Group, RolloutOutput
from slime_rollout_sglang import staleness
from slime_rollout_sglang.evaluation import evaluate
from slime_rollout_sglang.filters import Verdict
from slime_rollout_sglang.groups import GRACE_PERIOD, GroupInProgress
from slime_rollout_sglang.partial import earlier_segments, fresh
from slime_rollout_sglang.pipeline import RolloutPipeline
from slime_rollout_sglang.rollout import require_engine
from slime_rollout_sglang.sampling import Sampled, fill_with_rejected, passes

if TYPE_CHECKING:
    from slime_core.contracts.data import DataSource
    from slime_core.contracts.engine import InferenceEngine
    from slime_core.contracts.rollout import Background
    from slime_core.plugins import Plugins
    from slime_core.rollout.components import RolloutComponents
    from slime_rollout_sglang.arguments import RlRunArguments

logger = logging.getLogger(__name__)


def generate_rollout(
    args: RlRunArguments,
    rollout_id: int,
    data_source: DataSource,
    evaluation: bool = False,
    *,
    components: RolloutComponents,
    plugins: Plugins,
    engine: InferenceEngine | None = None,
    background: Background,
) -> RolloutOutput:
    """Return `--rollout-batch-size` groups of scored responses or, for evaluation, answers to `--eval-prompt-data`.

    It must be called when the engine has the weights of version `rollout_id`. Without staleness (`--max-staleness 0`) the
    groups are those of the rollout function `rl` with `--dynamic-sampling-order prompt`.

    Args:
        components: the generate function, reward and filters of the run.
        plugins: provides the rewards that rows name.
        engine: generates the responses.
        background: keeps the `ContinuousSampling` between the calls.

    Raises:
        ArgumentError: there is no engine.
        DataError: prompts cannot be used.
        SampleError: too many groups failed, or the engine's weight versions are older than can be.
        PluginError: a component failed whose policy is to end the run. What the engine raises comes as it is, also what it
            raised since the last call.
    """
    engine = require_engine(args, engine, "fully_async")
    if evaluation and not isinstance(background.work, ContinuousSampling):
        return asyncio.run(evaluate(args, rollout_id, components, plugins, engine))
    if background.work is None:
        background.work = ContinuousSampling(args, data_source, components, plugins, engine)
    work = background.work
    if not isinstance(work, ContinuousSampling):
        raise PluginError(
            f"The rollout 'fully_async' found a {type(work).__name__} in the background; expected its own work: the "
            "function of --eval-function-path works in the background too. Choose another one there."
        )
    return work.call(work.evaluate if evaluation else work.roll_out, rollout_id)


class _Closed(Exception):
    """Ends the event loop."""


class ContinuousSampling:
    """Generates groups until it is closed or something fails (`slime_core.contracts.rollout.Work`).

    Attributes:
        data_state: the state of the data source when the last rollout was returned, with the groups in progress.
    """

    def __init__(
        self,
        args: RlRunArguments,
        data_source: DataSource,
        components: RolloutComponents,
        plugins: Plugins,
        engine: InferenceEngine,
    ) -> None:
        self._args, self._data_source, self._engine = args, data_source, engine
        self._components, self._plugins = components, plugins
        self._pipeline = RolloutPipeline(args, data_source, components, plugins, engine, "fully-async")
        self.data_state = state_of(data_source)
        self._started = 0
        self._due: dict[GroupInProgress, int] = {}  # all groups in progress → the last rollouts that may return them
        self._finished: set[GroupInProgress] = set()  # those among them that passed the filter
        self._judged = Sampled()  # the groups that did not, since the last rollout
        self._rollout_id = 0  # the rollout that is returned next
        self._version = 0  # of the weights that generate
        self._started_afresh = 0
        self._told_of_scarcity = False
        self._paused = False
        self._error_raised = False
        self._ended: Future[None] = Future()
        self._loop_started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name="fully-async", daemon=True)
        self._thread.start()
        self._loop = self._loop_started.result()

    @property
    def finished(self) -> int:
        """How many of the groups in progress have passed the filter and wait to be returned."""
        return len(self._finished)

    def call(self, method: Callable[[int], Coroutine[Any, Any, RolloutOutput]], rollout_id: int) -> RolloutOutput:
        """Run a method in the event loop and return what it returns. Raises whatever ends the loop, or has ended it."""
        answer: Future[RolloutOutput] = Future()

        async def work() -> None:
            answer.set_result(await method(rollout_id))

        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(lambda: self._tasks.create_task(work()))
        futures: tuple[Future[Any], ...] = (answer, self._ended)
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        self._error_raised = True
        self._ended.result()
        raise PluginError("The rollout 'fully_async' was closed while it was asked for samples.")

    def close(self) -> None:
        """End the thread and the requests. Logs what failed since the last call, if anything did."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        if not self._error_raised and (error := self._ended.exception()):
            logger.warning("Generating had failed when the run ended: %s: %s", type(error).__name__, error)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except _Closed:
            self._ended.set_result(None)
        except BaseException as error:
            self._ended.set_exception(error)

    # --------------------------------------------------------------------------------------------- inside the event loop

    async def _serve(self) -> None:
        """Keep the event loop and its tasks alive until `close`, or until one of them raises."""
        self._closing, self._changed = asyncio.Event(), asyncio.Event()
        with first_error_only():
            async with asyncio.TaskGroup() as self._tasks:
                self._loop_started.set_result(asyncio.get_running_loop())
                await self._closing.wait()
                await self._abort()
                raise _Closed  # which also cancels the tasks that are running

    async def _abort(self) -> None:
        """Tell the engine that nobody waits for its answers any more. It may be gone itself by now."""
        requests = self._pipeline.requests
        requests.stopped.set()
        if requests.running:
            with suppress(Exception):
                async with asyncio.timeout(GRACE_PERIOD):
                    await self._engine.abort(sorted(requests.running))

    async def roll_out(self, rollout_id: int) -> RolloutOutput:
        """Return the samples of one rollout. All other groups go on meanwhile, and after it."""
        args = self._args
        if self._due and rollout_id != self._rollout_id:
            raise PluginError(
                f"The rollout 'fully_async' was asked for rollout {rollout_id} and expected {self._rollout_id}: what it has "
                "begun is for one rollout after the other."
            )
        self._rollout_id = self._version = self._pipeline.hooks.rollout_id = rollout_id
        self._start_groups()
        while (chosen := self._batch()) is None:
            self._changed.clear()
            if len(self._due) > len(self._finished):
                await self._changed.wait()
            else:
                self._fill_with_rejected()
        for group in chosen:
            del self._due[group]
        self._finished.difference_update(chosen)
        sampled, self._judged = self._judged, Sampled()
        sampled.kept = sorted(chosen, key=lambda group: (group.given[0].index or 0, group.number))
        sampled.rounds = -(-len(sampled.started) // args.rollout_batch_size)
        if not args.debug_rollout_only:  # without a trainer there are no versions
            self._check_age(sampled.kept, version=rollout_id)
        output = self._pipeline.output(rollout_id, sampled)
        output.metrics |= {
            "in_flight/groups": float(len(self._due)),
            "in_flight/finished_groups": float(len(self._finished)),
            "in_flight/started_afresh": float(self._started_afresh),
        }
        self._started_afresh = 0
        self._rollout_id += 1
        in_flight = [self._pipeline.put_back(group, rollout_id) for group in self._due]
        self.data_state = state_with(self._data_source, in_flight)
        self._start_groups()
        return output

    async def evaluate(self, rollout_id: int) -> RolloutOutput:
        """Return answers to the evaluation sets. No group is started meanwhile; those in progress go on."""
        self._paused = True
        output = await evaluate(self._args, rollout_id, self._components, self._plugins, self._engine)
        self._paused = False
        self._start_groups()
        return output

    def _start_groups(self) -> None:
        """Start as many groups as there is room for.

        If the filter lets too few pass, that ends after `--max-dynamic-sampling-rounds` rollouts' worth of groups.
        """
        args = self._args
        size, bound = args.rollout_batch_size, args.max_staleness
        last = None if args.num_rollout is None else max(args.num_rollout, self._version + 1)
        space = staleness.room(self._version, bound, self._rollout_id, size, last)
        tries = (args.max_dynamic_sampling_rounds + bound) * size - len(self._judged.started)
        count = 0 if self._paused else min(space, tries) - len(self._due)
        for taken in self._pipeline.prompts.take(self._data_source, count) if count > 0 else []:
            given, due = self._on_time(taken)
            group = GroupInProgress(self._started, given)
            self._started += 1
            self._due[group] = due
            self._tasks.create_task(self._complete(group))

    def _on_time(self, given: Group) -> tuple[Group, int]:
        """Return (the group as it is started, the last rollout that may return it).

        A group with tokens that would be too old, which an earlier run left, starts afresh.
        """
        args = self._args
        oldest = staleness.oldest_version(earlier_segments(given))
        if oldest is not None:
            due = oldest + args.max_staleness
            if staleness.on_time([*self._due.values(), due], self._rollout_id, args.rollout_batch_size):
                return given, due
            self._started_afresh += 1
            given = [fresh(sample) for sample in given]
        return given, self._version + args.max_staleness

    async def _complete(self, group: GroupInProgress) -> None:
        await self._pipeline.runner.run(group)
        if self._closing.is_set():
            return
        verdict = Verdict(False) if group.lost else passes(self._args, self._pipeline.filter, group)
        if verdict.keep:
            self._finished.add(group)
        else:
            if verdict.keep_when_insufficient and not self._told_of_scarcity:
                self._told_of_scarcity = True
                logger.warning(
                    "The dynamic sampling filter would keep groups that it rejects (%s) where too few others are left "
                    "(`keep_when_insufficient`). The rollout function 'fully_async' does not: further groups are always being "
                    "generated, and another takes the place of each that is rejected. Only --max-dynamic-sampling-rounds ends "
                    "that. The rollout function 'rl' keeps them.",
                    verdict.reason,
                )
            del self._due[group]
            (self._judged.lost if group.lost else self._judged.rejected).append(group)
            if not group.lost:
                self._judged.reasons[verdict.reason] += 1
            self._start_groups()
        self._changed.set()

    def _batch(self) -> list[GroupInProgress] | None:
        return staleness.batch(self._due, self._finished, self._rollout_id, self._args.rollout_batch_size)

    def _fill_with_rejected(self) -> None:
        """Take rejected groups back, as no group is being generated any more and no further one may be started."""
        judged, passed = self._judged, list(self._finished)
        judged.rounds = self._args.max_dynamic_sampling_rounds
        judged.kept = list(passed)
        fill_with_rejected(self._args, judged)
        made_up = judged.kept[len(passed) :]
        judged.kept = []
        self._finished.update(made_up)
        self._due.update(dict.fromkeys(made_up, self._rollout_id))

    def _check_age(self, kept: list[GroupInProgress], version: int) -> None:
        """Raise `SampleError` for a token that is older than `--max-staleness` allows."""
        for group in kept:
            oldest = staleness.oldest_version(group.samples)
            if oldest is not None and version - oldest > self._args.max_staleness:
                raise SampleError(
                    f"{group.samples[0].name}: its group has tokens of weight version {oldest}, but the weights to train are "
                    f"of version {version}, and --max-staleness is {self._args.max_staleness}. It was begun in time, so the "
                    "engine or the generate function reports wrong versions."
                )
