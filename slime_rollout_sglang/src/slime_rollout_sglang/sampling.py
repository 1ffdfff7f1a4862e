"""Dynamic sampling: many groups at once, until enough of them have passed the filter.

Prompts are taken `--over-sampling-batch-size` at a time, and again whenever the groups that may still pass are too few.
Finished groups are judged one by one; the moment enough have passed, everything else is stopped.

With the order "finished", groups are judged as their last response is finished (however long their rewards take), those
of one step of the engine as the engine reports them. Which groups are accepted then depends on how fast the engine
serves each request. With the order "prompt" they are judged as they were started, and what is accepted depends on nothing
but the prompts, the seeds and the weights. Without a filter and over-sampling every group is accepted, and the two are
the same.

An engine that can wait (`hold`, as the embedded one can) does so while a group is judged that may end the sampling. With
it, both orders give the same groups, and the same half-generated ones, in every run.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from slime_core.errors import SampleError
from slime_core.plugins.calls import Caller, Dropped
from slime_core.sample import reward_of
from slime_rollout_sglang.filters import verdict
from slime_rollout_sglang.groups import Flight, GroupRunner, first_error_only
from slime_rollout_sglang.prompts import Prompts
from slime_rollout_sglang.requests import Hold, Requests

logger = logging.getLogger(__name__)


@dataclass
class Sampled:
    """How sampling ended. Every group that was started is in exactly one of the lists.

    Attributes:
        kept: `--rollout-batch-size` groups, in the order of their samples' index.
        rejected: finished, and filtered out.
        lost: a generator or reward failed for good.
        stopped: not judged when there were enough; finished or not.
        reasons: how many groups the filter rejected why, those included that were kept in the end for want of better.
        rounds: how often prompts were taken.
        made_up: groups among `kept` that the filter had rejected.
    """

    kept: list[Flight] = field(default_factory=list)
    rejected: list[Flight] = field(default_factory=list)
    lost: list[Flight] = field(default_factory=list)
    stopped: list[Flight] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    made_up: int = 0

    @property
    def flights(self) -> list[Flight]:
        """All groups, in the order in which they were started."""
        return sorted([*self.kept, *self.rejected, *self.lost, *self.stopped], key=lambda flight: flight.number)


class DynamicSampling:
    """Samples the groups of one rollout.

    Args:
        args: reads `rollout_batch_size`, `over_sampling_batch_size`, `max_dynamic_sampling_rounds`,
            `dynamic_sampling_order` and `reward_key`.
        filter: the dynamic filter, if one is chosen.
    """

    def __init__(
        self,
        args: Any,
        data_source: Any,
        prompts: Prompts,
        runner: GroupRunner,
        requests: Requests,
        filter: Caller | None,
    ) -> None:
        self._args, self._data_source, self._prompts = args, data_source, prompts
        self._runner, self._requests, self._filter = runner, requests, filter
        self._tasks: dict[Flight, asyncio.Task[None]] = {}  # of groups that are not judged yet
        self._to_judge: asyncio.Queue[Flight] = asyncio.Queue()
        self._started = 0
        self._sampled = Sampled()
        self._generated: set[Flight] = set()  # among them
        self._hold = Hold(requests.engine)

    async def sample(self) -> Sampled:
        """Start groups, judge them, stop.

        Raises:
            SampleError: so many groups were lost that the rollout cannot be filled.
            Exception: whatever ends the run; nothing of the rollout is running any more.
        """
        with first_error_only():
            async with asyncio.TaskGroup() as tasks:
                try:
                    await self._sample_until_full(tasks)
                    await self._requests.stop(self._tasks.values())
                finally:
                    self._hold.set(False)
        sampled = self._sampled
        for flight in self._tasks:
            (sampled.lost if flight.lost else sampled.stopped).append(flight)
        sampled.kept.sort(key=lambda flight: (flight.group[0].index or 0, flight.number))
        return sampled

    async def _sample_until_full(self, tasks: asyncio.TaskGroup) -> None:
        sampled, wanted = self._sampled, self._args.rollout_batch_size
        while len(sampled.kept) < wanted:
            may_pass = len(sampled.kept) + len(self._tasks)
            if may_pass < wanted and sampled.rounds < self._args.max_dynamic_sampling_rounds:
                self._start_round(tasks)
            elif self._tasks:
                await self._judge_next()
            else:
                make_up(self._args, sampled)

    def _start_round(self, tasks: asyncio.TaskGroup) -> None:
        self._sampled.rounds += 1
        count = self._args.over_sampling_batch_size or self._args.rollout_batch_size
        for group in self._prompts.take(self._data_source, count):
            flight = Flight(self._started, group)
            self._started += 1
            self._tasks[flight] = tasks.create_task(self._fly(flight))
            if self._args.dynamic_sampling_order == "prompt":
                self._to_judge.put_nowait(flight)

    async def _fly(self, flight: Flight) -> None:
        is_queued = self._args.dynamic_sampling_order == "prompt"

        def generated() -> None:
            nonlocal is_queued
            if not is_queued:
                self._to_judge.put_nowait(flight)
            is_queued = True
            self._generated.add(flight)
            self._hold_or_go_on()

        await self._runner.run(flight, generated)
        if flight not in self._generated:
            generated()  # also a group that was lost on the way

    def _hold_or_go_on(self) -> None:
        """The engine waits while a group is judged, or could be, where the verdict may stop it."""
        over_sampled = (self._args.over_sampling_batch_size or 0) > self._args.rollout_batch_size
        if self._filter is None and not over_sampled:
            return
        if self._args.dynamic_sampling_order == "prompt":
            self._hold.set(next(iter(self._tasks), None) in self._generated)
        else:
            self._hold.set(bool(self._generated))

    async def _judge_next(self) -> None:
        sampled = self._sampled
        self._hold_or_go_on()
        flight = await self._to_judge.get()
        await self._tasks[flight]
        del self._tasks[flight]
        self._generated.discard(flight)
        if flight.lost:
            sampled.lost.append(flight)
            return
        keep, reason = passes(self._args, self._filter, flight)
        if keep:
            sampled.kept.append(flight)
        else:
            sampled.rejected.append(flight)
            sampled.reasons[reason] += 1


def passes(args: Any, filter: Caller | None, flight: Flight) -> tuple[bool, str]:
    """(whether a finished group is trained, why not), as the dynamic filter says, if there is one."""
    if filter is None:
        return True, ""
    answer = filter.call(args, flight.samples, item=f"prompt {flight.group[0].group_index}")
    return (False, "filter_failed") if isinstance(answer, Dropped) else verdict(answer)


def make_up(args: Any, sampled: Sampled) -> None:
    """Fill a rollout up with groups that the filter rejected: those whose rewards differ most, then the first.

    Args:
        args: reads `rollout_batch_size` and `reward_key`.

    Raises:
        SampleError: there are too few.
    """
    started, missing = len(sampled.flights), args.rollout_batch_size - len(sampled.kept)
    best = sorted(sampled.rejected, key=lambda flight: (-_spread(flight, args.reward_key), flight.number))[:missing]
    reasons = ", ".join(f"{count} {reason}" for reason, count in sampled.reasons.most_common()) or "none"
    tried = (
        f"{sampled.rounds} rounds of sampling (--max-dynamic-sampling-rounds), {started} prompts, gave "
        f"{len(sampled.kept)} of {args.rollout_batch_size} groups; filtered out: {reasons}; lost to failures of "
        f"generators and rewards: {len(sampled.lost)}."
    )
    if len(best) < missing:
        raise SampleError(f"{tried} That leaves too few to go on with. Repair what fails; the warnings above say what.")
    logger.warning(
        "%s The rollout is filled up with %d of those that were filtered out. Choose prompts that the model solves "
        "sometimes, raise --n-samples-per-prompt or --over-sampling-batch-size, or loosen the filter.",
        *(tried, missing),
    )
    for flight in best:
        sampled.rejected.remove(flight)
    sampled.kept += best
    sampled.made_up = missing


def _spread(flight: Flight, key: str | None) -> float:
    rewards = [reward_of(sample, key) for sample in flight.samples]
    return statistics.pstdev(rewards) if len(rewards) > 1 else 0.0
