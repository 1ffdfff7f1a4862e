"""Completing one group: its samples are generated at the same time, and scored as soon as that can be done.

Called by dynamic sampling and by the evaluation, which run many groups at once.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from slime_core.contracts.kind import FailurePolicy
from slime_core.errors import ArgumentError, PluginError
from slime_core.plugins import Plugins
from slime_core.plugins.calls import DROPPED, Caller, Dropped, policies
from slime_core.plugins.signatures import accepted_extras
from slime_core.rollout.components import RolloutComponents
from slime_core.rollout.rewards import Rewards, scores_groups
from slime_core.sample import Group, Sample, Status
from slime_rollout_sglang.parameters import Parameters, seed_of
from slime_rollout_sglang.partial import FINISHED, mask_first, times_continued
from slime_rollout_sglang.requests import Requests, Session

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that rewards under way get when sampling is stopped."""


@dataclass(eq=False)
class Flight:
    """A group on its way.

    Attributes:
        number: its place in the order in which groups were started.
        group: as the data source gave it, with prompt tokens; never changed.
        results: what has become of each of its samples; [] until its generator has returned.
        generated: tokens that the engine has generated for it in this rollout.
        lost: why it has no result ("generator", "reward", …), else None.
    """

    number: int
    group: Group
    results: list[list[Sample]] = field(init=False)
    generated: int = 0
    lost: str | None = None

    def __post_init__(self) -> None:
        self.results = [[] for _ in self.group]

    @property
    def samples(self) -> Group:
        """The results as one group."""
        return [sample for made in self.results for sample in made]


class Lost(Exception):
    """A sample failed for good, so its group is lost. The argument is the metric that counts it."""


class GroupRunner:
    """Completes groups.

    Args:
        generator: under its failure policy; see `generator_caller`.
        rewards: score what is finished.
        parameters: how responses are sampled.
        seed: names the run and what is sampled; a sample's own seed follows from it, its index and how often it was
            continued, so it does not depend on the order in which samples are finished.
        mask_earlier: do not train tokens that were there before this rollout.
    """

    def __init__(
        self,
        args: Any,
        requests: Requests,
        generator: Caller,
        rewards: Rewards,
        parameters: Parameters,
        seed: tuple[Any, ...],
        mask_earlier: bool = False,
    ) -> None:
        self._args, self._requests, self._generator, self._rewards = args, requests, generator, rewards
        self._parameters, self._seed, self._mask_earlier = parameters, seed, mask_earlier
        self._engine_wanted = bool(accepted_extras(generator.selected.target, ("engine",)))

    def scores_whole_groups(self, sample: Sample) -> bool:
        """Whether the reward of a sample looks at its whole group."""
        caller = self._rewards.caller(sample)
        return caller is not None and scores_groups(caller)

    async def run(self, flight: Flight, generated: Callable[[], None] = lambda: None) -> None:
        """Generate and score. `flight` has the results; after `Requests.stop`, what there was by then.

        Args:
            generated: called when the last sample has been generated and rewards may still be missing.

        Raises:
            ExceptionGroup: of what the engine raised, or a component whose policy is to end the run.
        """
        try:
            together = self.scores_whole_groups(flight.group[0])
            waiting = set(range(len(flight.group)))
            async with asyncio.TaskGroup() as tasks:
                for position in range(len(flight.group)):
                    tasks.create_task(self._complete(flight, position, waiting, generated, together))
            if together:
                await self._score(flight.samples)
        except* Lost as lost:
            flight.lost = str(first_error(lost))

    async def _complete(
        self, flight: Flight, position: int, waiting: set[int], generated: Callable[[], None], together: bool
    ) -> None:
        sample = copy.deepcopy(flight.group[position])
        if sample.status in FINISHED:
            made = [mask_first(sample, sample.response_length) if self._mask_earlier else sample]
        else:
            made = await self._generate(flight, sample)
        flight.results[position] = made
        waiting.discard(position)
        if not waiting:
            generated()
        if not together:
            await self._score(made)

    async def _generate(self, flight: Flight, sample: Sample) -> list[Sample]:
        params = self._parameters.of(sample, seed_of(*self._seed, sample.index, times_continued(sample)))
        if params["max_new_tokens"] < 1:
            return [_closed(replace(sample, status=Status.TRUNCATED))]
        session = Session(self._requests)
        extras = {"engine": session} if self._engine_wanted else {}
        failed: Exception | None = None
        try:
            result = await self._generator.call_async(self._args, sample, params, item=sample.name, **extras)
        except PluginError as error:
            result, failed = DROPPED, error
        finally:
            flight.generated += session.generated
        if isinstance(result, Dropped):
            raise self._reason(session.failure, failed)
        made = result if isinstance(result, list) else [result]
        for one in made:
            self._check(one)
        if self._mask_earlier and sample.response_length:
            known = sample.tokens
            made = [mask_first(s, sample.response_length) if s.tokens[: len(known)] == known else s for s in made]
        return [_closed(one) for one in made]

    def _reason(self, engine_failed: Exception | None, generator_failed: Exception | None) -> Exception:
        """What to raise when there is no response. That an engine fails is no fault of the generator's, nor of this
        prompt's; that it refuses a request is, if the generator is somebody's own."""
        if engine_failed is None or (
            isinstance(engine_failed, ArgumentError) and self._args.custom_generate_function_path
        ):
            return generator_failed or Lost("generator")
        return engine_failed

    def _check(self, made: Sample) -> None:
        if made.status is Status.PENDING:
            raise PluginError(
                f"The {self._generator.selected.label} returned {made.name} with the status PENDING; expected COMPLETED, "
                "TRUNCATED, ABORTED or FAILED."
            )
        if made.status is Status.FAILED or (made.status is Status.ABORTED and not self._requests.stopped.is_set()):
            logger.warning("%s came back with the status %s; its group is dropped.", made.name, made.status.name)
            raise Lost(made.status.value)

    async def _score(self, samples: list[Sample]) -> None:
        """Set the rewards that are missing. Once sampling is stopped, those under way get `PATIENCE` seconds more, so that
        what goes into the buffer does not depend on the clock unless one hangs; the next rollout scores the rest."""
        if all(s.reward is not None for s in samples) or any(s.status not in FINISHED for s in samples):
            return
        if await self._unless_stopped(self._rewards.score(samples)) is False:
            raise Lost("reward")

    async def _unless_stopped(self, work: Awaitable[bool]) -> bool | None:
        working = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._requests.stopped.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await asyncio.wait({working}, timeout=PATIENCE)
            return working.result() if working.done() else None
        finally:
            for task in (working, stopped):
                task.cancel()
            await asyncio.gather(working, stopped, return_exceptions=True)


def generator_caller(args: Any, components: RolloutComponents, plugins: Plugins) -> Caller:
    """The generator of `--custom-generate-function-path` under its failure policy, or that of a single turn, which fails
    only when the engine does. Every attempt gets a copy of the sample of its own."""
    chosen = components.further.get("generator")
    selected = chosen or plugins.select("generator", "single_turn")
    policy = policies(args.failure_policy)["generator"] if chosen else FailurePolicy()
    return Caller(replace(selected, target=_on_a_copy(selected.target)), policy)


def _on_a_copy(target: Callable[..., Any]) -> Callable[..., Any]:
    def called(args: Any, sample: Sample, sampling_params: dict[str, Any], **extras: Any) -> Any:
        return target(args, copy.deepcopy(sample), dict(sampling_params), **extras)

    async def awaited(args: Any, sample: Sample, sampling_params: dict[str, Any], **extras: Any) -> Any:
        return await called(args, sample, sampling_params, **extras)

    return functools.wraps(target)(awaited if inspect.iscoroutinefunction(target) else called)


@contextmanager
def first_error_only() -> Iterator[None]:
    """Raises what was raised first in place of a group of errors."""
    try:
        yield
    except BaseExceptionGroup as errors:
        error = first_error(errors)
    else:
        return
    raise error


def first_error(error: BaseException) -> BaseException:
    """What was raised first, of an error that may be a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _closed(sample: Sample) -> Sample:
    """A finished sample without any token cannot be trained; its reward counts in its group all the same."""
    return replace(sample, remove_sample=True) if sample.status in FINISHED and not sample.response_length else sample
